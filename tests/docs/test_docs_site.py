"""The site is built strictly and is self-contained: no font, script or image from another host."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without --quiet, which would exclude warnings from the count that makes them errors.
MKDOCS = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file"]
# Fetched by a browser without a click; <a> and <link rel=canonical> are not.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Loads(HTMLParser):
    """Collect the addresses that a page makes a browser fetch, and the ids in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADS and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(given.get(LOADS[tag]) or "")
        self.addresses += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style") or "")


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    own = {"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
    command = [*MKDOCS, str(config), "--site-dir", str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=own, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {"index.html", "slurm.html", "configuration.html", "404.html"} <= {page.name for page in pages}
    for page in pages:
        found = Loads(page).addresses
        assert found, page
        assert not [address for address in found if re.match(r"(?:\w+:)?//", address)], page
    for sheet in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.DOTALL)
        assert not re.findall(r"(?:url\(['\"]?|@import\s*['\"])(?:https?:)?//", text), sheet


def test_links_of_the_repository_are_links_of_the_site(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert 'href="shards.html"' in index  # written as docs/shards.md
    assert 'href="slurm.html"' in index  # SLURM.md, beside the README
    evaluation = (site / "evaluation.html").read_text()
    assert 'href="source/simfle/eval/config.py.html"' in evaluation  # a repository file, displayed on a page
    shown = (site / "source/simfle/eval/config.py.html").read_text()
    assert "class FinetuneConfig" in re.sub(r"<[^>]+>", "", shown)


def test_links_to_nowhere_are_errors(tmp_path: Path) -> None:
    """Build a page with wrong links as `make docs` does."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/hooks.py", tmp_path / "docs")
    for name in ("README.md", "SLURM.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# A page\n")
    links = "[page](gone.md) [part](#no-such-part) [file](../simfle/no_such.py) [good](../README.md)"
    (tmp_path / "docs/shards.md").write_text(f"# Shards\n\n{links}\n")
    config = re.sub(r"(?m)^nav:.*?(?=^\w)", "", (ROOT / "mkdocs.yml").read_text(), flags=re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    for wrong in ("gone.md", "#no-such-part", "../simfle/no_such.py"):
        assert f"'{wrong}'" in done.stderr, done.stderr
    assert "README" not in done.stderr
