"""Hooks of mkdocs: add the pages at the top of the repository, and convert links to its files.

Links in the sources are relative paths to files, which work on the code host. Here a link to README.md or another page
leads to the page of the site, and a link to any other file to a page that shows the file. The site needs no other host.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "SLURM.md": "slurm.md", "CONTRIBUTING.md": "contributing.md",
         "CHANGELOG.md": "changelog.md"}  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?=(#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top of the repository, and pages of linked files."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    linked = {path for file in files.documentation_pages() for path in _files_linked(file)}
    for path in sorted(linked):
        files.append(File.generated(config, f"source/{path}.md", content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Convert the links of a page."""
    return LINK.sub(lambda found: _target(found["path"], page.file.src_uri), markdown)


def _files_linked(file: File) -> Iterator[str]:
    """Yield the paths, relative to the repository, of linked files that are not pages."""
    for found in LINK.finditer(file.content_string):
        path = _in_repository(found["path"], file.src_uri)
        if path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
            yield path


def _target(link: str, page: str) -> str:
    """Convert a relative link. A broken link is returned unchanged, and mkdocs reports it."""
    path = _in_repository(link, page)
    if page.startswith("source/") or not (ROOT / path).is_file():
        return link
    target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md")
    return os.path.relpath(target, Path("source", page).parent) if "/" in page else target


def _in_repository(link: str, page: str) -> str:
    """Return a link's path in the repository. page: a page of the site, or the path of a file in the repository."""
    above = "" if page in PAGES.values() else Path(page).parent if "/" in page else "docs"
    return os.path.normpath(Path(above, link))


def _shown(path: str) -> str:
    """Return a file as a page: Markdown unchanged, a notebook cell by cell, any other file as code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        text = "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
        text = LINK.sub(lambda found: _target(found["path"], path), text)
    elif not path.endswith(".md"):
        text = f"# {path}\n\n````{Path(path).suffix[1:]}\n{text}\n````\n"
    return f"---\nsearch: {{exclude: true}}\n---\n{text}"
