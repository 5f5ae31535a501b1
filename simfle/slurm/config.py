"""Configuration of a cluster, from `configs/cluster/*.yaml`, launcher options and key=value arguments."""

# ruff: noqa: RUF009 - config_field() is a dataclass field
import re
from dataclasses import dataclass

from simfle.config.schema import config_field
from simfle.config.validate import validate
from simfle.errors import UserError

KNOWN_SBATCH = re.compile(r"[a-z][a-z-]*(=.*)?")


@dataclass(frozen=True)
class ClusterConfig:
    """Resources of jobs. Empty texts and zeros are omitted from the script: the cluster's defaults apply."""

    partition: str = config_field("", "sbatch --partition")
    account: str = config_field("", "sbatch --account")
    qos: str = config_field("", "sbatch --qos")
    constraint: str = config_field("", "sbatch --constraint")
    time: str = config_field(
        "24:00:00",
        "sbatch --time: minutes, hours:minutes:seconds or days-hours:minutes:seconds",
        rule="30, 12:00:00, 2-00:00:00",
    )
    nodes: int = config_field(1, "number of nodes of a job", min=1)
    min_nodes: int = config_field(
        0, "minimum number of nodes after a requeue (0 = all nodes)", min=0, rule="at most `nodes`"
    )
    gpus_per_node: int = config_field(8, "GPUs per node, one process per GPU (0 = CPU nodes)", min=0)
    tasks_per_node: int = config_field(1, "processes per node without GPUs", min=1)
    cpus_per_task: int = config_field(0, "sbatch --cpus-per-task", min=0)
    mem: str = config_field("", "sbatch --mem per node, such as 200G (0 = all memory)")
    signal_seconds: int = config_field(
        120, "seconds between the stop signal and the time limit of a job", min=10, rule="less than `time`"
    )
    max_requeues: int = config_field(100, "maximum number of requeues of a job, for any reason", min=0)
    max_consecutive_failures: int = config_field(
        3, "maximum number of consecutive failures without a new checkpoint", min=1
    )
    setup: list[str] = config_field(list, "shell lines before the job, such as 'module load cuda/13.0'")
    env: list[str] = config_field(
        list, "NAME=VALUE for every process, such as NCCL_SOCKET_IFNAME=ib0", rule="NAME=VALUE, each"
    )
    local_scratch: str = config_field(
        "", "cache folder on each node's local disk; may contain $VARIABLES of the job", is_path=True
    )
    container: str = config_field(
        "", "container image: apptainer for FILE.sif, otherwise srun --container-image (pyxis)", is_path=True
    )
    container_python: str = config_field("python3", "python in the image, with this project's requirements")
    mounts: list[str] = config_field(
        list, "additional folders to mount in the container, beside run and shards", is_path=True
    )
    extra_sbatch: list[str] = config_field(
        list,
        "additional sbatch options, such as exclusive, exclude=n13, reservation=mine",
        rule="name or name=value, each",
    )

    @property
    def tasks(self) -> int:
        """Number of processes per node."""
        return self.gpus_per_node or self.tasks_per_node


def check(config: ClusterConfig) -> None:
    """Raise UserError for values that are out of range or do not fit each other."""
    validate(config, "cluster")
    if config.min_nodes > config.nodes:
        raise UserError(f"--min-nodes={config.min_nodes}: more than --nodes={config.nodes}. Fix: lower --min-nodes.")
    if not re.fullmatch(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", config.time):
        raise UserError(f"--time {config.time!r}: not a time limit. Fix: write it like 30, 12:00:00 or 2-00:00:00.")
    if 0 < seconds(config.time) <= config.signal_seconds:  # to Slurm, 0 means no limit
        raise UserError(
            f"--time {config.time}: not longer than signal_seconds={config.signal_seconds}, so each start of the job "
            "would stop immediately. Fix: raise --time, or lower signal_seconds."
        )
    for name in ("partition", "account", "qos", "constraint", "mem", "container"):
        if re.search(r"[\s\"'`$;\\]", getattr(config, name)):
            raise UserError(
                f"{name}={getattr(config, name)!r}: must not contain spaces, quotes or shell characters. "
                "Fix: remove them."
            )
    for word in config.extra_sbatch:
        if not KNOWN_SBATCH.fullmatch(word) or "\n" in word:
            raise UserError(
                f"cluster.extra_sbatch: {word!r} is not an option of sbatch. "
                "Fix: write name or name=value without dashes, as in exclude=n13."
            )
    for word in config.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=[^\n]*", word):
            shown = word.partition("=")[0]  # the value may be a secret
            raise UserError(f"cluster.env: {shown!r} is not NAME=VALUE without a line break. Fix: write NAME=VALUE.")
    if any("\n" in line for line in config.setup):
        raise UserError("cluster.setup: a line contains a line break. Fix: write each line as a separate item.")


def seconds(time: str) -> int:
    """Convert a time limit as sbatch reads it: '30' and '30:00' -> 1800, '2:00:00' -> 7200, '1-12' -> 129600."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
