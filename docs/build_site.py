"""Write the pages of the site to build/docs, from which zensical builds it (`make docs`).

The site has the pages of docs/, those at the top of the repository, the notebooks of examples/, and a page per command.
Links in the sources are relative paths to files, which work on the code host. Here a link to README.md or another page
leads to the page of the site, and a link to any other file to a page that shows the file. The site needs no other host.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import command_pages
import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build/docs"
PAGES = {"README.md": "overview.md", "SLURM.md": "slurm.md", "CONTRIBUTING.md": "contributing.md",
         "CHANGELOG.md": "changelog.md"}  # fmt: skip
COMMANDS = "<!-- commands -->"  # replaced by the list of commands
IMAGES = (".png", ".svg")  # copied, and linked as they are
NOT_IN_NAV = ("source/*", "commands/shards-build-*.md")  # linked from other pages
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?=(#[^)\s]*)?\))")


def main() -> None:
    """Write the pages. Raises SystemExit if a link leads to no file, or if `nav` and the pages differ."""
    pages = site()
    if problems := [*links_to_nowhere(sources_of_pages()), *wrong_in_nav(set(pages))]:
        raise SystemExit("\n".join(f"error: {problem}" for problem in problems))
    shutil.rmtree(OUT, ignore_errors=True)
    for page, text in pages.items():
        (OUT / page).parent.mkdir(parents=True, exist_ok=True)
        (OUT / page).write_text(text, encoding="utf-8")
    for image in sorted((ROOT / "docs/images").glob("*")):
        (OUT / "images").mkdir(exist_ok=True)
        shutil.copy(image, OUT / "images")


def site() -> dict[str, str]:
    """Return the text of each page by its path in the site."""
    sources = sources_of_pages()
    texts = {source: read(source) for source in sources}
    linked = {path for source, text in texts.items() for path in files_linked(text, source) if path not in sources}
    linked = {path for path in linked if not path.endswith(IMAGES)}
    pages = {page: with_links(texts[source], source, sources) for source, page in sources.items()}
    pages |= {f"source/{path}.md": f"---\nsearch: {{exclude: true}}\n---\n{shown(path)}" for path in sorted(linked)}
    if COMMANDS in pages.get("commands.md", ""):
        pages["commands.md"] = pages["commands.md"].replace(COMMANDS, command_pages.listing())
        pages |= {f"commands/{name}": text for name, text in command_pages.pages().items()}
    return pages


def sources_of_pages() -> dict[str, str]:
    """Return the page of each file that is a page of the site. Paths are relative to the repository and to the site."""
    found = {name: page for name, page in PAGES.items() if (ROOT / name).is_file()}
    found |= {f"docs/{file.name}": file.name for file in sorted(ROOT.glob("docs/*.md"))}
    return found | {
        f"examples/{file.name}": f"notebooks/{file.stem}.md" for file in sorted(ROOT.glob("examples/*.ipynb"))
    }


def links_to_nowhere(sources: Iterable[str]) -> Iterator[str]:
    """Yield the links to files that do not exist; zensical checks anchors."""
    for source in sources:
        for found in LINK.finditer(read(source)):
            if not (ROOT / _in_repository(found["path"], source)).is_file():
                yield f"{source}: link to {found['path']}, which does not exist. Fix: correct it."


def wrong_in_nav(pages: set[str]) -> Iterator[str]:
    """Yield the pages that `nav` lacks, and those in it that do not exist."""
    listed = set(_pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    for page in sorted(pages - listed):
        if not any(fnmatch(page, name) for name in NOT_IN_NAV):
            yield f"mkdocs.yml: nav lacks {page}. Fix: add it."
    for page in sorted(listed - pages):
        yield f"mkdocs.yml: nav has {page}, which does not exist. Fix: remove it."


def _pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages_of(item)


def files_linked(text: str, source: str) -> Iterator[str]:
    """Yield the files of the repository to which a page links."""
    for found in LINK.finditer(text):
        path = _in_repository(found["path"], source)
        if (ROOT / path).is_file():
            yield path


def with_links(text: str, source: str, sources: dict[str, str]) -> str:
    """Convert links to files to links to pages."""

    def target(found: re.Match[str]) -> str:
        path = _in_repository(found["path"], source)
        if not (ROOT / path).is_file():
            return found["path"]
        if path.endswith(IMAGES):
            return os.path.relpath(path.removeprefix("docs/"), Path(sources[source]).parent)
        return os.path.relpath(sources.get(path) or f"source/{path}.md", Path(sources[source]).parent)

    return LINK.sub(target, text)


def _in_repository(link: str, source: str) -> str:
    return os.path.normpath(Path(source).parent / link)


def read(path: str) -> str:
    """Return a file as Markdown: a notebook cell by cell."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells) + "\n"


def shown(path: str) -> str:
    """Return a file that is no page of the site as a page: Markdown unchanged, any other file as code."""
    text = read(path)
    return text if path.endswith(".md") else f"# {path}\n\n````{Path(path).suffix[1:]}\n{text}\n````\n"


if __name__ == "__main__":
    main()
