"""A small evaluation result."""

from dataclasses import replace

from simfle.eval.analysis.results import Result, Samples


def result(**values: object) -> Result:
    """Return a small result of two classes."""
    made = Result(
        backbone={"id": "run-online-1a2b3c4d", "kind": "online", "model": "resnet18", "sha256": "1a2b", "card": {}},
        benchmark="rafdb",
        protocol="linear",
        seed=0,
        kind="classes",
        classes=["anger", "joy"],
        metric="balanced_accuracy",
        metrics={"balanced_accuracy": 0.75, "accuracy": 2 / 3},
        chosen=[{"epoch": 3, "balanced_accuracy": 0.5}],
        best_on_test={"epoch": 2, "balanced_accuracy": 1.0},
        data={"test": {"samples": 3}},
        samples=Samples(["a", "b", "c"], ["p", "p", "q"], [0, 1, 0], [0, 1, 1]),
        settings={"epochs": 5},
        identity="0123",
        command=["python", "launchers/evaluate.py"],
        config={"seeds": [0]},
        versions={"torch": "2"},
        git=None,
    )
    return replace(made, **values)  # type: ignore[arg-type]
