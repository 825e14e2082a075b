"""What a notebook page shares: its strict parameters, the badges at its top, numbered tables, computed prose.

Each display comes as MyST for the site (`text/markdown`) and as HTML for Jupyter and Colab. The module has an
underscore because `margins.page` is the function.
"""

import base64
import io
import platform
import re
import shlex
from collections.abc import Callable, Mapping
from datetime import date
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING

from IPython import get_ipython
from IPython.display import display

from margins import parameters
from margins.errors import MarginsError
from margins.records import SCALES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Format = str | Callable[[object], str]


class Page:
    """What `margins.page` returns: `data` (the name to load, or None), `parameters` (name -> value), and displays."""

    def __init__(self, name: str, data: str | None, values: dict[str, parameters.Value]) -> None:
        self.name, self.data, self.parameters = name, data, values

    def at_least(self, **bounds: float) -> None:
        """Raise MarginsError where a parameter is below its bound: `page.at_least(points=1, epochs=0)`."""
        for name, bound in bounds.items():
            if not self.parameters[name] >= bound:
                raise MarginsError(f"parameter {name}: {self.parameters[name]} given, {bound} or more expected")

    def markdown(self, text: str) -> None:
        """Display a sentence or paragraph that was computed, as MyST."""
        display({"text/markdown": text, "text/plain": text}, raw=True)

    def verdicts(self, *beginnings: str) -> None:
        """Display what the papers claim and what became of it, for the claims whose ids begin so, from the records.

        The verdict is the one at the largest scale that was run. Raises MarginsError where no id begins so.
        """
        from margins import claimpage, scoreboard
        from margins.claims import ledger
        from margins.intervals import LEVEL

        claims = ledger()
        for beginning in beginnings:
            if not any(claim.id.startswith(beginning) for claim in claims):
                raise MarginsError(f"{beginning!r} given, but no claim's id begins so; ids are such as {claims[0].id}")
        chosen = [claim for claim in claims if claim.id.startswith(beginnings)]
        groups = {claim.page for claim in chosen}
        # Holm's correction needs all claims of a group.
        found = scoreboard.decide([claim for claim in claims if claim.page in groups])
        lines, items = [], ""
        for claim in chosen:
            verdict = found[claim.id].largest
            says, scale = claimpage.text(claim.says), "" if verdict.outcome == "not run" else f" ({verdict.scale})"
            p = f" p = {verdict.p_holm:.2g}." if verdict.p_holm is not None and verdict.p_holm < LEVEL else ""
            lines.append(f"- {claimpage.badge(verdict)} {says}{p} {{ref}}`evidence <claim-{claim.id}>`")
            items += f"<li><b>{verdict.outcome}</b>{scale}: {escape(claim.says)}{p}</li>"
        text = "\n".join(lines)
        display({"text/markdown": text, "text/html": f"<ul>{items}</ul>", "text/plain": text}, raw=True)

    def slider(self, frames: "Mapping[str, Figure]", name: str, label: str, caption: str, alt: str) -> None:
        """Display figures of one size as one, with a slider that goes from one to the next; needs no running kernel.

        frames: what the slider says -> the figure, which is closed. label: what the slider is about; alt: what is seen,
        for who does not see it. Where scripts are off, the first one is shown.
        """
        import matplotlib.pyplot as plt

        images = ""
        for shown, figure in frames.items():
            file = io.BytesIO()
            figure.savefig(file, format="png")
            plt.close(figure)
            data, hidden = base64.b64encode(file.getvalue()).decode(), "hidden" if images else ""
            images += f'<img style="max-width: 100%" src="data:image/png;base64,{data}" alt="{escape(alt)}" '
            images += f'data-shown="{escape(shown)}" {hidden}>'
        move = (
            "const f = this.closest('figure');"
            "f.querySelectorAll('img').forEach((one, i) => { one.hidden = i != this.value });"
            "f.querySelector('output').value = f.querySelector('img:not([hidden])').dataset.shown"
        )
        html = (
            f'<figure id="{name}" class="align-default">{images}'
            f'<p><label>{escape(label)} <input type="range" style="width: 50%" '
            f'min="0" max="{len(frames) - 1}" value="0" step="1" '
            f'oninput="{move}"></label> '
            f"<output>{escape(next(iter(frames)))}</output></p><figcaption><p>{escape(caption)}</p></figcaption></figure>"
        )
        display({"text/html": html, "text/plain": f"{caption} ({alt})"}, raw=True)

    def table(
        self, frame: "pd.DataFrame", name: str, caption: str, formats: Mapping[str, Format] | None = None
    ) -> None:
        """Display `frame` as a numbered table that any page can refer to by {numref}`name`.

        `name` is tab-..., in lower case; `caption` one line of MyST. `formats` gives columns a format string such as
        "{:.2f}" or a function of the cell; other cells are shown by `str`, missing values as a dash. An index that is
        not just numbered becomes the first columns. Raises MarginsError for another name or an unknown column.
        """
        import pandas as pd

        if not re.fullmatch(r"tab-[a-z0-9-]+", name):
            raise MarginsError(f"name: {name!r} given, expected tab- with lower-case letters, digits and hyphens")
        if not isinstance(frame.index, pd.RangeIndex):
            frame = frame.reset_index()
        if missing := sorted(set(formats or {}) - set(frame.columns)):
            raise MarginsError(f"formats: no column {', '.join(map(repr, missing))}; there are {list(frame.columns)}")
        right = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
        head = [str(column) for column in frame.columns]
        rows = [
            [_cell(value, (formats or {}).get(column)) for column, value in zip(frame.columns, row, strict=True)]
            for row in frame.itertuples(index=False, name=None)
        ]
        lines = [head, ["---:" if numeric else ":---" for numeric in right], *rows]
        body = "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", c) for c in line) + " |" for line in lines)
        html = "".join(_html_row("td", row, right) for row in rows)
        display(
            {
                # a fence of tildes, since a caption may hold backticks
                "text/markdown": f"~~~{{table}} {caption}\n:name: {name}\n\n{body}\n~~~",
                "text/html": f"<table><caption>{escape(caption)}</caption><thead>{_html_row('th', head, right)}</thead>"
                f"<tbody>{html}</tbody></table>",
                "text/plain": f"{caption}\n{body}",
            },
            raw=True,
        )


