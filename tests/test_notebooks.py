"""The form of the notebooks, and the check of the finished site."""

import re

import nbformat
from small_book import edit, make

from margins import notebooks, paths
from margins.rendering import check_site


def test_tidy_brings_any_notebook_into_form(tmp_path):
    root = make(tmp_path)
    assert notebooks.tidy(root, check=True) == []
    path = root / "book/amm/toy.ipynb"
    edit(root / "_config.yml", "github.com/margins-book/margins", "example.org/m")
    messy = notebooks.read(path)
    code = [cell for cell in messy.cells if cell.cell_type == "code"]
    code[1].outputs, code[1].execution_count = [nbformat.v4.new_output("stream", text="old")], 3
    code[2].metadata["papermill"] = {"duration": 1}
    messy.metadata["colab"] = {"name": "x"}
    messy.cells.append(nbformat.v4.new_code_cell(""))
    nbformat.write(messy, path)
    edit(path, f'"id": "{code[2].id}"', f'"id": "{code[1].id}"')
    before = path.read_text()
    mend = "out of form, mend it with `margins tidy`"
    assert notebooks.tidy(root, check=True) == [f"book/amm/more.ipynb: {mend}", f"book/amm/toy.ipynb: {mend}"]
    assert path.read_text() == before, "the check changes nothing"
    notebooks.tidy(root)
    assert notebooks.tidy(root, check=True) == []
    clean = path.read_text()
    assert "%pip install -q git+https://example.org/m@main" in clean
    assert not re.search("old|papermill|colab|margins-book", clean)
    assert len({cell.id for cell in notebooks.read(path).cells}) == len(messy.cells) - 1


def test_tidy_tells_what_it_cannot_mend(tmp_path):
    root = make(tmp_path)
    edit(root / "book/amm/toy.ipynb", 'margins.page(\\"amm/toy\\")', 'margins.page(\\"amm/tea\\")')
    edit(root / "book/amm/more.ipynb", "seed: int = 0  # the seed", "seed = 0")
    edit(root / "book/amm/toy.ipynb", '"metadata": {\n  "kernelspec"', '"metadata": {\n  "old": 1,\n  "kernelspec"')
    more, tidied, toy = notebooks.tidy(root)
    assert tidied == "book/amm/toy.ipynb: tidied"
    assert "amm/more: parameters cell, line 'seed = 0'" in more
    assert "expected one call margins.page('amm/toy', ...), found ['amm/tea']" in toy


def test_the_notebooks_of_the_book_are_in_form():
    assert notebooks.tidy(paths.REPO, check=True) == []


def test_a_cell_that_makes_a_figure_shows_nothing_else():
    figures = [
        (path.name, cell)
        for path in sorted((paths.REPO / "book").rglob("*.ipynb"))
        for cell in notebooks.read(path).cells
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert len(figures) > 20
    # both would have the figure's name; prose in place of a figure that was not run is indented
    shown = ("page.table(", "\npage.markdown(", "\nmissing(")
    assert [name for name, cell in figures for one in shown if one in f"\n{cell.source}"] == []


def test_check_site_finds_what_is_broken(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b c.html").write_text('<p id="here">B</p><a href="../a.html#top-1">a</a>')
    good = (
        '<h1 id="top-1">A</h1><a href="sub/b%20c.html#here">b</a><a href="#top-1">up</a><a href="https://x.org/y">x</a>'
    )
    (tmp_path / "a.html").write_text(good)
    assert check_site(tmp_path) == []
    bad = (
        '<a href="gone.html">g</a><a href="sub/b%20c.html#gone">g</a><img src="no.png"><a href="#no">n</a>'
        '<div class="output stderr">w</div><div class="output traceback">t</div><script src="https://cdn.org/x.js"></script>'
    )
    (tmp_path / "a.html").write_text(good + bad)
    assert check_site(tmp_path) == [
        "a.html: shows an output of kind stderr",
        "a.html: shows an output of kind traceback",
        "a.html: loads https://cdn.org/x.js, missing without a network",
        "a.html: #no: no such anchor",
        "a.html: gone.html leads nowhere",
        "a.html: no.png leads nowhere",
        "a.html: sub/b%20c.html#gone: no such anchor",
    ]


def test_the_quick_parameters_are_checked(tmp_path):
    root = make(tmp_path)
    edit(root / "book/amm/toy.ipynb", '"kernelspec": {', '"margins": {"quick": {"epoch": 2}},\n  "kernelspec": {')
    (line,) = notebooks.tidy(root, check=True)[1:]
    assert "unknown parameter 'epoch' (did you mean 'epochs'?). The parameters of amm/toy, metadata margins.q" in line
