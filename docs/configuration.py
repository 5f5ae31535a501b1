"""Write docs/configuration.md from the dataclasses: `python docs/configuration.py`. A test fails if the page is stale.

Names, types, defaults and meanings come from the dataclasses. `RANGES` states the values that the checks allow;
tests/docs/test_docs_configuration.py tries values on both sides of every range.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simfle.config.schema import PretrainConfig
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import Benchmark
from simfle.slurm.config import ClusterConfig

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Configuration

<!-- Written by docs/configuration.py from the dataclasses. Change the dataclasses, then run the script. -->

A configuration combines the defaults below, a YAML file and `key=value` on the command line; later values take
precedence. An error for an unknown key names the nearest key; one for a wrong type or range lists valid values.
Write lists as `[a,b]`, or a single value without brackets. A value may refer to another key, as in
`train.run_dir=runs/${model.method}`. A path may begin with `~`. Text is taken as typed: `train.run_dir="runs/exp #1"`,
`007`
and `yes` are names. In a list, quote text that contains a comma or a bracket.

    simfle pretrain configs/pretrain/faces_cpu.yaml data.shards=[shards/mine] train.steps=200

If the column "range" is empty, the program checks only the type.
"""
SECTIONS: tuple[tuple[str, type, str], ...] = (
    (
        "Pretraining",
        PretrainConfig,
        "`configs/pretrain/*.yaml`; `simfle pretrain`, `simfle slurm pretrain`, `simfle plan`, `simfle bench`. Fields "
        "marked \\* may change between two starts of the same run. The others identify the run; it cannot resume with "
        "another value.",
    ),
    ("Evaluation", EvalConfig, "`configs/eval/*.yaml`; `simfle evaluate`, `simfle slurm eval`."),
    (
        "Benchmark",
        Benchmark,
        "`configs/benchmarks/*.yaml`, or a file of your own: `benchmarks=[mine.yaml=shards/mine]`.",
    ),
    (
        "Cluster",
        ClusterConfig,
        "`configs/cluster/*.yaml`, given with `--cluster`; on the command line of `simfle slurm`, `cluster.KEY=VALUE`. "
        "Explanations: [Slurm](../SLURM.md).",
    ),
)
AT_LEAST_0, AT_LEAST_1, ABOVE_0, SHARE = "at least 0", "at least 1", "above 0", "0 to 1"
RISING = "two rising numbers above 0"
RANGES: dict[type, dict[str, str]] = {
    PretrainConfig: {
        "data.backend": "auto, opencv, dali",
        "data.shuffle_window": AT_LEAST_1,
        "data.decode_threads": AT_LEAST_0,
        "data.prefetch_batches": AT_LEAST_1,
        "data.canonical_streams": AT_LEAST_1,
        "data.max_corrupt_fraction": SHARE,
        "data.cache_gb": ABOVE_0,
        "data.pair": "image, clip",
        "data.pair_window": AT_LEAST_0,
        "views.size": AT_LEAST_1,
        "views.face_size": "a multiple of `model.facemae.patch_size`",
        "views.scale": f"{RISING} and at most 1",
        "views.ratio": RISING,
        "views.blur_sigma": RISING,
        "views.flip_prob": SHARE,
        "views.color_jitter_prob": SHARE,
        "views.grayscale_prob": SHARE,
        "views.brightness": AT_LEAST_0,
        "views.contrast": AT_LEAST_0,
        "views.saturation": AT_LEAST_0,
        "views.hue": "0 to 0.5",
        "model.method": "simfle, byol, simsiam, simclr, moco, swav, vicreg, mae, dino, care, fra",
        "model.backbone": "a name that timm knows",
        "model.output_stride": "0, 8, 16, 32, as the network can",
        **{f"model.{name}": AT_LEAST_1 for name in ("head_hidden_dim", "head_out_dim", "predictor_hidden_dim")},
        "model.ema_momentum": SHARE,
        "model.ema_schedule": "constant, cosine",
        "model.mask_groups": "divides the backbone's channels",
        "model.grouping_init": "repaired, reference",
        "model.distillation": "reference, predict",
        "model.distillation_temperature": ABOVE_0,
        "model.mean": "three numbers",
        "model.std": "three numbers above 0",
        **{
            f"model.facemae.{name}": AT_LEAST_1
            for name in ("patch_size", "depth", "num_heads", "decoder_depth", "decoder_num_heads")
        },
        "model.facemae.embed_dim": "a multiple of its heads and of 4",
        "model.facemae.decoder_embed_dim": "a multiple of its heads and of 4",
        "model.facemae.mask_ratio": "leaves at least one patch visible and one masked",
        "model.facemae.masking": "semantic, random",
        "model.contrastive.temperature": ABOVE_0,
        "model.contrastive.queue_size": AT_LEAST_1,
        "model.contrastive.shuffle_bn_splits": AT_LEAST_1,
        "model.contrastive.prototypes": AT_LEAST_1,
        "model.contrastive.sinkhorn_epsilon": "at least 0.025",
        "model.contrastive.sinkhorn_iterations": AT_LEAST_1,
        "model.dino.prototypes": AT_LEAST_1,
        **{
            f"model.dino.{name}": ABOVE_0
            for name in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature")
        },
        **{f"model.dino.{name}": SHARE for name in ("warmup_fraction", "center_momentum", "frozen_fraction")},
        "model.care.embed_dim": "a multiple of its heads and of 4",
        "model.care.depth": AT_LEAST_1,
        "model.care.num_heads": AT_LEAST_1,
        "model.care.attention_weight": AT_LEAST_0,
        "model.fra.regions": "at least 2",
        "model.fra.embed_dim": "a multiple of its heads and of 4",
        "model.fra.num_heads": AT_LEAST_1,
        "model.fra.mask_temperature": ABOVE_0,
        "model.fra.temperature": ABOVE_0,
        "model.fra.region_weight": AT_LEAST_0,
        "model.fra.relation_weight": AT_LEAST_0,
        "optim.name": "sgd, adamw, lars",
        "optim.momentum": "at least 0, below 1",
        "optim.betas": "two numbers, at least 0, below 1",
        **{
            f"optim.{name}": AT_LEAST_0
            for name in (
                "lr",
                "weight_decay",
                "warmup_steps",
                "max_grad_norm",
                "predictor_lr_scale",
                "trust_coefficient",
            )
        },
        "train.seed": "0 to 4294967295",
        "train.global_batch": "divisible by the processes",
        "train.micro_batch": "auto, 0, or at least 2 and a divisor of global batch / processes",
        "train.zero_stage": "auto, 0, 1, 2, 3",
        "train.precision": "bf16, fp32",
        "train.device": "auto, cpu, cuda",
        "train.steps": AT_LEAST_0,
        "train.hang_timeout": AT_LEAST_0,
        "train.stop_after_step": AT_LEAST_0,
        "train.log_every": AT_LEAST_1,
        "train.log_images_every": AT_LEAST_0,
        "train.checkpoint_every": AT_LEAST_1,
        "train.keep_checkpoints": AT_LEAST_1,
        "monitor.probe_every": AT_LEAST_0,
        "monitor.fit_samples": "at least 100",
        "monitor.max_seconds": "at least 1, at most half of `train.hang_timeout`",
    },
    EvalConfig: {
        "min_class_count": AT_LEAST_1,
        "val_fraction": "above 0, at most 0.5",
        "bootstrap_samples": AT_LEAST_1,
        "forward_batch": AT_LEAST_1,
        "image_size": AT_LEAST_0,
        "threads": AT_LEAST_0,
        "seeds": "at least one, each once, from 0 on",
        "decoder": "auto, opencv, dali, ffcv",
        "device": "auto, cpu, cuda",
        "linear_fast.lrs": "numbers above 0, at least one",
        "linear_fast.weight_decays": "numbers from 0 on, at least one",
        "landmarks.lrs": "numbers above 0, at least one",
        "knn.ks": "numbers from 1 on, at least one",
        "knn.temperature": ABOVE_0,
        "affect.ridge_alphas": "numbers above 0, at least one",
        "cam.radius": ABOVE_0,
        **{f"{part}.epochs": AT_LEAST_1 for part in ("linear", "linear_fast", "finetune", "scratch", "landmarks")},
        **{f"{part}.batch": AT_LEAST_1 for part in ("linear", "linear_fast", "landmarks")},
        "linear.lr": ABOVE_0,
        **{
            f"{part}.{name}": text
            for part in ("finetune", "scratch")
            for name, text in (
                ("batch", "at least 2"),
                ("lr", ABOVE_0),
                ("layer_decay", "above 0, at most 1"),
                ("smoothing", "at least 0, below 1"),
                ("balance", "sampling, weights, none"),
                ("jitter", SHARE),
            )
        },
    },
    Benchmark: {
        "metric": "accuracy, balanced_accuracy, macro_f1",
        "val_fraction": "above 0, at most 0.5",
        "test_fraction": "above 0, at most 0.5",
        "folds": "0, or at least 2",
        "min_class_count": AT_LEAST_1,
    },
    ClusterConfig: {
        "nodes": AT_LEAST_1,
        "min_nodes": "0 to nodes",
        "gpus_per_node": AT_LEAST_0,
        "tasks_per_node": AT_LEAST_1,
        "cpus_per_task": AT_LEAST_0,
        "signal_seconds": "at least 10, less than `time`",
        "max_requeues": AT_LEAST_0,
        "max_consecutive_failures": AT_LEAST_1,
        "time": "30, 12:00:00, 2-00:00:00",
        "extra_sbatch": "name or name=value, each",
        "env": "NAME=VALUE, each",
    },
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One leaf field: dotted name, type and default as written by a user, help, and whether it may change on resume."""

    name: str
    kind: str
    default: str
    help: str
    free: bool


def fields(schema: type, prefix: str = "", value: Any = None) -> Iterator[Field]:
    """Yield the leaf fields of a configuration, in their order."""
    value = schema() if value is None else value
    for item in dataclasses.fields(schema):
        found = getattr(value, item.name)
        if dataclasses.is_dataclass(item.type):
            yield from fields(type(found), f"{prefix}{item.name}.", found)
        else:
            kind = item.type.__name__ if isinstance(item.type, type) and "[" not in str(item.type) else str(item.type)
            free = bool(item.metadata.get("resume_safe"))
            yield Field(f"{prefix}{item.name}", kind, written(found), item.metadata["help"], free)


def written(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if value == "" or ":" in str(value) else str(value)


def table(schema: type) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| field | type | default | meaning | range |"
    yield "|---|---|---|---|---|"
    for field in fields(schema):
        name = f"`{field.name}`" + (" \\*" if field.free else "")
        text = field.help.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
        yield f"| {name} | {field.kind} | `{field.default}` | {text} | {RANGES[schema].get(field.name, '')} |"


def page() -> str:
    """Return the page."""
    lines = [HEAD]
    for title, schema, text in SECTIONS:
        lines += [f"## {title}", "", text, "", *table(schema), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
