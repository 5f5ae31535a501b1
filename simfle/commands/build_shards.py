"""tools/build_shards.py: faces as their users have them -> shards."""

import dataclasses
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from simfle.commands.app import run
from simfle.commands.build_remote import Url, check_output, execute_remote, fetch, place
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.build import Report
    from shards.encode import EncodeOptions
    from shards.entry import Entry, Rejected
    from shards.request import Build

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Turn faces into shards: tar + index + manifest, every image decoded once, every rejected one counted and "
    "listed. The same input gives the same bytes; an interrupted build goes on when the same command is given again.",
)


def option(default: Any, text: str, kind: Any = None) -> Any:
    """A field of Common with its help text; kind: its type, where the default does not tell."""
    return dataclasses.field(default=default, metadata={"help": text, "kind": kind or type(default)})


@dataclass(frozen=True)
class Common:
    """The options that all sources share."""

    val_fraction: float = option(0.0, "Share of the groups of split train that becomes split val.")
    test_fraction: float = option(0.0, "Share of the groups of split train that becomes split test.")
    group_pattern: str = option(
        "", r"Regular expression with one group that finds the person in a path, such as '^(.*)_\d+\.jpg$'."
    )
    split_seed: int = option(0, "Another seed puts other groups into val and test.")
    labels: str = option("", "Label names in the order of their numbers, joined by commas; others are rejected.")
    keep_unlabelled: bool = option(False, "Keep images without a label where labels are asked for.")
    quality: int = option(95, "JPEG quality of images that have to be written anew.")
    max_pixels: int = option(100_000_000, "Larger images are rejected.")
    strip_metadata: bool = option(
        True,
        "Take places, names, comments and thumbnails out of JPEGs that are kept; their pixels stay byte for byte. "
        "Images that are written anew never have any.",
    )
    crop: float | None = option(
        None,
        "Crop by the corpus's own box with this share of its sides around it, such as 0.25. Boxes and landmarks count "
        "in the pixels that the file stores; where EXIF turns the image, they are turned with it.",
        float | None,
    )
    shorter_side: int = option(0, "Shrink larger images so that their shorter side has so many pixels; 0: never.")
    align: bool = option(
        False,
        "Find the faces in uncropped photos (YuNet) and cut out each with level eyes, --crop (or 0.25) around it. "
        "Where the corpus gives a box or landmarks, only its own face is taken.",
    )
    min_face: int = option(32, "--align: smaller faces do not count, pixels of the photo.")
    min_score: float = option(0.8, "--align: less certain faces do not count, 0.5 to 1.")
    most_faces: int = option(
        0, "--align: most faces of one photo, the largest first; 0: all. 1 suits photos that have one label each."
    )
    face_model: Path | None = option(  # noqa: RUF009 - a field
        None, "--align: YuNet's .onnx file; default: the one installed.", Path | None
    )
    exclude: list[str] | None = option(  # noqa: RUF009 - a field
        None,
        "SHARDS or SHARDS:SPLIT, such as a benchmark's test split, repeatable: exact and near duplicates of its images "
        "are rejected, and people whose names are there.",
        list[str] | None,
    )
    exclude_distance: int = option(8, "--exclude: most differing bits of 64 of near duplicates, 0 to 16.")
    exclude_images_only: bool = option(
        False, "--exclude: people do not count, as where two corpora number theirs independently."
    )
    work: Path | None = option(  # noqa: RUF009 - a field
        None,
        "Folder for downloads of sources given by URL, and for shards before they are uploaded to one; default: in "
        "~/.cache/simfle/build.",
        Path | None,
    )
    shard_samples: int = option(2048, "Most entries in one shard.")
    corpus: str = option("", "Name of the corpus in the manifest; default: the name of the folder or list.")
    terms: str = option("", "Terms of use of the images, kept in the manifest.")
    workers: int = option(0, "Processes; 0: as many as there are cores.")


@dataclass(frozen=True)
class Corpus:
    """What a subcommand makes of its own arguments. roots: folders that the output must not lie in.

    notes: what the source has to say once it has been gone through; labels: their order where --labels is not given;
    about: called with the samples written by (split, label) before the shards appear; what it gives goes into the
    manifest; finish: called with the shards that stand, before the report is shown; photos: images are whole photos, of
    which an entry means one face, by its box.
    """

    entries: "Iterable[Entry | Rejected]"
    name: str
    options: dict[str, Any]
    labelled: bool = False
    roots: tuple[Path, ...] = ()
    notes: Callable[[], list[str]] = list
    terms: str = ""
    labels: tuple[str, ...] = ()
    about: "Callable[[Build, Counter[tuple[str, str]]], dict[str, Any]]" = lambda request, written: {}
    finish: "Callable[[Build, Report], None]" = lambda request, report: None
    photos: bool = False


