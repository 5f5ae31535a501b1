"""Model of a run: memory, network, speed, checkpoints, storage. docs/scale.md lists which parts were checked.

What DeepSpeed 0.19 keeps and sends was measured on real processes (tests/distributed/test_plan_measured.py): N
processes, P numbers of all parameters and T of the trained ones in fp32, collectives as rings:

    stage   kept between steps            gradients   sent by each process per step; A micro-batches
    0       4 P + s T                     4 T         all-reduce T
    1       4 P + (4 + s) T / N           4 T         all-reduce T, all-gather T
    2       4 P + (4 + s) T / N           8 T / N     all-reduce T, A times; all-gather T
    3       (4 P + (4 + s) T) / N         4 T / N *   all-gather P, reduce-scatter T, both A times

s: bytes of the optimizer's tensors per number. *: also kept between steps. Stages 1 and 2 use all-reduce instead of
reduce-scatter: DeepSpeed's default.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig
from simfle.plan.hardware import Constants
from simfle.plan.model_cost import ModelCost
from simfle.plan.roofline import RooflinePart, roofline, update_bytes
from simfle.runtime.deepspeed_engine import BUCKET, deepspeed_config
from simfle.runtime.distributed import BatchLayout, compute_batch_layout
from simfle.runtime.zero_stage import ZeroStage, choose_zero_stage, held_bytes

FP32, BF16 = 4, 2
SPARE = 0.92  # usable fraction of GPU memory: the rest is for the CUDA context and fragmentation


@dataclass(frozen=True)
class ClusterSpec:
    """Resources of a run. network: bytes/s of a node in each direction; cores: cores per process."""

    nodes: int
    per_node: int
    device: str
    network: float
    cores: float

    @property
    def processes(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class DatasetSpec:
    """Size of a data set: number of images and mean bytes per image."""

    images: int
    image_bytes: float


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. temporary: communication buckets and gathered parameters."""

    parameters: float
    optimizer: float
    gradients: float
    temporary: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends per step, and its number of collectives."""

    all_reduce: float
    reduce_scatter: float
    all_gather: float
    small: float
    collectives: int

    @property
    def total(self) -> float:
        return self.all_reduce + self.reduce_scatter + self.all_gather + self.small


@dataclass(frozen=True)
class Times:
    """Seconds of one step without data loading.

    compute: arithmetic; launches: host time, in parallel; network: sending; exposed: sending that does not overlap.
    """

    compute: float
    launches: float
    network: float
    exposed: float

    @property
    def total(self) -> float:
        return max(self.compute, self.launches) + self.exposed


@dataclass(frozen=True)
class Estimate:
    """Complete plan, in seconds and bytes.

    times, step, loading: times of one step; efficiency: fraction of a step spent on arithmetic; utilization: fraction
    of the device's peak; roofline: the minimum time of each part of a step; of_roofline: their sum as a fraction of the
    step.
    """

    batch: BatchLayout
    stage: ZeroStage
    memory: Memory
    traffic: Traffic
    times: Times
    step: float
    loading: float
    images_per_second: float
    efficiency: float
    bottleneck: str
    advice: list[str]
    steps: int
    hours: float
    flops_per_image: float
    utilization: float
    roofline: list[RooflinePart]
    of_roofline: float
    checkpoint: dict[str, float]
    storage: dict[str, float]
    decode: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON, totals included."""
        plain = asdict(self)
        plain["memory"]["total"], plain["traffic"]["total"] = self.memory.total, self.traffic.total
        return plain


def memory(cost: ModelCost, config: PretrainConfig, batch: BatchLayout, processes: int) -> Memory:
    """Return the peak bytes of one process, at the end of the last forward or backward pass."""
    stage = config.train.zero_stage
    share = 1 if stage == 0 else 1 / processes
    trained = FP32 * cost.trained
    states = trained * cost.optimizer_tensors
    kinds = [FP32, *([BF16] if cost.narrow else [])]  # stages 1 and 2 keep one bucket per type, both in fp32
    buckets = {0: min(trained, FP32 * BUCKET), 3: BUCKET * sum(kinds)}.get(stage, BUCKET * FP32 * len(kinds))
    if overlaps(config, batch) and stage in (1, 2):
        buckets *= 2
    return Memory(
        parameters=FP32 * cost.parameters * (share if stage == 3 else 1),
        optimizer=(states + (trained if stage else 0)) * share,
        gradients=trained * {0: 1, 1: 1, 2: 2 * share, 3: share}[stage],
        # Below 1e9 numbers DeepSpeed keeps every gathered parameter until its last use in the step.
        temporary=buckets + (_gathered(cost) if stage == 3 else 0),
        activations=cost.activations(batch.micro_batch),
        buffers=cost.buffers,
    )


def _gathered(work: ModelCost) -> float:
    return FP32 * (work.parameters - work.narrow) + BF16 * work.narrow


