"""What mkdocs is told beyond mkdocs.yml: the pages at the top of the repository, and links to its files.

A link is written as it works on the code host: relative, to the file. Here a link to README.md and the like goes to its
page, and one to any other file of the repository to a page that shows the file, so that the site needs no other host.
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
    """Add the pages of the top, and those of files that pages link to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    linked = {path for file in files.documentation_pages() for path in _files_linked(file)}
    for path in sorted(linked):
        files.append(File.generated(config, f"source/{path}.md", content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site needs them."""
    return LINK.sub(lambda found: _target(found["path"], page.file.src_uri), markdown)


def _files_linked(file: File) -> Iterator[str]:
    """Files of the repository, by their path in it, that a page links to and that are no pages themselves."""
    for found in LINK.finditer(file.content_string):
        path = _in_repository(found["path"], file.src_uri)
        if path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
            yield path


def _target(link: str, page: str) -> str:
    """A relative link of a page as the site has it; one that leads nowhere stays, and mkdocs refuses it."""
    path = _in_repository(link, page)
    if page.startswith("source/") or not (ROOT / path).is_file():
        return link
    target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md")
    return os.path.relpath(target, Path("source", page).parent) if "/" in page else target


def _in_repository(link: str, page: str) -> str:
    """A link's path in the repository. page: one of the site, or the path of a file in the repository."""
    above = "" if page in PAGES.values() else Path(page).parent if "/" in page else "docs"
    return os.path.normpath(Path(above, link))


def _shown(path: str) -> str:
    """A file as a page: Markdown as it is, a notebook cell by cell, anything else as code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        text = "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
        text = LINK.sub(lambda found: _target(found["path"], path), text)
    elif not path.endswith(".md"):
        text = f"# {path}\n\n````{Path(path).suffix[1:]}\n{text}\n````\n"
    return f"---\nsearch: {{exclude: true}}\n---\n{text}"
