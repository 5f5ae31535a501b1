"""The pretraining run, from its configuration to its end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from simfle.config import PretrainConfig
from simfle.data.loader import open_data
from simfle.errors import AgreedError, UserError
from simfle.models.methods import build_method
from simfle.runtime import World, plan_batch, processes
from simfle.stopping import StopFlag
from simfle.train import fitting, folder
from simfle.train.check import check
from simfle.train.run import Run
from simfle.train.watchdog import Watchdog


@dataclass(frozen=True)
class Surroundings:
    """What a cluster's job knows and a run on one machine need not.

    stop: a flag that was raised, or may have been, before the run began.
    patience: seconds to wait for a run folder that its former, dying processes still hold.
    lead: seconds between the stop signal and the end of the job; 0: unknown.
    before_hang: told the reason just before a hanging process ends itself.
    """

    stop: StopFlag | None = None
    patience: float = 0.0
    lead: float = 0.0
    before_hang: Callable[[str], None] | None = None


def pretrain(config: PretrainConfig, around: Surroundings = Surroundings()) -> None:
    """Start or go on with the run in `train.run`, until its last step or a stop signal.

    Raises:
        UserError: configuration, data, checkpoint or folder are not as they must be; a loss is not finite; a disk is
            full or fails.
        RunStopped: a signal or train.stop_after ended it early; all is saved.
    """
    with opened(config, around) as run, nullcontext(around.stop) if around.stop is not None else StopFlag() as stop:
        if around.lead:
            run.rehearse_stop(around.lead)
        run.train(stop)


@contextmanager
def opened(config: PretrainConfig, around: Surroundings = Surroundings()) -> Iterator[Run]:
    """A run that stands before its next step, and all that it holds; let go of at the end. Raises UserError."""
    check(config)
    with processes(config.train) as world, folder.writing(Path(config.train.run)), ExitStack() as ends:
        config = fitting.fitted(config, world)
        plan = plan_batch(config.train, world.size)
        corpus, order = open_data(config.data, config.train.seed, plan.global_batch, world.rank)
        torch.manual_seed(config.train.seed)
        model = build_method(config.model, config.views)
        # The first thing that is written: all of the above may have been refused.
        claim_folder(config, world, ends, around.patience)
        place = Path(config.train.run), world.rank, world.size, config.train.timeout
        watchdog = ends.enter_context(Watchdog(*place, around.before_hang))
        yield Run(config, world, plan, corpus, order, model, ends, watchdog)


def claim_folder(config: PretrainConfig, world: World, ends: ExitStack, patience: float) -> None:
    """The main process holds the folder for all; if it cannot, all processes end with its reason."""
    reason: list[str | None] = [None]
    if world.is_main:
        try:
            with folder.writing(Path(config.train.run)):
                ends.enter_context(folder.claimed(Path(config.train.run), patience))
                folder.settle_config(Path(config.train.run), config)
        except UserError as error:
            reason = [str(error)]
    dist.broadcast_object_list(reason, src=0)
    if reason[0] is not None:
        raise AgreedError(reason[0], said_here=world.is_main)
