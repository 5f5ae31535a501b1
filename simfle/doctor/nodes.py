"""A short job on several nodes of a cluster: compare versions and clocks, measure network and disk."""

import json
import math
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_text, replace_text
from shards.redact import to_json
from simfle.doctor.checks import MAX_CLOCK_SKEW, measure_disk, read_rate
from simfle.doctor.findings import Finding, broken, note, ok
from simfle.errors import UserError
from simfle.runtime.logs import say
from simfle.slurm import scheduler
from simfle.slurm.config import ClusterConfig, check
from simfle.slurm.snapshot import snapshot
from simfle.slurm.submit import require_slurm, slurm_executor

RESULT = "doctor.json"
LARGE = {"cuda": 256 << 20, "cpu": 16 << 20}  # bytes of the all-reduce for the bandwidth
ROUNDS = 5
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


@dataclass(frozen=True)
class NodeJobConfig:
    """Configuration of the job. network: bytes/s of a node in each direction (0 = unknown)."""

    network: float = 0.0


def submit(folder: Path, cluster: ClusterConfig, network: float) -> tuple[Path, str]:
    """Freeze the code below `folder`, which all nodes can read, and submit; return the job's folder and number.

    Raises:
        UserError: If Slurm is missing or refuses the job, values are out of range, or the folder cannot be written.
    """
    from simfle.slurm.submit import reason, refusals

    check(cluster)
    require_slurm()
    job = snapshot(folder.absolute(), NodeJobConfig(network), cluster, name="doctor")
    try:
        submitted = slurm_executor(job, cluster, name="simfle-doctor", ends=False).submit(node_task, str(job))
    except refusals() as error:
        raise UserError(f"sbatch: {reason(error)}") from None
    return job, str(submitted.job_id)


def wait(job: Path, number: str, seconds: float) -> dict[str, Any]:
    """Return the job's measurements.

    Raises:
        UserError: If the job failed or did not end in time. The error names the folder of the job's logs.
    """
    end = time.monotonic() + seconds
    state = ""
    while not (job / RESULT).is_file():
        state = scheduler.state(number)
        if state in ENDED:
            time.sleep(1.0)  # a shared file system may show the file a little later
            if (job / RESULT).is_file():
                break
            raise UserError(f"job {number} {state.lower()}: {_last_line(job)}; its logs are in {job}")
        if time.monotonic() > end:
            waits = scheduler.show(number).get("Reason", "")
            raise UserError(
                f"job {number} is {state.lower() or 'unknown'} ({waits}) after {seconds:.0f} s; a longer --wait helps; "
                f"scancel {number} ends it; the result will be {job / RESULT}"
            )
        time.sleep(0.5)
    found = json.loads(read_text(job / RESULT))
    return dict(found)


def node_task(folder: str) -> None:
    """Run one process of the job: join the other processes, measure; rank 0 writes the result."""
    import torch
    import torch.distributed as dist
    import yaml

    from simfle.config.schema import load
    from simfle.runtime.provenance import versions
    from simfle.slurm.task import current_task, set_rank_env

    job, place = Path(folder), current_task()
    cluster = load(ClusterConfig, job / "cluster.yaml")
    network = float(yaml.safe_load(read_text(job / "config.yaml"))["network"])
    set_rank_env(place, cluster)
    cuda = cluster.gpus_per_node > 0
    if cuda and not torch.cuda.is_available():
        say(f"error: GPUs were requested on {place.host}, but torch sees none. Fix: run simfle doctor on that node.")
        sys.exit(65)
    device = torch.device("cuda", place.local_rank % max(1, torch.cuda.device_count())) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", init_method="env://")
    large, small = (_all_reduce(size, device) for size in (LARGE[device.type], 4))
    written, read, skew = _shared_disk(job, place.rank, place.world_size)
    own = {
        "rank": place.rank,
        "node": place.host,
        "host": socket.gethostname(),
        "versions": versions() | {"torch.cuda": torch.version.cuda or "none"},
        "gpu": torch.cuda.get_device_name(device) if cuda else "",
        "write": written,
        "read": read,
        "skew": skew,
        "all_reduce": large,
        "latency": small,
    }
    every: list[Any] = [None] * place.world_size
    dist.all_gather_object(every, own)
    if place.rank == 0:
        found = summary(every, LARGE[device.type], network)
        replace_text(job / RESULT, to_json(found, indent=1) + "\n")
    dist.destroy_process_group()


