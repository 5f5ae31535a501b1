"""The command `simfle`: every tool and launcher under one name, each loaded only when it is called."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from simfle.commands.app import run
from simfle.process import own_process
from simfle.version import __version__


@dataclass(frozen=True)
class Entry:
    """Where a subcommand is and what it does in one line. function: of simfle/commands/MODULE.py."""

    module: str
    function: str
    help: str


@dataclass(frozen=True)
class Group:
    """Subcommands under one name."""

    help: str
    entries: "dict[str, Entry | Group]"


SHARDS: dict[str, Entry | Group] = {
    "build": Entry("build_shards", "commands", "faces as you have them -> shards; nineteen corpora by name"),
    "verify": Entry("verify_shards", "verify_shards", "check every byte and every image"),
    "inspect": Entry("inspect_shards", "inspect_shards", "what is in them, in numbers and as a picture"),
    "statistics": Entry("shards_statistics", "shards_statistics", "mean and deviation of the pixels, for model.mean"),
    "index": Entry("index_shards", "index_shards", "index and manifest for tars that others wrote"),
    "merge": Entry("merge_shards", "merge_shards", "several folders of shards as one"),
    "split": Entry("split_shards", "split_shards", "divide the samples into splits, by person"),
    "subset": Entry("subset_shards", "subset_shards", "take a share of the samples"),
    "remove": Entry("remove_samples", "remove_samples", "take out samples, or all of a person"),
    "beton": Entry("build_beton", "build_beton", "labelled shards as a .beton file for FFCV"),
    "duplicates": Entry("find_duplicates", "find_duplicates", "find images that are there twice"),
}
SLURM: dict[str, Entry | Group] = {
    "pretrain": Entry("slurm_pretrain", "slurm_pretrain", "submit a pretraining job that requeues itself"),
    "eval": Entry("slurm_eval", "slurm_eval", "submit evaluations as array jobs"),
}
BENCH: dict[str, Entry | Group] = {
    "build": Entry("bench_build", "bench_build", "how fast shards are built"),
    "loader": Entry("bench_loader", "bench_loader", "how fast views are made"),
    "step": Entry("bench_step", "bench_step", "how fast a training step is"),
    "train": Entry("bench_train", "bench_train", "training with its data against without"),
    "checkpoint": Entry("bench_checkpoint", "bench_checkpoint", "how long checkpoints hold training up"),
    "startup": Entry("bench_startup", "bench_startup", "how long commands take to answer"),
    "scaling": Entry("bench_scaling", "bench_scaling", "what several processes cost each other"),
    "gpu": Entry("gpu_day", "bench_gpu", "all of it on a new GPU, in twenty minutes"),
    "wheels": Entry("collect_wheels", "collect_wheels", "packages for a GPU machine that has no network"),
}
TABLE: dict[str, Entry | Group] = {
    "quickstart": Entry("quickstart", "quickstart", "the whole line in minutes: drawn faces, or your own"),
    "doctor": Entry("doctor", "doctor", "what this machine, or a cluster, has and lacks"),
    "shards": Group("make, check and change shards", SHARDS),
    "pretrain": Entry("pretrain", "pretrain", "pretrain a backbone; the same command again goes on"),
    "watch": Entry("watch", "watch", "a live view of runs"),
    "runs": Entry("runs", "runs", "which runs there are, and where they stand"),
    "export": Entry("export_backbone", "export_backbone", "a run's backbone for timm, ONNX, Hugging Face"),
    "embed": Entry("embed", "embed", "features of images or shards, as .npz or .parquet"),
    "evaluate": Entry("evaluate", "evaluate", "backbones on benchmarks: probes, kNN, fine-tuning"),
    "compare": Entry("compare", "compare", "methods side by side, with intervals and paired tests"),
    "report": Entry("report", "report", "one HTML page about runs"),
    "plan": Entry("plan_run", "plan_run", "memory, speed and bottleneck of a run before it is started"),
    "slurm": Group("the same on a Slurm cluster", SLURM),
    "bench": Group("how fast it is here", BENCH),
}


class Lazy(TyperGroup):
    """A group that knows its subcommands' names and lines of help, and imports one when it is needed."""

    entries: dict[str, Entry | Group] = TABLE

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(self.entries)  # type: ignore[assignment]  # names, for suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The subcommand, imported; None if there is none of this name."""
        entry = self.entries.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One line each, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])


def load(name: str, entry: Entry | Group) -> Any:
    """The click command of an entry."""
    if isinstance(entry, Group):
        group = typer.Typer(
            name=name,
            cls=type("Lazy", (Lazy,), {"entries": entry.entries}),
            add_completion=False,
            rich_markup_mode=None,
            no_args_is_help=True,
        )
        group.callback(help=f"{entry.help[0].upper()}{entry.help[1:]}.")(_nothing)
        return typer.main.get_command(group)
    function = getattr(import_module(f"simfle.commands.{entry.module}"), entry.function)
    if entry.function == "commands":  # a group with subcommands of its own
        return typer.main.get_command(function())
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)


def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """SimFLE: self-supervised pretraining for facial expression recognition, from a folder of faces to a report."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _nothing() -> None:
    """A group does nothing by itself."""


def app() -> typer.Typer:
    """The command with all its subcommands, and --install-completion for the shell."""
    made = typer.Typer(
        cls=Lazy,
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
    """The command line."""
    run(app())


def script() -> None:
    """The command line as a process of its own."""
    own_process(main)
