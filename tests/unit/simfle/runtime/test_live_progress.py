"""Progress in a notebook's kernel: one line below the cell, rewritten in place, without ipywidgets."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

# A build, then a training run, as simfle.pretrain prints them.
CODE = """
import time
from simfle.runtime.build_meter import ProgressMeter
from simfle.train.telemetry.bottleneck import ThroughputFacts
from simfle.train.telemetry.progress import ProgressReporter

with ProgressMeter() as meter:
    for done in range(101):
        meter("images", done, 100)
with ProgressMeter():
    pass  # nothing to build: no line
with ProgressReporter(30, 0, enabled=True) as progress:
    progress.start("run folder runs/[red]", ThroughputFacts("cpu", "opencv", 1, 1, "fp32"))
    for step in range(1, 31):
        time.sleep(0.01)
        progress.advance(step, {"total": 3 / step}, 100.0, 0.01, 0.0, {})
"""


def test_lines_are_rewritten_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    updates: list[str] = []
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)]), timeout=600, kernel_name="python3"
    )
    process = client.process_message

    def seen(message: dict, *rest: object) -> object:
        if message["msg_type"] == "update_display_data":
            updates.append(message["content"]["data"]["text/plain"])
        return process(message, *rest)

    monkeypatch.setattr(client, "process_message", seen)
    client.execute()
    outputs = client.nb.cells[0].outputs
    texts = [output["data"]["text/plain"].strip() for output in outputs if output.output_type == "display_data"]
    assert [text.split("  ")[0].split(" ━")[0] for text in texts[:3]] == [
        "images",
        "run folder runs/[red]",
        "step 30/30",
    ]
    assert "100/100" in texts[0]
    assert "loss 0.1000" in texts[2]
    assert sum("step" in text for text in updates) > 1  # it was rewritten while it ran
    assert "\n" not in "".join(updates)
    assert not any("ipywidgets" in str(output) for output in outputs)