def traffic(cost: ModelCost, train: TrainConfig, batch: BatchLayout, processes: int) -> Traffic:
    """Return the traffic of one process in one optimizer step.

    Rings send (N - 1) / N of a tensor, all-reduces twice that.
    """
    stage, times = train.zero_stage, batch.grad_accum_steps
    ring = (processes - 1) / processes
    gradients = FP32 * (cost.trained - cost.narrow_trained) + BF16 * cost.narrow_trained
    if stage == 0:
        gradients = FP32 * cost.trained  # DeepSpeed's plain all-reduce keeps the gradients' type
    buckets = -(-cost.trained // BUCKET) * (2 if cost.narrow else 1)
    collectives = {0: buckets, 1: buckets + 1, 2: buckets * times + 1, 3: (buckets + 60) * times}[stage]
    small = 40.0  # reduced losses and flags
    if train.sync_batchnorm:
        collectives += 4 * cost.norms * times
        small += 8 * 2048 * cost.norms * times * ring
    return Traffic(
        all_reduce=2 * ring * gradients * {0: 1, 1: 1, 2: times, 3: 0}[stage],
        reduce_scatter=ring * gradients * (times if stage == 3 else 0),
        all_gather=ring * (times * _gathered(cost) if stage == 3 else FP32 * cost.trained if stage else 0),
        small=small,
        collectives=int(collectives) + 1 if processes > 1 else 0,
    )


def network_seconds(sent: Traffic, machines: ClusterSpec, constants: Constants) -> float:
    """Return the communication time. A ring passes each node's network once; inside a node, NVLink limits it."""
    if machines.processes == 1:
        return 0.0
    inside = sent.total / constants.of(machines.device, "nvlink") if machines.per_node > 1 else 0.0
    between = sent.total / (machines.network * constants["network.efficiency"]) if machines.nodes > 1 else 0.0
    rounds = (machines.processes - 1).bit_length()
    return max(inside, between) + sent.collectives * rounds * constants["network.latency"]


def compute_seconds(
    work: ModelCost, train: TrainConfig, batch: BatchLayout, machines: ClusterSpec, c: Constants
) -> float:
    """Return the time of all micro-batches' arithmetic, and of the optimizer's and EMA's memory passes."""
    device = machines.device
    speed = c["fp32"] if train.precision == "fp32" else 1.0
    arithmetic = work.conv(batch.micro_batch) / c.of(device, "conv") + work.matmul(batch.micro_batch) / c.of(
        device, "matmul"
    )
    passes = update_bytes(train, work, machines.processes)
    return batch.grad_accum_steps * arithmetic / speed + passes / c.of(device, "bandwidth")


def times(config: PretrainConfig, cost: ModelCost, cluster: ClusterSpec, c: Constants) -> Times:
    """Return the time of a step without data loading. Sending during backward (2/3 of the arithmetic) is free."""
    batch = compute_batch_layout(config.train, cluster.processes)
    compute = compute_seconds(cost, config.train, batch, cluster, c)
    launches = 0.0 if cluster.device == "cpu" else cost.operations * batch.grad_accum_steps * c["host.operation"]
    network = network_seconds(traffic(cost, config.train, batch, cluster.processes), cluster, c)
    hidden = 2 / 3 * max(compute, launches) if overlaps(config, batch) else 0.0
    return Times(compute, launches, network, max(0.0, network - hidden))


def overlaps(config: PretrainConfig, batch: BatchLayout) -> bool:
    """Return whether DeepSpeed sends during the backward pass."""
    stage = config.train.zero_stage
    settings = deepspeed_config(batch, config.train, config.optim)["zero_optimization"]
    return stage > 0 and bool(settings.get("overlap_comm", stage == 3))


def estimate(
    config: PretrainConfig, cost: ModelCost, cluster: ClusterSpec, corpus: DatasetSpec, c: Constants
) -> Estimate:
    """Compute the complete plan.

    Raises:
        UserError: If the batch cannot be split across this number of processes, or the device is unknown.
    """
    batch = compute_batch_layout(config.train, cluster.processes)
    stage = _stage(config, cost, cluster, c)
    config = replace(config, train=replace(config.train, zero_stage=stage.number))
    held, spent = memory(cost, config, batch, cluster.processes), times(config, cost, cluster, c)
    storage, decode = _storage(corpus, c), _decode(config.data, cluster, c)
    loading = batch.global_batch / cluster.processes / decode["possible_per_process"]
    reading = 0.0 if storage["cached"] else batch.global_batch * corpus.image_bytes / c["storage.read"]
    step = max(spent.total, loading, reading)
    rate = batch.global_batch / step
    bottleneck = _bottleneck(spent, loading, reading)
    if held.total > SPARE * c.of(cluster.device, "memory"):
        bottleneck = "memory"
    steps = config.train.steps or int(config.train.epochs * (corpus.images // batch.global_batch))
    flops = cost.conv.each + cost.matmul.each
    parts = roofline(config.train, cost, batch, cluster.device, c)
    return Estimate(
        batch=batch,
        stage=stage,
        memory=held,
        traffic=traffic(cost, config.train, batch, cluster.processes),
        times=spent,
        step=step,
        loading=loading,
        images_per_second=rate,
        efficiency=spent.compute / step,
        bottleneck=bottleneck,
        advice=[ADVICE[bottleneck], *_better_stage(config, cost, cluster, c)],
        steps=steps,
        hours=steps * step / 3600,
        flops_per_image=flops,
        utilization=flops * rate / cluster.processes / c.of(cluster.device, "peak"),
        roofline=parts,
        of_roofline=sum(part.seconds for part in parts) / step,
        checkpoint=_checkpoint(config.train, cost, cluster, step, c),
        storage=storage | {"node_bytes_per_second": rate * corpus.image_bytes / cluster.nodes},
        decode=decode | {"needed_per_process": rate / cluster.processes},
    )


def _stage(config: PretrainConfig, work: ModelCost, machines: ClusterSpec, c: Constants) -> ZeroStage:
    """Return the ZeRO stage of the planned run."""
    trained, frozen = FP32 * work.trained, FP32 * (work.parameters - work.trained)
    held = held_bytes(trained, frozen, work.optimizer_tensors)
    return choose_zero_stage(config.train, config.optim, machines.processes, held, c.of(machines.device, "memory"))


def _bottleneck(spent: Times, loading: float, reading: float) -> str:
    """Return the longest of the parallel parts; if it is the step, return the step's longest part."""
    if max(loading, reading) > spent.total:
        return "loading" if loading > reading else "storage"
    parts = {"compute": spent.compute, "launches": spent.launches, "network": spent.exposed}
    return max(parts, key=lambda name: parts[name])


def _better_stage(config: PretrainConfig, work: ModelCost, machines: ClusterSpec, c: Constants) -> list[str]:
    """Return the ZeRO stage that fits and has the shortest step, if it is worth a change."""
    batch = compute_batch_layout(config.train, machines.processes)
    limit = SPARE * c.of(machines.device, "memory")
    found = {}
    for stage in range(4) if machines.processes > 1 else [0]:
        other = replace(config, train=replace(config.train, zero_stage=stage))
        if memory(work, other, batch, machines.processes).total <= limit:
            found[stage] = times(other, work, machines, c).total
    now = config.train.zero_stage
    if not found:
        return []
    best = min(found, key=lambda stage: found[stage])
    if now not in found:
        return [f"train.zero_stage={best} fits"]
    if found[best] > 0.97 * found[now]:
        return []
    return [f"train.zero_stage={best}: a step of {found[best] * 1e3:,.1f} ms instead of {found[now] * 1e3:,.1f}"]


def _decode(data: DataConfig, machines: ClusterSpec, c: Constants) -> dict[str, float]:
    on_device = data.backend == "dali" or (data.backend == "auto" and machines.device != "cpu")
    cores = data.decode_threads or machines.cores
    possible = c.of(machines.device, "dali") if on_device else c["loader.core"] * cores
    return {"on_device": on_device, "cores": 0 if on_device else cores, "possible_per_process": possible}


def _storage(corpus: DatasetSpec, c: Constants) -> dict[str, Any]:
    """Return storage figures. Every node reads other shards in each epoch, so only a corpus that fits into one node's
    memory is read once."""
    size = corpus.images * corpus.image_bytes
    return {"corpus_bytes": size, "cached": size < c["node.memory"] / 2}


def _checkpoint(
    train: TrainConfig, work: ModelCost, machines: ClusterSpec, step: float, c: Constants
) -> dict[str, float]:
    size = FP32 * (work.parameters + work.optimizer_tensors * work.trained) + work.buffers
    copied = size / (c["host.copy"] if machines.device != "cpu" else c.of("cpu", "bandwidth"))
    if train.zero_stage and machines.nodes > 1:  # gathered, tensor by tensor
        copied += size / (machines.network * c["network.efficiency"])
    written = size / c["storage.write"] + size / c["storage.hash"]
    every = train.checkpoint_every * step
    # Checkpoints are written one at a time: a save waits for the previous write.
    hold_up = copied + max(0.0, written - every)
    return {"bytes": size, "hold_up": hold_up, "written": written, "every": every, "share": hold_up / (every + hold_up)}


ADVICE = {
    "memory": "a smaller train.micro_batch, which keeps fewer activations",
    "network": "fewer processes, or a larger train.global_batch: a step sends the same bytes for any batch",
    "launches": "fewer GPUs, or a larger batch: Python launches operations more slowly than the GPU executes them",
    "loading": "more cores per process, smaller views, or data.backend=dali on a GPU",
    "storage": "shards on node-local disks, or fewer nodes",
    "compute": "no change: arithmetic is the limit",
}
