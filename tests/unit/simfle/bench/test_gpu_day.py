"""The GPU benchmark, rehearsed on the CPU: parts run, are kept, and resume."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simfle.bench.gpu_day import Done, GpuDayPart, constants, ended, page, parts, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def test_a_rehearsal_measures_and_goes_on(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "tools/gpu_day.py",
        "--rehearse",
        "--out",
        str(tmp_path),
        "--only",
        "shards,step-4,stages,plan",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 parts succeeded" in done.stdout, done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["ways"]["step-4"]["ours"]["median"] > 0
    assert found["constants"]["cpu.conv"] > 0
    assert found["ways"]["stages"].keys() == {"ours", "ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"}
    assert "roofline: convolutions" in (tmp_path / "plan.log").read_text()
    text = (tmp_path / "gpu.md").read_text()
    assert "| step-4 | ours |" in text
    assert re.search(r"\| step-4 \| - \| 0\.\d\d GB \| \d+% \|", text)  # no GPU, whose memory could be measured


def test_parts_are_kept_ended_at_their_limit_and_done_again_where_they_failed(tmp_path: Path) -> None:
    def python(name: str, program: str) -> GpuDayPart:
        return GpuDayPart(name, (sys.executable, "-c", program), figures=False)

    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    good, bad = python("good", f"{count}; print('fine')"), python("bad", f"{count}; raise SystemExit(3)")
    slow = python("slow", "import time; print('began', flush=True); time.sleep(600)")
    for _ in range(2):
        found = run([good, bad], tmp_path, 60, ROOT)
    assert [(done.name, done.code) for done in found] == [("good", 0), ("bad", 3)]
    assert (tmp_path / "count").read_text() == "xxx"  # the good one ran once
    assert run([slow], tmp_path, 1, ROOT)[0].code is None
    assert run([slow], tmp_path, 0, ROOT)[0] == ended(tmp_path, slow)
    text = page("H100", [Done("good", 0, 1.0, ""), Done("slow", None, 9.0, "")], tmp_path, [])
    assert "| good | well | 1.0 |" in text
    assert "| slow | at its limit | 9.0 |" in text


def test_the_page_tells_rates_from_times_and_memory_from_the_plans(tmp_path: Path) -> None:
    step = {"ways": {"ours": {"median": 990.0, "items": 128}}, "planned_memory_bytes": 15.4e9, "memory_bytes": 14.9e9,
            "of_roofline": 0.39}  # fmt: skip
    for name, found in (("step-128", step), ("checkpoint", {"ways": {"copy": {"median": 0.25}}})):
        (tmp_path / f"{name}.figures.json").write_text(json.dumps(found))
    chosen = [GpuDayPart("step-128", ()), GpuDayPart("checkpoint", ()), GpuDayPart("missing", ())]
    lines = page("H100", [], tmp_path, chosen).splitlines()
    assert "| step-128 | ours | 990/s |" in lines
    assert "| checkpoint | copy | 0.25 s |" in lines
    assert lines[-1] == "| step-128 | 14.90 GB | 15.40 GB | 39% |"
    assert not any("planned" in line for line in page("H100", [], tmp_path, chosen[1:]).splitlines())


def test_constants_are_the_best_of_all_batches(tmp_path: Path) -> None:
    for name, value in (("a", 3.0), ("b", 5.0)):
        (tmp_path / f"{name}.figures.json").write_text(json.dumps({"constants": {"h100.conv": value}}))
    assert constants(tmp_path, [GpuDayPart("a", ()), GpuDayPart("b", ()), GpuDayPart("missing", ())]) == {
        "h100.conv": 5.0
    }


def test_a_day_has_all_batches_and_a_rehearsal_no_gpu(tmp_path: Path) -> None:
    day = {part.name: part for part in parts(tmp_path, rehearsal=False)}
    assert {"tests", "loader", "step-32", "step-256", "stages", "train", "checkpoint", "profile"} <= day.keys()
    assert {"compile-32", "graphs-32", "compile-256", "graphs-256"} <= day.keys()
    assert "h200" in {part.name: part for part in parts(tmp_path, rehearsal=False, gpu="h200")}["plan"].command
    assert not any("cuda" in word for part in parts(tmp_path, rehearsal=True) for word in part.command)
