"""margins.page: the strict door of every notebook, and what it displays. Cells are run in a real IPython shell."""

import re
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import margins
from margins import _page, datasets, parameters
from margins.claims import ledger
from margins.errors import MarginsError

DECLARED = """\
epochs: int = 50  # passes
lr: float = 0.1  # step size
name: str = "a"  # a name
sizes: list[int] = [1]  # numbers"""


@pytest.fixture
def shell():
    main = sys.modules["__main__"]  # which the shell replaces by its own; other tests start processes from it
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    shell.reset()
    yield shell
    sys.modules["__main__"] = main


def run(shell, *cells):
    """Run the cells and `margins.page("amm/toy")`; return the Page and the data of what was displayed."""
    for cell in cells:
        shell.run_cell(cell, store_history=True).raise_error()
    with capture_output() as captured:
        page = shell.run_cell('import margins\nmargins.page("amm/toy", scale="quick")', store_history=True)
    page.raise_error()
    return page.result, captured.outputs[0].data


def test_a_page_at_its_defaults(shell):
    page, shown = run(shell, "", "import os", DECLARED)
    assert page.parameters == {"epochs": 50, "lr": 0.1, "name": "a", "sizes": [1]}
    assert page.data is None
    for form in ("text/markdown", "text/html"):
        assert "margins run amm/toy -p epochs 100\npapermill book/amm/toy.ipynb out.ipynb -p epochs 100" in shown[form]
        assert "all at their defaults" in shown[form]
    assert "**Live scale** `quick`" in shown["text/markdown"]


def test_changed_parameters_are_named_with_their_defaults(shell):
    page, shown = run(shell, DECLARED, "# Parameters\nepochs = 200\nlr = 1\n")
    assert page.parameters["epochs"] == 200
    assert "`epochs = 200` (default `50`), `lr = 1` (default `0.1`)" in shown["text/markdown"]
    assert "**Live scale** `quick, with changed parameters`" in shown["text/markdown"]


@pytest.mark.parametrize(
    ("injected", "said"),
    [
        ("epoch = 200", "unknown parameter 'epoch' (did you mean 'epochs'?)"),
        ("epochs = '8/255'", "parameter epochs: '8/255' given, int expected"),
        ("epochs = True", "parameter epochs: True given, int expected"),
        ("epochs = 2.0", "parameter epochs: 2.0 given, int expected"),
        ("lr = '0.1'", "parameter lr: '0.1' given, float expected"),
        ("sizes = [1, 2.5]", "parameter sizes: [1, 2.5] given, list[int] expected"),
        ("sizes = '[1]'", "parameter sizes: '[1]' given, list[int] expected"),
    ],
)
def test_wrong_parameters_list_all_that_are_declared(shell, injected, said):
    with pytest.raises(MarginsError) as error:
        run(shell, DECLARED, f"# {'Injected Parameters' if '[' in injected else 'Parameters'}\n{injected}\n")
    assert said in str(error.value)
    assert "epochs: int = 50  # passes\n  lr: float = 0.1  # step size\n  name: str = 'a'" in str(error.value)


def test_a_value_that_a_reader_set_by_hand_is_checked_too(shell):
    with pytest.raises(MarginsError, match="parameter epochs: 'many' given, int expected"):
        run(shell, DECLARED, "epochs = 'many'")


def test_without_a_parameters_cell(shell):
    with pytest.raises(MarginsError, match="no parameters cell was executed"):
        run(shell, "epochs = 5", "lr: float = 8/255")


def test_outside_a_notebook(monkeypatch):
    monkeypatch.setattr(_page, "get_ipython", lambda: None)
    with pytest.raises(MarginsError, match="works in a notebook"):
        margins.page("amm/toy")


def test_a_parameter_below_its_bound(shell):
    page, _ = run(shell, DECLARED)
    page.at_least(epochs=50, lr=0)
    with pytest.raises(MarginsError, match="parameter epochs: 50 given, 51 or more expected"):
        page.at_least(epochs=51)


def test_an_unknown_scale(shell):
    run(shell, DECLARED)
    with pytest.raises(MarginsError, match="scale: 'huge' given, one of quick, laptop, gpu, paper expected"):
        margins.page("amm/toy", scale="huge")
    with pytest.raises(MarginsError, match="records: 'large' given, one of quick, laptop, gpu, paper expected"):
        margins.page("amm/toy", records="large")


def test_a_stand_in_for_the_data_is_said_prominently(shell, monkeypatch):
    run(shell, DECLARED)
    monkeypatch.setattr(datasets, "live", lambda name: "digits")
    with capture_output() as captured:
        page = margins.page("amm/toy", data="mnist")
    shown = captured.outputs[0].data
    assert page.data == "digits"
    assert shown["text/markdown"].startswith(":::{admonition} Not the data asked for\n:class: warning")
    assert shown["text/html"].startswith("<p><b>Not the data asked for.</b>")
    with capture_output() as captured:
        margins.page("amm/toy", data="digits")
    assert "Not the data" not in captured.outputs[0].data["text/markdown"]


def table(page, frame, **options):
    with capture_output() as captured:
        page.table(frame, **{"name": "tab-toy", "caption": "A & B.", **options})
    return captured.outputs[0].data


