"""`simfle doctor --nodes` on a real cluster: two nodes measured together, results that the planner reads."""

import json
import subprocess
import sys
from pathlib import Path

from cluster.slurm import Cluster
from distributed.launch import ROOT, environment

from simfle.plan.hardware import load_constants


def test_two_nodes_are_measured_together(slurm: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simfle", "doctor", "--nodes", "2", "--cluster", "configs/cluster/cpu.yaml"]
    command += ["--folder", str(tmp_path / "runs"), "--network", "100gb", "--json"]
    own = environment(**slurm.environment)
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    by_name = {each["name"]: each for each in found["findings"]}
    assert by_name["Slurm"]["state"] == "ok"
    assert by_name["accounting"]["state"] == "note"  # this cluster has no accounting
    assert by_name["nodes"]["found"].startswith("2 (n")
    assert by_name["versions"]["found"] == "equal on all nodes"
    measured = found["nodes"]
    assert len(measured["nodes"]) == measured["processes"] == 2
    assert measured["all_reduce_bytes_per_second"] > 1e6
    (file,) = tmp_path.glob("runs/slurm/*-doctor/doctor.json")
    known = load_constants([file])
    assert known.figures["network.latency"].kind == "measured here"
    assert not list(file.parent.glob("trial/*"))