def page(name: str, *, scale: str | None = None, records: str | None = None, data: str | None = None) -> Page:
    """Check the parameters of the page `name` (as "amm/toy"), show its badges and return its `Page`.

    Called in the cell after the parameters cell (and papermill's). `scale` is the scale of what the page runs live with
    its default parameters, `records` that of the records it shows; `data` the data set that the live part asks for: the
    result's `data` is that name, or of a stand-in where it cannot be had, which the page says. Raises MarginsError,
    with all declared parameters, for an unknown name or a value of another type.
    """
    shell = get_ipython()
    if shell is None:
        raise MarginsError("margins.page works in a notebook, after its parameters cell")
    declared, injected = _history(shell.user_ns["In"], name)
    values = {key: shell.user_ns.get(key, parameter.default) for key, parameter in declared.items()}
    parameters.check(declared, {**dict.fromkeys(injected), **values}, name)
    for argument, given in (("scale", scale), ("records", records)):
        if given is not None and given not in SCALES:
            raise MarginsError(f"{argument}: {given!r} given, one of {', '.join(SCALES)} expected")
    live = data
    if data is not None:
        from margins import datasets

        live = datasets.live(data)
    changed = [
        f"`{key} = {value!r}` (default `{declared[key].default!r}`)"
        for key, value in values.items()
        if value != declared[key].default
    ]
    facts = {
        "Live scale": f"{scale}, with changed parameters" if scale and changed else scale,
        "Live data": live,
        "Records": records,
        "Device": device(),
        "torch": version("torch"),
        "Run on": str(date.today()),
    }
    _show(
        {key: value for key, value in facts.items() if value is not None},
        data,
        ", ".join(changed) or "all at their defaults",
        _commands(name, declared),
    )
    return Page(name, live, values)


def _history(cells: list[str], name: str) -> tuple[dict[str, parameters.Parameter], list[str]]:
    """Return what the first executed parameters cell declares, and the names that papermill's cells set."""
    declared: dict[str, parameters.Parameter] = {}
    injected: list[str] = []
    for cell in cells:
        if re.match(r"# (Injected )?[Pp]arameters\b", cell):
            injected += re.findall(r"^([A-Za-z_]\w*) *=", cell, flags=re.MULTILINE)
        if not declared:
            try:
                declared = parameters.read(cell)
            except MarginsError:
                continue
    if not declared:
        raise MarginsError(
            f"{name}: no parameters cell was executed before margins.page: one with lines "
            f"`name: type = literal  # meaning and unit` only, types {', '.join(parameters.TYPES)}"
        )
    return declared, injected


def _commands(name: str, declared: dict[str, parameters.Parameter]) -> str:
    """Return the commands that rerun the page, with a parameter of its own: the first number, doubled."""
    sample = next((p for p in declared.values() if p.type in ("int", "float")), next(iter(declared.values())))
    value = sample.default * 2 or 1 if sample.type in ("int", "float") else shlex.quote(str(sample.default))
    set_ = f"-p {sample.name} {value}"
    return f"margins run {name} {set_}\npapermill book/{name}.ipynb out.ipynb {set_}"


def device() -> str:
    """Return the device that torch computes on by default, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}, threads: {torch.get_num_threads()}"


def _show(facts: dict[str, str], data: str | None, changed: str, commands: str) -> None:
    """Display the badges, the warning about a stand-in for `data`, and the box with the commands."""
    standin = (
        f"This page asks for the data set `{data}`, which cannot be had here: what it runs live was computed on "
        f"`{facts['Live data']}` in its place. Recorded runs are of the data that they name."
        if data != facts.get("Live data")
        else ""
    )
    badges = " · ".join(f"**{key}** `{value}`" for key, value in facts.items()) + f" · **Parameters** {changed}"
    warning = f":::{{admonition}} Not the data asked for\n:class: warning\n\n{standin}\n:::\n\n" if standin else ""
    box = f":::{{admonition}} Rerun this page\n:class: tip dropdown\n\n```bash\n{commands}\n```\n:::"
    html = f"<p><b>Not the data asked for.</b> {_html(standin)}</p>" if standin else ""
    html += f"<p>{_html(badges)}</p><details><summary>Rerun this page</summary><pre>{escape(commands)}</pre></details>"
    text = f"{standin}\n{badges}\n{commands}".strip()
    display(
        {"text/markdown": f"{warning}{badges}\n\n{box}", "text/html": html, "text/plain": text},
        metadata={"margins": facts},  # `margins book` reads this for its status page
        raw=True,
    )


def _html(text: str) -> str:
    """Return the HTML of a line of Markdown that has bold and code only."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text)))


def _cell(value: object, form: Format | None) -> str:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    text = str(value) if form is None else form.format(value) if isinstance(form, str) else form(value)
    return re.sub(r"\s*\n\s*", " ", text)


def _html_row(tag: str, cells: list[str], right: list[bool]) -> str:
    aligned = zip(cells, right, strict=True)
    styled = (f'<{tag} style="text-align:{"right" if r else "left"}">{escape(cell)}</{tag}>' for cell, r in aligned)
    return f"<tr>{''.join(styled)}</tr>"
