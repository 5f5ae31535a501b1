"""Every notebook runs from its first cell to its last in an empty folder, and contains no outputs."""

import csv
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
BOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_each_is_run() -> None:
    assert [book.stem for book in BOOKS] == ["cluster", "few_labels", "first_faces"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_no_outputs_are_kept(book: Path) -> None:
    """The committed notebook has no outputs, which could contain faces or local paths."""
    assert book.stat().st_size < 10_000
    for cell in nbformat.read(book, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[NotebookNode]]:
    """Run a notebook in a folder. Returns its text, and all of its outputs, none of which is an error."""
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # !simfle
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    client = NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = re.sub(r"\x1b\[[0-9;?]*\w", "", "".join(output.get("text", "") for output in outputs))  # without colors
    assert not any(output.output_type == "error" for output in outputs)
    assert "error: " not in text  # a command that fails after `!` does not stop the notebook
    return text, outputs


def pictures(outputs: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_first_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, outputs = run("first_faces", tmp_path, monkeypatch)
    assert (tmp_path / "run/export/online/backbone.safetensors").is_file()
    assert pictures(outputs) == 4
    assert "84 faces, " in text
    assert "torch.Size([4, " in text


def test_few_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each face without a label has a prediction."""
    text, outputs = run("few_labels", tmp_path, monkeypatch)
    assert "35 labeled, 49 without label" in text
    assert pictures(outputs) == 1
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(newline="")))
    assert len({row["path"] for row in rows}) == 49
    assert {row["label"] for row in rows} <= {
        *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    }
    assert all(1 / 7 <= float(row["probability"]) + 1e-3 <= 1.001 for row in rows)


def test_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is that of the cluster's settings; the same command ends here, without Slurm."""
    text, _ = run("cluster", tmp_path, monkeypatch)
    assert "#SBATCH --partition=gpu" in text
    assert "#SBATCH --gpus-per-node=8" in text
    assert "module load cuda" in text
    assert "kg CO2e" in text
    assert (tmp_path / "runs/faces/checkpoints/step-00000002").is_dir()
    assert "step        2 of 2 (100%)" in text
