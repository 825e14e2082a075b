"""Turn the staged book into a site with jupyter-book, and check that the site is whole."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src")}


def render(stage: Path, site: Path, log: Path) -> list[str]:
    """Render `stage` from scratch and put the result in the place of `site`; return what is wrong with it.

    Always from scratch: an incremental build would not repeat the warnings of a page that it does not read again, and
    would show old titles in the other pages' navigation. With anything wrong there is no `site` afterwards. The output
    of jupyter-book goes to the file `log`, and the part of it that matters into the answer.
    """
    work = site.with_name("rendering")
    for folder in (work, site):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(stage)]
    options = ["--path-output", str(work), "-W", "--keep-going"]
    done = subprocess.run(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    log.write_text(done.stdout, encoding="utf-8")
    html = work / "_build" / "html"
    if done.returncode or not (html / "index.html").is_file():
        text = re.sub("\x1b\\[[0-9;]*m", "", done.stdout)
        said = [line for line in text.splitlines() if re.search("warning|error|exception", line, re.IGNORECASE)]
        return [*said[:40], f"jupyter-book failed; all that it said is in {log}"]
    if problems := check_site(html):
        return problems
    os.replace(html, site)
    shutil.rmtree(work)
    return []


class _Page(HTMLParser):
    """What one HTML page defines (anchors), refers to, loads from elsewhere, and shows as an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.remote: set[str] = set()
        self.errors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        classes = set(given.get("class", "").split())
        if "output" in classes:
            self.errors |= classes & {"traceback", "stderr"}
        for key in ("href", "src"):
            if given.get(key):
                address = urlsplit(given[key])
                if not address.scheme and not address.netloc:
                    self.links.add(given[key])
                elif (tag, key) in _LOADS and address.scheme != "data" and given.get("rel") != "canonical":
                    self.remote.add(given[key])


def check_site(html: Path) -> list[str]:
    """Return what is wrong in the folder of HTML pages: dead links, error outputs, files loaded from elsewhere."""
    found = [path.resolve() for path in sorted(html.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in found}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(html.resolve()).as_posix()
        problems += [f"{name}: shows an output of kind {kind}" for kind in sorted(page.errors)]
        problems += [f"{name}: loads {address}, missing without a network" for address in sorted(page.remote)]
        for link in sorted(page.links):
            address = urlsplit(link)
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.is_file():
                problems.append(f"{name}: {link} leads nowhere")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                problems.append(f"{name}: {link}: no such anchor")
    return problems
