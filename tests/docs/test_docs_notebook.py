"""The notebook runs from its first cell to its last in an empty folder, and contains no outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
BOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_is_one() -> None:
    assert [book.name for book in BOOKS] == ["first_faces.ipynb"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_no_outputs_are_kept(book: Path) -> None:
    """The committed notebook has no outputs, which could contain faces or local paths."""
    assert book.stat().st_size < 10_000
    for cell in nbformat.read(book, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (book,) = BOOKS
    notebook = nbformat.read(book, as_version=4)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # !simfle
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    client = NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    assert (tmp_path / "run/export/online/backbone.safetensors").is_file()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    text = "".join(output.get("text", "") for output in outputs)
    assert "84 faces, " in text
    assert "torch.Size([4, " in text
    assert not any(output.output_type == "error" for output in outputs)
