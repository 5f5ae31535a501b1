"""The lines of a run's progress."""

import pytest

from simfle.train.telemetry.progress import ProgressReporter


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            {"total": 112.0, "similarity": 0.25, "grouping": 110.0},
            "loss 112.0000 (similarity 0.25, grouping 110)  8.0",
        ),
        ({"total": 0.5, "contrastive": 0.5}, "loss 0.5000  8.0 images/s"),
    ],
)
def test_the_losses_are_named(capsys: pytest.CaptureFixture[str], losses: dict[str, float], words: str) -> None:
    """Most of SimFLE's total is the grouping: alone it would hide the similarity."""
    ProgressReporter(1, 0, enabled=True).advance(1, losses, 8.0, 1.0, 0.0, {})
    assert f"step 1/1  {words}" in capsys.readouterr().err
