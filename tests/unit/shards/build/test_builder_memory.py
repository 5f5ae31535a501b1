"""Memory of a build: as much for many entries as for a few."""

import json
import os
import sys
from pathlib import Path

import pytest
from helpers.cli_runner import ROOT
from helpers.corpus_fixtures import run

from shards.build.plan import BuildPlan, make_plan
from shards.entry import Entry
from shards.rules import EntryRules

pytestmark = pytest.mark.slow

MOST = int(os.environ.get("SHARDS_MANY", "12000"))
LIMIT = 500  # MB, whatever the number of entries


def figures(count: int, workers: int, folder: Path) -> dict:
    script = Path(__file__).parents[3] / "helpers" / "many_entries.py"
    paths = f"{ROOT}:{ROOT / 'tests'}"
    words = ["env", f"PYTHONPATH={paths}", sys.executable, script, count, workers, folder]
    done = run(*words, timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    few = figures(MOST // 10, 2, tmp_path / "few")
    many = figures(MOST, 2, tmp_path / "many")
    print(json.dumps(many, indent=1))
    assert not many["problems"]
    assert many["samples"] == MOST - -(-MOST // 50)
    for who, most in many["verified MB"].items():
        assert most < LIMIT
        # SQLite caches a plan's pages up to a limit; listing, sorting and rejecting are done outside of memory.
        assert most - few["verified MB"][who] < 60


@pytest.mark.parametrize("alphabet", ["\u9854", "\U0001f642"])
def test_names_that_all_look_alike_are_told_apart(tmp_path: Path, alphabet: str) -> None:
    """In the tar's letters they are all the same."""
    entries = [Entry(alphabet * n + ".jpg", "", b"") for n in range(1, 80)]
    entries += [Entry(alphabet * n + f"/{alphabet}.jpg", "", b"") for n in range(1, 80)]
    make_plan(tmp_path / "plan", entries, EntryRules(), {}, 50)
    plan = BuildPlan(tmp_path / "plan")
    keys = [item.key for shard in plan.shards() for item in plan.entries(shard)]
    plan.close()
    assert len(set(keys)) == len(keys) == len(entries)
