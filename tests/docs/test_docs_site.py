"""The site is built strictly and is self-contained: no font, script or image from another host."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


def make_docs(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands of `make docs` in a copy of the sources."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = f"{sys.executable} docs/build_site.py && {sys.executable} -m zensical build --strict"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=own, check=False)


def report(done: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("docs")
    for name in ("mkdocs.yml", "README.md", "SLURM.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("docs", "examples", "simfle", "shards", "tests", "tools", "configs", "launchers"):
        (copy / name).symlink_to(ROOT / name)
    (copy / "docs").unlink()
    shutil.copytree(ROOT / "docs", copy / "docs")
    done = make_docs(copy)
    assert done.returncode == 0, report(done)
    return copy / "site"


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


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
    start = (site / "index.html").read_text()
    assert 'href="overview.html"' in start  # written as ../README.md
    assert 'href="notebooks/few_labels.html"' in start
    overview = (site / "overview.html").read_text()
    assert 'href="shards.html"' in overview  # written as docs/shards.md
    assert 'href="slurm.html"' in overview  # SLURM.md, beside the README
    evaluation = (site / "evaluation.html").read_text()
    assert 'href="source/simfle/eval/config.py.html"' in evaluation  # a repository file, displayed on a page
    assert "class FinetuneConfig" in text_of(site / "source/simfle/eval/config.py.html")


def test_each_command_has_a_page_with_its_help(site: Path) -> None:
    pages = {page.stem for page in site.glob("commands/*.html")}
    assert {"pretrain", "shards-verify", "slurm-eval", "bench-gpu", "shards-build", "shards-build-rafdb"} <= pages
    shown = text_of(site / "commands/shards-verify.html")
    for words in ("simfle shards verify [OPTIONS] {SHARDS}", "--decode <float>", "0 to 1 [default: 1.0]"):
        assert words in shown
    assert "--help" not in shown
    listed = re.findall(r'href="commands/([\w-]+)\.html"', (site / "commands.html").read_text())
    assert pages - set(listed) == {page for page in pages if page.startswith("shards-build-")}
    sources = re.findall(r'href="shards-build-([\w-]+)\.html"', (site / "commands/shards-build.html").read_text())
    assert pages - set(listed) == {f"shards-build-{name}" for name in sources}


def test_the_search_finds_pages_but_not_sources(site: Path) -> None:
    found = {item["location"] for item in json.loads((site / "search.json").read_text())["items"]}
    assert {"glossary.html", "commands/plan.html", "notebooks/cluster.html"} <= {name.split("#")[0] for name in found}
    assert not [name for name in found if name.startswith("source/")]
    assert not [name for name in found if name.startswith("commands/shards-build-rafdb")]  # options of every source


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("gone.md", "docs/shards.md: link to gone.md, which does not exist"),
        ("../simfle/no_such.py", "docs/shards.md: link to ../simfle/no_such.py, which does not exist"),
        ("#no-such-part", "anchor does not exist"),
        ("../README.md#no-such-part", "anchor does not exist"),
        ("../README.md", "nav lacks spare.md"),
        ("../README.md", "nav has gone.md"),
        ("../README.md#a-page", ""),
    ],
)
def test_links_to_nowhere_are_errors(link: str, problem: str, tmp_path: Path) -> None:
    """Build a page with a link as `make docs` does."""
    (tmp_path / "docs").mkdir()
    for name in ("build_site.py", "command_pages.py"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "README.md").write_text("# A page\n")
    (tmp_path / "docs/shards.md").write_text(f"# Shards\n\n[link]({link})\n")
    nav = "nav: [overview.md, shards.md]\n\n"
    if problem.startswith("nav lacks"):
        (tmp_path / "docs/spare.md").write_text("# Spare\n")
    elif problem.startswith("nav has"):
        nav = "nav: [overview.md, shards.md, gone.md]\n\n"
    config = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"(?m)^nav:.*?(?=^\w)", nav, config, flags=re.DOTALL))
    done = make_docs(tmp_path)
    assert (done.returncode != 0) == bool(problem), report(done)
    assert problem in report(done)
