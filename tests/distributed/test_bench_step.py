"""tools/bench_step.py as a user starts it: its own process group, DeepSpeed, every variant once."""

import json
import subprocess
import sys
from pathlib import Path

from distributed.launch import ROOT, environment
from distributed.runs import SETTINGS

from simfle.plan.hardware import load_constants


def test_step_bench(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--batch", "2", "--rounds", "1", "--matmul-size", "64", "--out", str(out)]
    words = [sys.executable, "tools/bench_step.py", *SETTINGS, *options]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert set(result["ways"]) == {"plain", "ours", "backbone", "masked autoencoder", "matrix product"}
    assert result["utilization"] > 0
    assert result["operations_per_image"] > 3 * result["ways"]["backbone"]["items"]
    assert load_constants([out])["cpu.conv"] == result["constants"]["cpu.conv"] > 0
    assert "GFLOP per image" in done.stdout
