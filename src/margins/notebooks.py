"""The book's notebooks as files: which there are, and the one form that they are kept in."""

import hashlib
import re
import warnings
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from margins import parameters
from margins.errors import MarginsError

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
#: What a cell may keep of its metadata; editors add much else.
_CELL_METADATA = ("mystnb", "tags")
_INSTALL = """\
# On Colab and Binder: install the package where it is missing.
try:
    import margins
except ImportError:
    %pip install -q git+{url}@{branch}
"""


def contents(root: Path) -> list[str]:
    """Return the entries of `_toc.yml` in order, as "book/amm/toy". Raises MarginsError where one has no file."""

    def walk(node: object) -> list[str]:
        if isinstance(node, list):
            return [entry for item in node for entry in walk(item)]
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [entry for key in ("parts", "chapters", "sections") for entry in walk(node.get(key))]
        return []

    entries = walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    for entry in entries:
        if not any((root / f"{entry}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise MarginsError(f"_toc.yml names {entry}, but neither {entry}.md nor {entry}.ipynb exists")
    return entries


def pages(root: Path) -> dict[str, Path]:
    """Return the notebooks that are pages of the book: name, as "amm/toy", -> path."""
    found = {entry.removeprefix("book/"): root / f"{entry}.ipynb" for entry in contents(root)}
    return {name: path for name, path in found.items() if path.is_file()}


def find(root: Path, name: str) -> Path:
    """Return the notebook of page `name`. Raises MarginsError, with all names, where there is none."""
    known = pages(root)
    if name not in known:
        raise MarginsError(f"page {name!r} does not exist; the pages are {', '.join(known)}")
    return known[name]


def read(path: Path) -> NotebookNode:
    """Return the notebook at `path` in the current format. Raises MarginsError where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ids that are missing or not unique, which `tidy` mends
            return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (OSError, ValueError, AttributeError) as error:
        raise MarginsError(f"{path}: not a readable notebook ({error})") from None


def declared(notebook: NotebookNode, name: str) -> dict[str, parameters.Parameter]:
    """Return the parameters of page `name`. Raises MarginsError where its parameters cell is not in the strict form."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise MarginsError(f"{name}: {len(cells)} code cells have the tag 'parameters', one expected")
    try:
        found = parameters.read(cells[0], strict=True)
    except MarginsError as error:
        raise MarginsError(f"{name}: {error}") from None
    if not found:
        raise MarginsError(f"{name}: the parameters cell declares nothing")
    calls = re.findall(r"margins\.page\(\s*[\"']([^\"']*)[\"']", "\n".join(cell.source for cell in code))
    if calls != [name]:
        raise MarginsError(f"{name}: expected one call margins.page({name!r}, ...), found {calls or 'none'}")
    parameters.check(found, notebook.metadata.get("margins", {}).get("quick", {}), f"{name}, metadata margins.quick")
    return found


def install_cell(root: Path) -> str:
    """Return the source of the first code cell; the address is the one in `_config.yml`."""
    repository = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return _INSTALL.format(url=repository["url"], branch=repository["branch"]).rstrip("\n")


def tidied(notebook: NotebookNode, install: str) -> NotebookNode:
    """Bring a notebook into the book's form: no outputs, known metadata, ids, and the cell that installs."""
    notebook.nbformat_minor = 5
    kept = {"margins": notebook.metadata["margins"]} if "margins" in notebook.metadata else {}
    notebook.metadata = nbformat.from_dict({**_METADATA, **kept})
    cells = [cell for cell in notebook.cells if cell.source.strip() and not _installs(cell)]
    at = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    first = nbformat.v4.new_code_cell(install, id="install", metadata={"tags": ["remove-cell"]})
    notebook.cells = [*cells[:at], first, *cells[at:]]
    seen: set[str] = set()
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        kept = {key: cell.metadata[key] for key in _CELL_METADATA if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.get("id") in {None, *seen}:
            cell.id = hashlib.sha256(f"{len(seen)} {cell.source}".encode()).hexdigest()[:8]
        seen.add(cell.id)
    return notebook


def tidy(root: Path, *, check: bool = False) -> list[str]:
    """Bring every notebook under `book/` into form; return what was out of form (with `check`, only that).

    A parameters cell that breaks the rules cannot be mended here: it is returned as a line too, in both modes.
    """
    install, out = install_cell(root), []
    for path in sorted((root / "book").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        name = path.relative_to(root / "book").with_suffix("").as_posix()
        notebook = tidied(read(path), install)
        new = nbformat.writes(notebook) + "\n"
        if new != path.read_text(encoding="utf-8"):
            out.append(f"book/{name}.ipynb: {'out of form, mend it with `margins tidy`' if check else 'tidied'}")
            if not check:
                path.write_text(new, encoding="utf-8")
        try:
            declared(notebook, name)
        except MarginsError as error:
            out.append(f"book/{name}.ipynb: {error}")
    return out


def _installs(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and "import margins" in cell.source and "%pip install" in cell.source
