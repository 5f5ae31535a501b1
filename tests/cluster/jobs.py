"""Submit pretraining jobs to the test cluster as a user does, inject faults, and read the run's files."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from cluster.slurm import Cluster, until
from distributed.launch import ROOT, environment
from distributed.runs import SETTINGS, metrics

from simfle.slurm import events

# 24 samples: 4, 3 and 2 nodes split them equally, and as many streams let each node read only its own shards.
BATCH = ["train.global_batch=24", "data.canonical_streams=12", "train.log_sample_ids=true", "train.checkpoint_every=10"]


class Job:
    """A submitted job: its number, run folder and cluster."""

    def __init__(self, slurm: Cluster, number: str, run: Path) -> None:
        self.slurm, self.number, self.run = slurm, number, run

    @property
    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    @property
    def nodes(self) -> list[str]:
        """Return its nodes; none while it is pending."""
        listed = self.slurm.job(self.number)["NodeList"]
        return self.slurm.call("scontrol", "show", "hostnames", listed).split()

    @property
    def starts(self) -> int:
        return sum(event["event"] == "started" for event in events.events(self.run))

    @property
    def ends(self) -> list[dict[str, Any]]:
        return [event for event in events.events(self.run) if event["event"] == "ended"]

    def step(self) -> int:
        return max((line["step"] for line in metrics(self.run)), default=0)

    def wait_step(self, step: int, starts: int = 1, seconds: float = 180) -> None:
        """Wait until start number `starts` has logged `step`."""
        until(lambda: self.starts >= starts and self.step() >= step, seconds, self.tell)

    def wait_end(self, state: str = "COMPLETED", seconds: float = 240) -> None:
        until(lambda: self.state == state, seconds, self.tell)

    def rank(self, rank: int) -> psutil.Process:
        """Return the running process of a rank, found by its Slurm environment."""

        def found() -> psutil.Process | None:
            wanted = (str(self.slurm.folder / "slurm.conf"), self.number, str(rank))
            for process in psutil.process_iter():
                try:
                    own = process.environ() if process.name().startswith("python") else {}
                except psutil.Error:
                    continue
                if (own.get("SLURM_CONF"), own.get("SLURM_JOB_ID"), own.get("SLURM_PROCID")) == wanted:
                    return process if "submitit" in " ".join(process.cmdline()) else None
            return None

        return until(found, 60, self.tell)

    def batch_shell(self) -> psutil.Process:
        """Return the process of the submission script."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                own = process.environ() if "slurm_script" in " ".join(process.cmdline()) else {}
                if own.get("SLURM_JOB_ID") == self.number:
                    return process
        raise AssertionError(self.tell())

    def log(self) -> str:
        (file,) = self.run.glob(f"slurm/*/{self.number}_0_log.out")
        return file.read_text()

    def tell(self) -> str:
        logs = "".join(f"{file.name}:\n{file.read_text()[-1500:]}" for file in self.run.glob("slurm/*/*.out"))
        return f"{self.state}\n{events.events(self.run)}\nstep {self.step()}\n{logs}"


def submit(slurm: Cluster, faces: Path, run: Path, *words: str, nodes: int = 4) -> Job:
    """Run `launchers/slurm_pretrain.py` on CPU nodes; return the job number."""
    output = launch(slurm, faces, run, *words, nodes=nodes)
    (line,) = [line for line in output.splitlines() if line.startswith("job ")]
    return Job(slurm, line.split()[1].rstrip(":"), run)


def launch(slurm: Cluster, faces: Path, run: Path, *words: str, nodes: int = 4, code: int = 0) -> str:
    command = [sys.executable, "launchers/slurm_pretrain.py", "configs/pretrain/faces_cpu.yaml"]
    command += ["--cluster", "configs/cluster/cpu.yaml", "--nodes", str(nodes)]
    command += [*SETTINGS, *BATCH, f"data.shards=[{faces}]", f"train.run_dir={run}", *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**slurm.environment),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
