"""Read the files of runs and jobs: content that no run wrote counts as missing."""

import json
from pathlib import Path

import pytest

from shards.io.jsonl import dataclass_from_json, iter_valid_lines, loads_object
from simfle.runtime import run_files
from simfle.slurm import events, requeue

LINE = {"step": 3, "samples": 24, "losses": {"total": 1.5}, "lr": 0.1}
END = {"rank": 0, "host": "n1", "kind": "done", "words": "finished"}


@pytest.mark.parametrize(
    "other",
    [
        *(
            {"step": "3"},
            {"step": True},
            {"step": -1},
            {"samples": 1.5},
            {"losses": None},
            {"losses": {"total": "low"}},
        ),
        *({"lr": [0.1]}, {"lr": 10**400}, {"lr": 1e300}),
    ],
)
def test_a_line_that_no_run_wrote_is_passed_over(other: dict) -> None:
    text = json.dumps(LINE) + "\n" + json.dumps(LINE | other) + "\n[1]\n" + json.dumps(LINE)[:-4]
    assert run_files.parse_metrics(text) == [LINE]


def test_a_loss_that_is_not_finite_is_a_line_like_others() -> None:
    assert len(run_files.parse_metrics('{"step": 1, "losses": {"total": NaN, "similarity": Infinity}}')) == 1


def test_steps_are_read_from_names() -> None:
    names = ("step-00000010", "step-00000010.png", "step-", "step-x", "step-1e3", "step-²", "step-10.partial")
    assert [run_files.step_from_name(Path(name)) for name in names] == [10, 10, None, None, None, None, None]
    copies = ("step-10", "step-000000010", "step-0000010.png")
    assert [run_files.step_from_name(Path(name)) for name in copies] == [None] * 3
    assert run_files.step_from_name(Path("step-100000000")) == 10**8


def test_an_event_without_its_facts_is_passed_over_and_a_job_is_no_option(tmp_path: Path) -> None:
    events.append_event(tmp_path, "submitted", job="12_3", nodes=1)
    events.append_event(tmp_path, "submitted", job="--cluster=other")
    events.append_event(tmp_path, "started", job="12")
    events.append_event(tmp_path, "exploded", job="12")
    assert [event["job"] for event in events.events(tmp_path)] == ["12_3"]


def test_a_damaged_word_counts_as_none(tmp_path: Path) -> None:
    events.write_task_exit(tmp_path, 0, events.TaskExit(**END))
    for number, text in enumerate(
        ('{"rank": 1', "[]", json.dumps(END | {"kind": "odd"}), json.dumps(END | {"rank": "1"}))
    ):
        (tmp_path / "ends" / f"0-{number + 1:05d}.json").write_text(text)
    found = events.task_exits(tmp_path, 0)
    assert [end.rank for end in found] == [0]
    assert requeue.decide(found, 2, 1).requeue  # rank 1 has left no word: killed, or its node lost


def test_objects_and_dataclasses_of_json() -> None:
    assert list(iter_valid_lines('{"a": 1}\n3\n{"b": ')) == [{"a": 1}]
    assert dataclass_from_json(events.TaskExit, json.dumps(END)) == events.TaskExit(**END)
    for text in (json.dumps(END | {"more": 1}), json.dumps({"rank": 0}), "[" * 100_000):
        with pytest.raises(ValueError, match=r"missing, unknown|too deeply"):
            dataclass_from_json(events.TaskExit, text)
    with pytest.raises(ValueError, match="not a JSON object"):
        loads_object("[]")
