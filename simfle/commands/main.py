"""Command `simfle`: all tools and launchers as subcommands, each imported only when called."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from simfle.commands.app import run
from simfle.runtime.entrypoint import run_as_main
from simfle.version import __version__


@dataclass(frozen=True)
class CommandEntry:
    """Module, function and one-line help of a subcommand. `module` is relative to simfle.commands."""

    module: str
    function: str
    help: str


@dataclass(frozen=True)
class CommandGroup:
    """Subcommands under a common name."""

    help: str
    entries: "dict[str, CommandEntry | CommandGroup]"


SHARDS: dict[str, CommandEntry | CommandGroup] = {
    "build": CommandEntry("shards.build", "commands", "convert face images to shards; supports nineteen corpora"),
    "verify": CommandEntry("shards.verify", "verify_shards", "check every byte and every image"),
    "inspect": CommandEntry("shards.summary", "inspect_shards", "print statistics, draw a contact sheet"),
    "statistics": CommandEntry(
        "shards.pixel_stats", "shards_statistics", "mean and standard deviation of pixels, for model.mean"
    ),
    "index": CommandEntry("shards.index", "index_shards", "index tars from webdataset or img2dataset"),
    "merge": CommandEntry("shards.merge", "merge_shards", "merge several folders of shards"),
    "split": CommandEntry("shards.split", "split_shards", "split samples by person"),
    "subset": CommandEntry("shards.subset", "subset_shards", "take a fraction of the samples"),
    "remove": CommandEntry("shards.remove", "remove_samples", "remove samples, or all samples of a person"),
    "ffcv": CommandEntry("shards.ffcv", "build_beton", "write labeled shards as a .beton file for FFCV"),
    "duplicates": CommandEntry("shards.duplicates", "find_duplicates", "find duplicate images"),
}
SLURM: dict[str, CommandEntry | CommandGroup] = {
    "pretrain": CommandEntry("slurm.pretrain", "slurm_pretrain", "submit a pretraining job that requeues itself"),
    "eval": CommandEntry("slurm.evaluate", "slurm_eval", "submit evaluations as array jobs"),
}
BENCH: dict[str, CommandEntry | CommandGroup] = {
    "build": CommandEntry("bench.build", "bench_build", "speed of building shards"),
    "loader": CommandEntry("bench.loader", "bench_loader", "speed of making views"),
    "step": CommandEntry("bench.step", "bench_step", "speed of a training step"),
    "train": CommandEntry("bench.train", "bench_train", "training with and without data loading"),
    "checkpoint": CommandEntry("bench.checkpoint", "bench_checkpoint", "time for which checkpoints block training"),
    "startup": CommandEntry("bench.startup", "bench_startup", "response time of commands"),
    "scaling": CommandEntry("bench.scaling", "bench_scaling", "cost of communication between processes"),
    "peers": CommandEntry("bench.peers", "bench_peers", "this project, lightly and LightlyTrain on the same work"),
    "gpu": CommandEntry("gpu_day", "bench_gpu", "all benchmarks on a new GPU, in twenty minutes"),
    "wheels": CommandEntry(
        "collect_wheels", "collect_wheels", "collect packages for a GPU machine without network access"
    ),
}
COMMANDS: dict[str, CommandEntry | CommandGroup] = {
    "quickstart": CommandEntry("quickstart", "quickstart", "run the full pipeline on synthetic or your own faces"),
    "doctor": CommandEntry("doctor", "doctor", "check this machine or a cluster"),
    "shards": CommandGroup("create, check and change shards", SHARDS),
    "pretrain": CommandEntry("pretrain", "pretrain", "pretrain a backbone; rerun to resume"),
    "watch": CommandEntry("watch", "watch", "show runs live"),
    "runs": CommandEntry("runs", "runs", "list runs and their progress"),
    "export": CommandEntry("export", "export_backbone", "export a run's backbone for timm, ONNX, Hugging Face"),
    "embed": CommandEntry("embed", "embed", "write features of images or shards as .npz, .parquet or .csv"),
    "evaluate": CommandEntry("evaluate", "evaluate", "evaluate backbones: probes, kNN, fine-tuning"),
    "predict": CommandEntry("predict", "predict", "predict expressions of images with a fitted probe"),
    "compare": CommandEntry("compare", "compare", "compare methods with intervals and paired tests"),
    "report": CommandEntry("report", "report", "write an HTML report about runs"),
    "plan": CommandEntry("plan", "plan_run", "estimate memory, speed and bottleneck of a run"),
    "slurm": CommandGroup("submit to a Slurm cluster", SLURM),
    "bench": CommandGroup("measure speed on this machine", BENCH),
}


class LazyGroup(TyperGroup):
    """Command group that lists its subcommands from a table, and imports a subcommand only when it is called."""

    entries: dict[str, CommandEntry | CommandGroup] = COMMANDS

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(self.entries)  # type: ignore[assignment]  # names only, for suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return the subcommand, or return None if no subcommand has this name."""
        entry = self.entries.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Print one line per subcommand, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])


def load(name: str, entry: CommandEntry | CommandGroup) -> Any:
    """Return the click command of an entry."""
    if isinstance(entry, CommandGroup):
        group = typer.Typer(
            name=name,
            cls=type("Lazy", (LazyGroup,), {"entries": entry.entries}),
            add_completion=False,
            rich_markup_mode=None,
            no_args_is_help=True,
        )
        group.callback(help=f"{entry.help[0].upper()}{entry.help[1:]}.")(_nothing)
        return typer.main.get_command(group)
    function = getattr(import_module(f"simfle.commands.{entry.module}"), entry.function)
    if entry.function == "commands":  # a group with subcommands
        return typer.main.get_command(function())
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)


def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="print the version")] = False,
) -> None:
    """SimFLE: self-supervised pretraining for facial expression recognition, from a folder of faces to a report."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _nothing() -> None:
    """Do nothing; a group only has subcommands."""


def app() -> typer.Typer:
    """Return the command with all its subcommands and --install-completion."""
    made = typer.Typer(
        cls=LazyGroup,
        name="simfle",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        invoke_without_command=True,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    made.callback()(root)
    return made


def main() -> None:
    """Run the command line."""
    run(app())


def script() -> None:
    """Run the command line as the main function of its process."""
    run_as_main(main)