def test_a_table_is_a_numbered_directive(shell):
    page, _ = run(shell, DECLARED)
    frame = pd.DataFrame({"row": ["a|b", "c\nd"], "acc": [0.456, float("nan")]}, index=pd.Index([3, 4], name="k"))
    shown = table(page, frame, formats={"acc": "{:.1%}", "k": lambda k: f"k{k}"})
    assert shown["text/markdown"] == (
        "~~~{table} A & B.\n:name: tab-toy\n\n"
        "| k | row | acc |\n| ---: | :--- | ---: |\n| k3 | a\\|b | 45.6% |\n| k4 | c d | – |\n~~~"
    )
    assert "<caption>A &amp; B.</caption>" in shown["text/html"]
    assert '<td style="text-align:left">a|b</td><td style="text-align:right">45.6%</td>' in shown["text/html"]


def test_a_table_with_a_wrong_name_or_format(shell):
    page, _ = run(shell, DECLARED)
    with pytest.raises(MarginsError, match="name: 'Table 1' given, expected tab-"):
        table(page, pd.DataFrame({"a": [1]}), name="Table 1")
    with pytest.raises(MarginsError, match=r"formats: no column 'b'; there are \['a'\]"):
        table(page, pd.DataFrame({"a": [1]}), formats={"b": "{}"})


def test_verdicts_of_the_claims_that_begin_so(shell):
    page, _ = run(shell, DECLARED)
    with capture_output() as captured:
        page.verdicts("amm-f1-", "amm-s334-min")
    lines = captured.outputs[0].data["text/markdown"].splitlines()
    chosen = [claim for claim in ledger("amm") if claim.id.startswith(("amm-f1-", "amm-s334-min"))]
    assert len(lines) == len(chosen) > 1
    for line, claim in zip(lines, chosen, strict=True):
        assert re.match(r"- \{bdg-\w+\}`(supported|contradicted|undecided|not run)`", line)
        assert f"<claim-{claim.id}>" in line
    assert captured.outputs[0].data["text/html"].count("<li>") == len(chosen)
    with pytest.raises(MarginsError, match="'amm-nothing' given, but no claim's id begins so"):
        page.verdicts("amm-f1-", "amm-nothing")


def test_computed_prose(shell):
    page, _ = run(shell, DECLARED)
    with capture_output() as captured:
        page.markdown("After 5 epochs, see {numref}`tab-toy`.")
    assert captured.outputs[0].data["text/markdown"] == "After 5 epochs, see {numref}`tab-toy`."


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("lr: float = 8/255  # step", "the default is not a literal"),
        ("lr: float = 'a'  # step", "the default is not of type float"),
        ("n: int = True  # number", "the default is not of type int"),
        ("n: complex = 1  # number", "type complex given, one of int, float"),
        ("n: int = 1", "expected a comment"),
        ("n: int  # number", "expected `name: type = literal"),
        ("n = 1  # number", "expected `name: type = literal"),
        ("n: list[int] = [\n  1]  # numbers", "expected one line for each"),
        ("n: int = 1  # number\nn: int = 2  # number", "n is declared twice"),
        ("n: int = = 1", "not Python"),
    ],
)
def test_a_parameters_cell_has_one_form(source, said):
    with pytest.raises(MarginsError, match="parameters cell") as error:
        parameters.read(source, strict=True)
    assert said in str(error.value)


def test_a_hash_in_a_string_is_no_comment():
    assert parameters.read('colour: str = "#fff"  # of the line', strict=True)["colour"] == parameters.Parameter(
        "colour", "str", "#fff", "of the line"
    )


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        ("int", "-3", -3),
        ("float", "1e-3", 0.001),
        ("float", "2", 2.0),
        ("str", "3", "3"),
        ("bool", "False", False),
        ("bool", "true", True),
        ("list[float]", "[1, 2.5]", [1, 2.5]),
        ("list[str]", '["a"]', ["a"]),
    ],
)
def test_values_are_read_by_their_type(type_, text, value):
    declared = {"p": parameters.Parameter("p", type_, value, "")}
    assert parameters.parse(declared, {"p": text}, "amm/toy") == {"p": value}


@pytest.mark.parametrize(("type_", "text"), [("int", "2.5"), ("float", "8/255"), ("bool", "1"), ("list[int]", "1,2")])
def test_a_text_of_another_type_is_refused(type_, text):
    with pytest.raises(MarginsError, match=f"given, {re.escape(type_)} expected"):
        parameters.parse({"p": parameters.Parameter("p", type_, None, "")}, {"p": text}, "amm/toy")


def test_a_slider_shows_the_first_figure_and_knows_the_others(shell):
    page, _ = run(shell, DECLARED)
    figures = {label: plt.figure(figsize=(1, 1)) for label in ("1", '2 "more" | 3')}
    with capture_output() as captured:
        page.slider(figures, "fig-a", "factor <of>", "What & why", 'a "curve"')
    html = captured.outputs[0].data["text/html"]
    images = re.findall(
        r'<img style="max-width: 100%" src="data:image/png;base64,[\w+/=]+" alt="a &quot;curve&quot;" '
        r'data-shown="([^"]+)" (hidden)?>',
        html,
    )
    assert images == [("1", ""), ("2 &quot;more&quot; | 3", "hidden")]
    assert 'max="1" value="0"' in html
    assert "factor &lt;of&gt;" in html and "<output>1</output>" in html and "What &amp; why" in html
    assert not plt.get_fignums()
