"""What a cluster must be told. `configs/cluster/*.yaml`, options of the launcher and key=value arguments fill it."""

# ruff: noqa: RUF009 - option() is a dataclass field
import re
from dataclasses import dataclass

from simfle.config import option
from simfle.errors import UserError

KNOWN_SBATCH = re.compile(r"[a-z][a-z-]*(=.*)?")


@dataclass(frozen=True)
class ClusterConfig:
    """How jobs are asked for. Empty texts and zeros are left out of the script: the cluster's defaults hold."""

    partition: str = option("", "sbatch --partition")
    account: str = option("", "sbatch --account")
    qos: str = option("", "sbatch --qos")
    constraint: str = option("", "sbatch --constraint")
    time: str = option("24:00:00", "sbatch --time: minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    nodes: int = option(1, "nodes of a job")
    min_nodes: int = option(0, "fewest nodes it may run on when others are lost; 0: all of them")
    gpus_per_node: int = option(8, "GPUs of a node, one process for each; 0: CPU nodes")
    tasks_per_node: int = option(1, "processes of a node without GPUs")
    cpus_per_task: int = option(0, "sbatch --cpus-per-task")
    mem: str = option("", "sbatch --mem, of a node, e.g. 200G; 0 is all of it")
    signal_seconds: int = option(120, "seconds between the stop signal and the end of a job's time")
    max_requeues: int = option(100, "most times that a job is put back into the queue, for whatever reason")
    max_failures: int = option(3, "most failures in a row without a new checkpoint before a job ends for good")
    setup: list[str] = option(list, "shell lines before the job, e.g. 'module load cuda/13.0'")
    environment: list[str] = option(list, "NAME=VALUE for every process, e.g. NCCL_SOCKET_IFNAME=ib0")
    scratch: str = option("", "folder on every node's own disk, for caches; may hold $VARIABLES of the job", path=True)
    container: str = option(
        "", "image: FILE.sif runs by apptainer, anything else by srun --container-image (pyxis)", path=True
    )
    container_python: str = option("python3", "the python in the image, which has this project's requirements")
    mounts: list[str] = option(list, "folders that the container sees beside the run's and the shards'", path=True)
    sbatch: list[str] = option(list, "more options of sbatch: exclusive, exclude=n13, reservation=mine, ...")

    @property
    def tasks(self) -> int:
        """Processes of one node."""
        return self.gpus_per_node or self.tasks_per_node


def check(config: ClusterConfig) -> None:
    """Raise a UserError that names the first value that cannot be."""
    for name, least in (("nodes", 1), ("min_nodes", 0), ("gpus_per_node", 0), ("tasks_per_node", 1)):
        _at_least(config, name, least)
    for name, least in (("cpus_per_task", 0), ("signal_seconds", 10), ("max_requeues", 0), ("max_failures", 1)):
        _at_least(config, name, least)
    if config.min_nodes > config.nodes:
        raise UserError(f"--min-nodes {config.min_nodes} is more than --nodes {config.nodes}")
    if not re.fullmatch(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", config.time):
        raise UserError(f"--time {config.time!r} is no time limit; write 30, 12:00:00 or 2-00:00:00")
    if 0 < seconds(config.time) <= config.signal_seconds:  # Slurm takes 0 for no limit
        raise UserError(
            f"--time {config.time} is not longer than signal_seconds={config.signal_seconds}: each start of the job "
            "would be told to stop at once; give it more time, or a smaller signal_seconds"
        )
    for name in ("partition", "account", "qos", "constraint", "mem", "container"):
        if re.search(r"[\s\"'`$;\\]", getattr(config, name)):
            raise UserError(f"{name} {getattr(config, name)!r} holds a space, a quote or a shell character")
    for word in config.sbatch:
        if not KNOWN_SBATCH.fullmatch(word) or "\n" in word:
            raise UserError(f"cluster.sbatch: {word!r} is not name or name=value, as exclude=n13 (without dashes)")
    for word in config.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*=[^\n]*", word):
            shown = word.partition("=")[0]  # what follows may be a secret
            raise UserError(f"cluster.environment: {shown!r} is no NAME=VALUE, or VALUE has a line break")
    if any("\n" in line for line in config.setup):
        raise UserError("cluster.setup: a line holds a line break; give one line each")


def seconds(time: str) -> int:
    """A time limit as sbatch reads it: '30' and '30:00' -> 1800, '2:00:00' -> 7200, '1-12' -> 129600."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _at_least(config: ClusterConfig, name: str, least: int) -> None:
    if getattr(config, name) < least:
        raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: it must be at least {least}")
