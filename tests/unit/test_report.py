"""The page about a run: complete, self-contained, escaped, the numbers those of the files."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml

from simfle.config import PretrainConfig
from simfle.errors import UserError
from simfle.report.gather import POINTS, read_run
from simfle.report.report import Extras, Stage, write_report

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, text, and tags that were never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def metrics(step: int) -> dict[str, Any]:
    losses = {"similarity": 4 / step, "reconstruction": 1.0, "distillation": 0.1, "grouping": 1e6 / step**2}
    losses["total"] = 5 / step
    return {"step": step, "epoch": step / 10, "samples": 8 * step, "losses": losses, "images_per_second": 123.4}


def results(
    kinds: tuple[str, ...] = ("online", "random"), classes: tuple[str, ...] = ("anger", "joy")
) -> dict[str, Any]:
    counts = {"samples": 20, "people": 5, "counts": [10, 10]}
    rows, summary = [], []
    for place, kind in enumerate(kinds):
        score = 0.817 - 0.2 * place
        about = {"backbone": "x", "kind": kind, "model": "resnet18", "protocol": "linear"}
        shared = {
            **about,
            "balanced_accuracy": score,
            "accuracy": 0.5,
            "macro_f1": 0.4,
            "interval": [score - 0.05, 0.9],
        }
        rows += [{**shared, "seed": seed, "recall": [0.25 + 0.5 * seed, 1.0], "confusion": []} for seed in (0, 1)]
        summary.append({**shared, "seeds": 2, "spread": 0.031})
    data = {"classes": list(classes), "left_out": {"fear": 8}, "chance": 0.5}
    data |= {"train": {"split": "train", **counts}, "test": {"split": "test", **counts}}
    versions = {"torch": "2"}
    command = ["python", "launchers/evaluate.py", "out=here"]
    return {"format": 1, "command": command, "config": {"calibrate": True}, "versions": versions, "data": data} | {
        "rows": rows,
        "summary": summary,
        "git": None,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(PretrainConfig())))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics(step)) + "\n" for step in (10, 20, 30)))
    (folder / "versions.json").write_text('{"torch": "2.15"}')
    for step in (10, 20, 30, 40):
        cv2.imwrite(str(folder / "images" / f"step-{step:08d}.png"), np.full((8, 24, 3), step, np.uint8))
    (folder / "results.json").write_text(json.dumps(results()))
    return folder


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text()
    page = Page(text)
    page.close()
    assert page.open == []
    return text, page


def test_nothing_is_fetched_from_anywhere(run: Path) -> None:
    text, page = read(write_report(run))
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, value
    assert not page.all("script")
    assert not page.all("iframe")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_pictures_are_the_first_a_middle_and_the_last(run: Path) -> None:
    _, page = read(write_report(run))
    uris = [image["src"] or "" for image in page.all("img")]
    wanted = [(run / "images" / f"step-{step:08d}.png").read_bytes() for step in (10, 30, 40)]
    assert [base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in uris] == wanted
    assert "12 of 49 patches" in page.text


def test_charts_are_svg_that_scales_and_says_what_it_shows(run: Path) -> None:
    text, _ = read(write_report(run))
    charts = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]
    assert len(charts) == 6  # the comparison and five losses
    for chart in charts:
        assert "viewBox" in chart.attrib
        assert "width" not in chart.attrib
        assert chart.attrib["aria-label"]
    labels = [chart.attrib["aria-label"] for chart in charts]
    assert "similarity loss over 30 steps, last value 0.1333" in labels
    identifiers = re.findall(r'id="([^"]+)"', "".join(re.findall(r"<clipPath[^>]*>", text)))
    assert len(set(identifiers)) == len(identifiers)  # or one chart would be clipped by another's frame


def test_the_table_holds_the_results(run: Path) -> None:
    _, page = read(write_report(run))
    words = re.sub(r"\s+", " ", page.text)
    for expected in ("81.7 %", "61.7 %", "76.7 % to 90.0 %", "± 3.1 % (2)", "fear (8)", "chance is 50.0 %", "50.0 %"):
        assert expected in words, expected
    assert "python launchers/evaluate.py out=here" in words
    assert f"python launchers/pretrain.py {run / 'config.yaml'}" in words


def test_people_are_named_only_where_they_are_known(run: Path) -> None:
    assert "20 images of 5 other people; 2 classes" in re.sub(r"\s+", " ", read(write_report(run))[1].text)
    found = results()
    found["data"]["test"]["people"] = None
    (run / "results.json").write_text(json.dumps(found))
    words = re.sub(r"\s+", " ", read(write_report(run))[1].text)
    assert "20 images; 2 classes" in words
    assert "bootstrap over images" in words


def test_text_from_files_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>&$x_1$"
    (run / "results.json").write_text(json.dumps(results(("online", evil), (evil, "joy"))))
    config = asdict(PretrainConfig())
    config["model"]["backbone"] = evil
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, page = read(write_report(run))
    assert not page.all("script")
    assert page.text.count(evil) >= 4


def test_extras_are_told(run: Path) -> None:
    sheet = run / "images" / "step-00000010.png"
    stage = Stage("shards", "draw faces", "out/shards", 12.3)
    done = Stage("export", "write", "out/export", None)
    extras = Extras("A title", "An opening.", [stage, done], ["python a b"], sheet, "All drawn.", "No labels.")
    (run / "results.json").unlink()
    _, page = read(write_report(run, run / "deep" / "page.html", extras=extras))
    for expected in (
        "A title",
        "An opening.",
        "draw faces",
        "12",
        "done before",
        "python a b",
        "All drawn.",
        "No labels.",
    ):
        assert expected in page.text


def test_a_run_without_results_and_pictures(run: Path) -> None:
    (run / "results.json").unlink()
    for picture in (run / "images").iterdir():
        picture.unlink()
    (run / "versions.json").unlink()
    _, page = read(write_report(run))
    assert "similarity" in page.text
    assert not page.all("img")
    assert not page.all("table")


def test_a_line_cut_short_is_passed_over(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss')
    assert read_run(run).last["step"] == 30


def test_long_curves_are_averaged_down(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(metrics(step)) + "\n" for step in range(1, 4 * POINTS + 2)))
    found = {curve.name: curve for curve in read_run(run).curves}["similarity"]
    assert len(found.values) <= POINTS
    assert found.steps[0] == 3
    assert found.values[0] == pytest.approx(np.mean([4 / step for step in range(1, 6)]))
    assert found.steps[-1] > 4 * POINTS - 2


def test_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        write_report(run, results=tmp_path / "other.json")
    (run / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        write_report(run)
    (run / "results.json").unlink()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no metrics yet"):
        write_report(run)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_command(run: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/report.py"), str(run)]
    done = subprocess.run([*tool, "--out", str(run / "page.html")], capture_output=True, text=True, check=True)
    assert done.stdout == f"report: {run / 'page.html'}\n"
    (run / "config.yaml").unlink()
    failed = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: report: ")
    assert failed.stderr.count("\n") == 1
