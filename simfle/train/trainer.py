"""Run pretraining from a configuration to its end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from simfle.config import PretrainConfig
from simfle.data.loader import open_data
from simfle.device import failures_told
from simfle.errors import AgreedError, FolderHeld, UserError
from simfle.models.methods import build_method
from simfle.runtime import World, plan_batch, processes
from simfle.stopping import StopFlag
from simfle.train import alike, fitting, folder
from simfle.train.check import check
from simfle.train.claim import Claim, JobStart
from simfle.train.run import Run
from simfle.train.watchdog import Watchdog

LESS_MEMORY = "train.micro_batch=auto finds the most samples that fit; model.recompute=true keeps less of each"


@dataclass(frozen=True)
class Surroundings:
    """Context of a cluster job; a run on one machine needs none of it.

    stop: a flag that may have been set before the run began.
    patience: seconds to wait for a run folder that exiting processes of an earlier start still hold.
    lead: seconds between the stop signal and the end of the job; 0: unknown.
    before_hang: called with the reason just before a hanging process exits.
    start: start of a Slurm job; a later start of the same job may take over the folder.
    """

    stop: StopFlag | None = None
    patience: float = 0.0
    lead: float = 0.0
    before_hang: Callable[[str], None] | None = None
    start: JobStart | None = None


def pretrain(config: PretrainConfig, around: Surroundings = Surroundings()) -> None:
    """Start or resume the run in `train.run`, until its last step or a stop signal.

    Raises:
        UserError: invalid configuration, data, checkpoint or folder; a non-finite loss; a full or failing disk; full
            memory.
        DeviceFailed: the GPU failed.
        RunStopped: a signal or train.stop_after stopped it early; the state is saved.
    """
    flag = nullcontext(around.stop) if around.stop is not None else StopFlag()
    with failures_told(LESS_MEMORY), opened(config, around) as run, flag as stop:
        if around.lead:
            run.rehearse_stop(around.lead)
        run.train(stop)


@contextmanager
def opened(config: PretrainConfig, around: Surroundings = Surroundings()) -> Iterator[Run]:
    """Open a run, ready for its next step, and close its resources at the end. Raises UserError."""
    check(config)
    with processes(config.train) as world, folder.writing(Path(config.train.run)), ExitStack() as ends:
        config = fitting.fitted(config, world)
        plan = plan_batch(config.train, world.size)
        corpus, order = open_data(config.data, config.train.seed, plan.global_batch, world.rank)
        alike.check(config, corpus, world)
        torch.manual_seed(config.train.seed)
        model = build_method(config.model, config.views)
        # The first write: all of the above may have been refused.
        claim = claim_folder(config, world, ends, around)
        place = Path(config.train.run), world.rank, world.size, config.train.timeout
        watchdog = ends.enter_context(Watchdog(*place, around.before_hang, claim))
        yield Run(config, world, plan, corpus, order, model, ends, watchdog)


def claim_folder(config: PretrainConfig, world: World, ends: ExitStack, around: Surroundings) -> Claim | None:
    """Lock the folder in the main process, which gets the claim; if that fails, all processes exit with its reason.

    Raises:
        UserError: the folder belongs to another run, is in use, or cannot be written.
        FolderHeld: an earlier start of this job holds it.
    """
    found: list[Exception | None] = [None]
    claim = None
    if world.is_main:
        run = Path(config.train.run)
        try:
            with folder.writing(run):
                claim = ends.enter_context(folder.claimed(run, around.patience, around.start))
                folder.settle_config(run, config)
        except (UserError, FolderHeld) as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], FolderHeld):
        raise found[0]
    if found[0] is not None:
        raise AgreedError(str(found[0]), said_here=world.is_main)
    return claim
