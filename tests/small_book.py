"""A small book for the tests: two pages, of which one reads a file, with the real configuration."""

import shutil
from pathlib import Path

import nbformat

from margins import notebooks, paths

TOC = """\
format: jb-book
root: book/index
parts:
  - caption: AMM
    chapters:
      - file: book/amm/toy
      - file: book/amm/more
  - caption: About
    chapters:
      - file: book/status
"""
TOY = """\
import pandas as pd
from pathlib import Path
from margins.paths import note
text = note(Path("../../results/noted.txt")).read_text()
page.table(pd.DataFrame({"text": [text], "epochs": [epochs]}), name="tab-toy", caption="What was read.")"""


def notebook(name, title, parameters, *code):
    cells = [
        nbformat.v4.new_markdown_cell(title),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f'import margins\n\npage = margins.page("{name}")'),
        *map(nbformat.v4.new_code_cell, code),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def make(root: Path) -> Path:
    """Write a book of two pages, one of which reads a file, with the real configuration; return its root."""
    for name in ("_config.yml", "book/index.md", "book/status.md", "book/references.bib", "book/_static/margins.css"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.REPO / name, root / name)
    (root / "_toc.yml").write_text(TOC)
    (root / "requirements.lock").write_text("torch==1\n")
    (root / "package").mkdir()
    (root / "package" / "code.py").write_text("A = 1\n")
    (root / "results").mkdir()
    (root / "results" / "noted.txt").write_text("first")
    (root / "book" / "amm").mkdir()
    toy = notebook("amm/toy", "# Toy\n\nProse, $x^2$.", "epochs: int = 50  # passes", TOY)
    nbformat.write(toy, root / "book/amm/toy.ipynb")
    more = "page.markdown(f'Seed {seed} of {{numref}}`tab-toy`.')"
    nbformat.write(notebook("amm/more", "# More", "seed: int = 0  # the seed", more), root / "book/amm/more.ipynb")
    assert notebooks.tidy(root) == ["book/amm/more.ipynb: tidied", "book/amm/toy.ipynb: tidied"]
    return root


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
