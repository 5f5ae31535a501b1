"""model.compile=auto: true on a GPU alone, where it can work; the log says why not."""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError
from simfle.train.auto_compile import resolve_compile
from simfle.train.preflight import check

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "words", "expected", "reason"),
    [
        (CUDA, ["model.compile=auto"], "true", "true; the first steps take minutes"),
        (CUDA, ["model.compile=auto", "train.zero_stage=2"], "true", "true"),
        (CUDA, ["model.compile=auto", "train.zero_stage=3"], "false", "ZeRO stage 3 replaces parameters"),
        (CUDA, ["model.compile=auto", "model.activation_checkpointing=true"], "false", "activation_checkpointing"),
        (CPU, ["model.compile=auto"], "false", "there is no GPU"),
        (CUDA, [], "false", ""),
        (CPU, ["model.compile=graphs"], "graphs", ""),
    ],
)
def test_auto_becomes_true_or_false_with_a_reason(
    device: torch.device, words: list[str], expected: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = resolve_compile(load(PretrainConfig, None, words), device)
    assert found.model.compile == expected
    assert reason in caplog.text
    assert bool(reason) == bool(caplog.records)


def test_without_triton_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_compile(load(PretrainConfig, None, ["model.compile=auto"]), CUDA).model.compile == "false"


def test_a_yaml_boolean_is_accepted_and_stage_3_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {compile: true}\ndata: {shards: [faces]}\ntrain: {zero_stage: 3}\n")
    config = load(PretrainConfig, file, [])
    assert config.model.compile == "true"
    with pytest.raises(UserError, match=r"model\.compile=true with train\.zero_stage=3"):
        check(config)
    with pytest.raises(UserError, match=r"model\.compile=graphs with train\.zero_stage=3"):
        check(load(PretrainConfig, file, ["model.compile=graphs"]))
