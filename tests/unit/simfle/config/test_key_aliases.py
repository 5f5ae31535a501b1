"""Names of other tools lead to the right field."""

import pytest

from shards.errors import UserError
from simfle.config.key_aliases import ALIASES
from simfle.config.parsing import keys
from simfle.config.schema import PretrainConfig, load
from simfle.eval.config import EvalConfig
from simfle.slurm.config import ClusterConfig


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("lr=0.1", "optim.lr"),
        ("train.lr=0.1", "optim.lr"),
        ("batch_size=256", "train.global_batch"),
        ("train.batch_size=256", "train.global_batch"),
        ("epochs=10", "train.epochs"),
        ("num_workers=8", "data.decode_threads"),
        ("output_dir=runs/a", "train.run_dir"),
        ("max_steps=100", "train.steps"),
        ("weight_decay=0.1", "optim.weight_decay"),
        ("accum_iter=4", "train.micro_batch"),
        ("save_freq=5", "train.checkpoint_every"),
        ("seed=1", "train.seed"),
        ("pretrained=true", "model.init"),
        ("init_from=runs/a", "model.init"),
        ("train.resume_from=runs/a", "model.init"),
        ("ckpt_path=a.ckpt", "model.init"),
        ("extend=true", "train.extend"),
        ("amp=true", "train.precision"),
        ("clip_grad=1", "optim.max_grad_norm"),
        ("model.patch_size=8", "model.facemae.patch_size"),
        ("train.sed=3", "train.seed"),
        ("train.color_jitter_prob=0", "views.color_jitter_prob"),
    ],
)
def test_an_alias_leads_to_the_field(word: str, field: str) -> None:
    with pytest.raises(UserError) as found:
        load(PretrainConfig, None, [word])
    assert str(found.value).endswith(f"did you mean {field}?")


@pytest.mark.parametrize(
    ("schema", "word", "field"),
    [
        (EvalConfig, "batch_size=64", "forward_batch"),
        (EvalConfig, "num_workers=4", "threads"),
        (EvalConfig, "img_size=96", "image_size"),
        (ClusterConfig, "num_nodes=4", "nodes"),
        (ClusterConfig, "environment=[A=1]", "env"),
    ],
)
def test_an_alias_depends_on_the_schema(schema: type, word: str, field: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {field}"):
        load(schema, None, [word])


def test_aliases_name_fields() -> None:
    assert set(ALIASES) <= {*keys(PretrainConfig), *keys(EvalConfig), *keys(ClusterConfig)}
