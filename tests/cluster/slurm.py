"""A real Slurm on this machine: munge, slurmctld and several slurmd, in one folder, on free ports."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
BIN = "/usr/sbin:/usr/bin:/sbin:/bin"

CONF = """
ClusterName=simfle
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
# Jobs of two clusters on one machine must not have the same number, which their rendezvous' port is derived from.
FirstJobId={ctld_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=12
MessageTimeout=60
KillWait=8
OverTimeLimit=0
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return the reason why a cluster cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=BIN) is None]
    return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class Cluster:
    """Nodes n1, n2, ... of one machine, and the client programs."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"n{index + 1}" for index in range(nodes)]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._hurrying = threading.Thread(target=self._hurry, daemon=True)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{BIN}"}

    def start(self) -> None:
        self._configure()
        socket_file = self.folder / "munge.sock"
        self._run_daemon("munged", "munged", "--foreground", "--force", f"--socket={socket_file}",
                         f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munge.pid",
                         f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed")  # fmt: skip
        until(socket_file.exists)
        self._run_daemon("slurmctld", "slurmctld", "-D", "-f", self.folder / "slurm.conf")
        for name in self.nodes:
            self.start_node(name)
        self.wait_idle()
        self._hurrying.start()

    def clear(self) -> None:
        """End all jobs and wait for idle nodes."""
        self.call("scancel", "--signal=KILL", "--user=root", check=False)
        self.call("scancel", "--user=root", check=False)
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until all nodes accept jobs."""
        until(
            lambda: all(state == "idle" for state in self.node_states().values()), tell=lambda: str(self.node_states())
        )

    def start_node(self, name: str) -> None:
        self._run_daemon(name, "slurmd", "-D", "-N", name, "-f", self.folder / "slurm.conf")

    def kill_node(self, name: str) -> None:
        """Simulate a power failure: kill the daemon and everything it started at once."""
        daemon = self.daemons.pop(name)
        for process in [*self._of_node(name), psutil.Process(daemon.pid)]:
            with _vanished():
                process.kill()
        daemon.wait()

    def cut_off(self, name: str) -> None:
        """Simulate a network failure: the node stops responding, its processes keep running."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        self._stopping.set()
        self._hurrying.join()
        self.call("scancel", "--signal=KILL", "--user=root", check=False)
        for name in reversed(list(self.daemons)):
            for process in self._of_node(name):
                with _vanished():
                    process.kill()
            self.daemons[name].terminate()
            try:
                self.daemons[name].wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.daemons[name].kill()

    def call(self, *words: object, check: bool = True) -> str:
        """Run a client program and return its output."""
        done = subprocess.run(
            [str(word) for word in words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def node_states(self) -> dict[str, str]:
        lines = self.call("sinfo", "--Node", "--noheader", "--format=%N %t", check=False).split("\n")
        return dict(line.split() for line in lines if line)

    def job(self, number: str) -> dict[str, str]:
        """Return `scontrol show job` as a dictionary with the key JobState."""
        text = self.call("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_job(self, number: str, state: str, seconds: float = 180) -> None:
        until(lambda: self.job(number)["JobState"] == state, seconds, lambda: str(self.job(number)))

    def _hurry(self) -> None:
        """Shorten Slurm's wait before a requeued job starts, from two minutes to four seconds.

        With a shorter wait, nodes would mistake the new start's credential for the old one, which has been revoked.
        """
        waiting: dict[str, int] = {}
        while not self._stopping.wait(1):
            lines = self.call("squeue", "--noheader", "--format=%i %r", check=False).splitlines()
            jobs = [line.split()[0] for line in lines if line.endswith("BeginTime")]
            waiting = {job: waiting.get(job, 0) + 1 for job in jobs}
            for job in (job for job, looks in waiting.items() if looks > 4):
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def _of_node(self, name: str) -> list[psutil.Process]:
        """Return the step daemons of a node and their descendants. They leave slurmd's tree, but have its name."""
        found = []
        for process in psutil.process_iter():
            with _vanished():
                if self._is_of(process, name):
                    found.append(process)
                elif process.name() == "slurmstepd":
                    found += [process] if any(self._is_of(child, name) for child in process.children()) else []
        return found

    def _is_of(self, process: psutil.Process, name: str) -> bool:
        own = process.environ()
        return (own.get("SLURM_CONF"), own.get("SLURMD_NODENAME")) == (self.environment["SLURM_CONF"], name)

    def _configure(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        ports = free_ports(len(self.nodes) + 1)
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000 State=UNKNOWN"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        text = CONF.format(host=host, ctld_port=ports[0], folder=self.folder, nodes=nodes, names=",".join(self.nodes))
        (self.folder / "slurm.conf").write_text(text)

    def _run_daemon(self, key: str, *words: object) -> None:
        program = shutil.which(str(words[0]), path=BIN)
        with (self.folder / f"{key}.out").open("ab") as out:
            self.daemons[key] = subprocess.Popen(
                [str(program), *map(str, words[1:])],
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


@contextmanager
def cluster(folder: Path, nodes: int = 4) -> Iterator[Cluster]:
    made = Cluster(folder, nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def until(done: Callable[[], T], seconds: float = 60, tell: Callable[[], str] = lambda: "not reached") -> T:
    """Return the result of `done` as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, tell()
        time.sleep(0.2)
    return found


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _vanished() -> Iterator[None]:
    """Ignore processes that end during the inspection."""
    with suppress(psutil.Error):
        yield