def summary(every: list[dict[str, Any]], size: int, network: float) -> dict[str, Any]:
    """Combine the measurements of all processes. `constants` are names that `simfle plan` reads.

    Bandwidth of an all-reduce of n processes and b bytes in t seconds is 2 (n - 1) / n * b / t: the traffic of each
    link of a ring.
    """
    processes = len(every)
    nodes = sorted({own["node"] for own in every})
    seconds = max(own["all_reduce"] for own in every)
    bandwidth = 2 * (processes - 1) / processes * size / seconds if processes > 1 else 0.0
    latency = max(own["latency"] for own in every)
    constants = {
        "storage.read": sum(own["read"] for own in every),
        "storage.write": min(own["write"] for own in every),
    }
    if processes > 1:
        constants["network.latency"] = latency / math.log2(processes)
    if bandwidth and network:
        constants["network.efficiency"] = min(1.0, bandwidth / network)
    return {
        "nodes": nodes,
        "processes": processes,
        "all_reduce_bytes_per_second": bandwidth,
        "all_reduce_bytes": size,
        "latency_seconds": latency,
        "read_bytes_per_second": {own["node"]: own["read"] for own in every},
        "skew_seconds": max(own["skew"] for own in every) - min(own["skew"] for own in every),
        "versions_differ": differing([own["versions"] for own in every]),
        "versions": every[0]["versions"],
        "gpus": sorted({own["gpu"] for own in every if own["gpu"]}),
        "constants": constants,
    }


def differing(versions: list[dict[str, str]]) -> dict[str, list[str]]:
    """Return packages whose versions differ between processes: name -> versions."""
    names = sorted({name for own in versions for name in own})
    found = {name: sorted({own.get(name, "missing") for own in versions}) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def judge(found: dict[str, Any], nodes: int) -> list[Finding]:
    """Convert the measurements to findings."""
    processes = found["processes"]
    names = ", ".join(found["nodes"][:8]) + (" ..." if len(found["nodes"]) > 8 else "")
    here = ok("nodes", f"{len(found['nodes'])} ({names}), {processes} processes in one group")
    if len(found["nodes"]) != nodes:
        here = broken("nodes", f"{len(found['nodes'])} of {nodes} took part ({names})", "check sinfo and the job's log")
    gigabytes = found["all_reduce_bytes_per_second"] / 1e9
    text = f"{gigabytes:.2f} GB/s over {found['all_reduce_bytes'] >> 20} MB"
    text += f", {found['latency_seconds'] * 1e6:.0f} us for 4 B"
    results = [here, ok("all-reduce", text)]
    rates = found["read_bytes_per_second"]
    slowest = min(rates, key=rates.get)
    text = f"{min(rates.values()) / 1e6:.0f} MB/s ({slowest}) to {max(rates.values()) / 1e6:.0f} MB/s per process"
    uneven = min(rates.values()) * 3 < max(rates.values())
    advice = f"check the mount of {slowest}, which reads three times more slowly than the fastest node"
    results.append(note("shared disk", text, advice) if uneven else ok("shared disk", text))
    if found["versions_differ"]:
        text = "; ".join(f"{name}: {' and '.join(values)}" for name, values in found["versions_differ"].items())
        results.append(broken("versions", text, "use the same environment or container on all nodes"))
    else:
        results.append(ok("versions", "equal on all nodes"))
    text = f"{found['skew_seconds']:.1f} s between the nodes"
    late = "synchronize the nodes' clocks by NTP"
    results.append(
        ok("clocks of nodes", text) if found["skew_seconds"] < MAX_CLOCK_SKEW else note("clocks", text, late)
    )
    return results


def _all_reduce(size: int, device: Any) -> float:
    """Return seconds of one all-reduce of `size` bytes, the best of several rounds."""
    import torch
    import torch.distributed as dist

    values = torch.ones(size // 4, device=device)
    best = math.inf
    for number in range(ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first all-reduce opens the connections
            best = min(best, time.perf_counter() - began)
    return best


def _shared_disk(job: Path, rank: int, size: int) -> tuple[float, float, float]:
    """Return bytes/s written and read, and the skew of the file system's clock.

    Each process reads a file of another process, which is not in its node's memory. All processes write, then all read.
    """
    import torch.distributed as dist

    folder = job / "trial" / str(rank)
    folder.mkdir(parents=True)
    written, _, skew = measure_disk(folder)
    dist.barrier()
    (other,) = (job / "trial" / str((rank + 1) % size)).iterdir()
    read = read_rate(other)
    dist.barrier()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return written, read, skew


def _last_line(job: Path) -> str:
    texts = [read_text(file, errors="replace") for file in sorted(job.glob("*_log.out"))]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if "rror" in line]
    return (wrong or lines or ["no message in its logs"])[-1]
