"""Nothing leaves the machine: no connection but to itself unless a URL is given, and no secret of a URL is written."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from distributed.runs import SETTINGS
from helpers.http_server import served
from PIL import Image

from shards.errors import UserError
from shards.io import urls
from shards.redact import redact_secrets, redact_url
from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig
from simfle.train.run_dir import record_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Loaded by every Python process of the chain. What is not the machine itself is written down, and fails.
HOOK = """
import sys

def look(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "unix"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "urllib.Request":
        host = arguments[0]
    else:
        return
    if host in (None, "", "unix", "localhost", "127.0.0.1", "::1", "0.0.0.0") or host == __import__("os").uname()[1]:
        return
    with open({log!r}, "a") as file:
        file.write(f"{event} {host}\\n")
    raise OSError(f"no network: {event} {host}")

sys.addaudithook(look)
"""
CHAIN = """
import sys
from pathlib import Path
from simfle.commands.shards import build
from simfle.config.schema import PretrainConfig, load

def command(main, *words):
    sys.argv = [main.__module__, *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

people = ["--people", "8", "--images-per-person", "8", "--size", "64", "--workers", "1"]
command(build.main, "procedural", "shards", *people)
from simfle.train.pretrain import pretrain
pretrain(load(PretrainConfig, None, {settings!r}))
from simfle.export.timm import export_backbones
weights = export_backbones(Path("run"))["online"]
from simfle.eval.backbones.load import load_backbone
import torch
print(load_backbone(weights).module(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape)
try:
    import urllib.request
    urllib.request.urlopen("http://192.0.2.1/", timeout=1)
except OSError as error:
    print("refused:", error)
"""
SECRETS = ("hunter2", "alice", "AKIA123", "deadbeef")
LEAKY = "https://alice:hunter2@host.example/faces?X-Amz-Credential=AKIA123&X-Amz-Signature=deadbeef"


def test_a_build_a_run_and_its_backbone_need_no_network(tmp_path: Path) -> None:
    """Also in a network namespace that has nothing but the loopback, where the machine allows to make one."""
    log = tmp_path / "attempts"
    (tmp_path / "sitecustomize.py").write_text(HOOK.replace("{log!r}", repr(str(log))))
    settings = [*SETTINGS, "data.shards=[shards]", "train.run_dir=run", "train.steps=2"]
    (tmp_path / "chain.py").write_text(CHAIN.replace("{settings!r}", repr(settings)))
    command = [sys.executable, "chain.py"]
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    if shutil.which("unshare") and not subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        command = [*alone, *command]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    own |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torch.Size([1, 512])" in done.stdout
    assert "refused:" in done.stdout  # the hook works: the chain's own attempt, its last act, is the only one
    assert log.read_text().splitlines() == ["urllib.Request http://192.0.2.1/"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (LEAKY, "https://host.example/faces"),
        ("HTTPS://alice:hunter2@host/a", "HTTPS://host/a"),
        ("http://host/a@b/c", "http://host/a@b/c"),
        ("s3://AKIA123:hunter2@bucket/faces?sig=deadbeef", "s3://bucket/faces"),
        (
            "abfs://container@account.dfs.core.windows.net/f?sig=deadbeef",
            "abfs://container@account.dfs.core.windows.net/f",
        ),
        ("gs://bucket/faces", "gs://bucket/faces"),
        ("file:///a/b?c@d", "file:///a/b?c@d"),
    ],
)
def test_urls_for_people(url: str, expected: str) -> None:
    assert redact_url(url) == expected


def test_urls_in_plain_values() -> None:
    told = redact_secrets({"command": ["python", f"data.shards=[{LEAKY},shards/b]"], "n": 3, "deep": [(LEAKY, None)]})
    shorter = "https://host.example/faces"
    assert told == {"command": ["python", f"data.shards=[{shorter},shards/b]"], "n": 3, "deep": [(shorter, None)]}


def test_a_run_does_not_write_down_what_is_secret_in_its_urls(tmp_path: Path) -> None:
    config = PretrainConfig(data=DataConfig(shards=[LEAKY, "shards/b"]), train=TrainConfig(run_dir=str(tmp_path)))
    record_config(tmp_path, config)
    record_config(tmp_path, config)  # and takes the same command for the same run again
    written = "".join(file.read_text() for file in tmp_path.iterdir())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["shards"] == [
        "https://host.example/faces",
        "shards/b",
    ]
    assert not [secret for secret in SECRETS if secret in written]


def test_errors_do_not_repeat_what_is_secret_in_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0.0)

    def repeats() -> None:
        raise OSError(f"cannot GET {LEAKY} as alice:hunter2")

    with pytest.raises(UserError) as told:
        urls.with_retries(LEAKY, repeats)
    assert "host.example" in str(told.value)
    assert not [secret for secret in SECRETS if secret in str(told.value)]
    with pytest.raises(UserError) as told:  # urllib takes a password for a port, and says which
        urls.read_url("http://alice:hunter2@127.0.0.1/x?sig=deadbeef")
    assert not [secret for secret in SECRETS if secret in str(told.value)]


def test_a_build_from_a_signed_url_leaves_no_signature(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(4):
            picture = io.BytesIO()
            Image.new("RGB", (32, 32), (number, 0, 0)).save(picture, "JPEG")
            archive.writestr(f"{number}.jpg", picture.getvalue())
    with served(tmp_path) as server:
        words = [f"{server.url}/a.zip?X-Amz-Signature=deadbeef", "out", "--work", "work", "--workers", "1"]
        command = [sys.executable, str(ROOT / "tools" / "build_shards.py"), "archive", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["entries"] == 4
    assert "deadbeef" not in done.stdout + done.stderr
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in left if b"deadbeef" in file.read_bytes() or "deadbeef" in str(file)]
