"""Lines of RUN/corrupt_samples.jsonl: those of steps that are computed again are dropped."""

from pathlib import Path

from simfle.train.telemetry.corrupt_log import read_lines


def test_lines_of_later_steps_and_truncated_lines_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "corrupt_samples.jsonl"
    file.write_text('{"step": 4, "id": 7}\n{"step": 5, "id": 8}\n{"step": 6, "id": 9}\n{"step": 4, "i')
    assert [line["id"] for line in read_lines(file, 5)] == [7, 8]
    assert [line["id"] for line in read_lines(file)] == [7, 8, 9]
    assert read_lines(tmp_path / "missing.jsonl") == []