def source(function: Callable[..., Corpus]) -> Callable[..., Corpus]:
    """Make a subcommand of a function: its own arguments, then OUT, then the common options."""
    own = inspect.signature(function).parameters
    shared = dataclasses.fields(Common)

    @wraps(function)
    def command(**values: Any) -> None:
        common = Common(**{item.name: values[item.name] for item in shared})
        out = values["out"]
        if isinstance(out, Url):
            check_output(out)  # before anything is downloaded
        given = {name: fetch(item, common.work) if isinstance(item := values[name], Url) else item for name in own}
        (execute_remote if isinstance(out, Url) else execute)(out, function(**given), common)

    arguments = [_place(item) for item in own.values() if item.default is item.empty]
    options = [item for item in own.values() if item.default is not item.empty]
    out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of shards to make, or its URL.", parser=place)]
    positional = [*arguments, inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, annotation=out)]
    extra = [_parameter(item) for item in shared]
    keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (*positional, *options, *extra)]
    command.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in keyword}
    app.command(function.__name__)(command)
    return function


def _place(item: inspect.Parameter) -> inspect.Parameter:
    """An argument that is a path may be a URL."""
    kind, about = get_args(item.annotation)
    if kind is Path:
        about.parser = place
    return item


def _parameter(item: "dataclasses.Field[Any]") -> inspect.Parameter:
    """A field of Common as a parameter of a subcommand."""
    kind, about = item.metadata["kind"], typer_option(item.name, item.metadata["help"], item.default)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=Annotated[kind, about]
    )


def typer_option(name: str, text: str, default: Any) -> Any:
    """Switches get no --no- twin, unless they are on by default."""
    flag = f"--{name.replace('_', '-')}"
    names = [f"{flag}/--no-{flag[2:]}" if default else flag] if isinstance(default, bool) else []
    return typer.Option(*names, help=text)


def execute(out: Path, corpus: Corpus, common: Common) -> None:
    """Build what was asked for and tell how it went."""
    from simfle.commands.build_report import show

    request = make_request(out, corpus, common)
    for root in corpus.roots:
        if out.resolve().is_relative_to(root.resolve()):
            raise UserError(f"the output {out} lies inside the source {root}; choose one outside of it")
    report, rate = build_here(request, corpus)
    show(out, report, rate)


def build_here(request: "Build", corpus: Corpus) -> "tuple[Report, float]":
    """Build into the local folder of the request; also the images/s of its last stage."""
    from shards.build import build
    from simfle.commands.build_report import Meter

    if request.terms:
        typer.echo(f"terms of use of {request.corpus}: {request.terms}")
    if corpus.photos and request.encode.crop is None and request.encode.align is None:
        typer.echo(
            f"note: images of {corpus.name} are whole photos that may show several people, and their boxes say whose "
            "face is meant: --crop 0.25 cuts it out with a quarter of its sides around it, --align levels the eyes too"
        )
    with Meter() as meter:
        try:
            report = build(request, corpus.entries, meter, partial(corpus.about, request))
        except KeyboardInterrupt:
            if request.partial.exists():
                typer.echo(f"what is finished is kept in {request.partial}; the same command goes on there", err=True)
            raise
    report.notes += corpus.notes()
    corpus.finish(request, report)
    return report, meter.rate


def make_request(out: Path, corpus: Corpus, common: Common) -> "Build":
    """What the command line asks for."""
    from shards.exclude import Exclude, parse_excluded
    from shards.request import Build
    from shards.rules import Rules, normal_label

    if common.group_pattern and corpus.options.get("columns", {}).get("group"):
        raise UserError("--group-column and --group-pattern both name the person; give one of them")
    names = tuple(normal_label(name) or "" for name in common.labels.split(",")) if common.labels else corpus.labels
    if "" in names:
        raise UserError(f"--labels {common.labels!r} has an empty name; give them as happiness,neutral,anger")
    return Build(
        out=out,
        corpus=common.corpus or corpus.name,
        source=corpus.options,
        rules=Rules(
            labels=names,
            labelled=corpus.labelled and not common.keep_unlabelled,
            group_pattern=common.group_pattern,
            val_fraction=common.val_fraction,
            test_fraction=common.test_fraction,
            split_seed=common.split_seed,
        ),
        encode=_encode_options(common),
        face_model=common.face_model,
        exclude=Exclude(
            tuple(map(parse_excluded, common.exclude or ())), common.exclude_distance, not common.exclude_images_only
        ),
        shard_samples=common.shard_samples,
        terms=common.terms or corpus.terms,
        workers=common.workers if common.workers > 0 else len(os.sched_getaffinity(0)),
    )


def _encode_options(common: Common) -> "EncodeOptions":
    from shards.align import AlignOptions
    from shards.encode import EncodeOptions

    return EncodeOptions(
        quality=common.quality,
        max_pixels=common.max_pixels,
        strip_metadata=common.strip_metadata,
        crop=common.crop,
        shorter_side=common.shorter_side,
        align=AlignOptions(common.min_face, common.min_score, common.most_faces) if common.align else None,
    )


@cache
def commands() -> typer.Typer:
    """The app with all subcommands."""
    from simfle.commands.build_generic import add_generic
    from simfle.commands.build_known import add_known  # which build on this file

    add_generic()
    add_known()
    return app


def main() -> None:
    """The command line."""
    run(commands())
