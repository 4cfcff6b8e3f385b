"""Fault 15: cron's environment: no stdin, no home, no locale (docker/cli 2542).

docker/cli broke when standard input was closed; programs that ask for `~` or trust the locale
break under cron. The records are UTF-8 whatever the environment says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLOSED_STDIN = "0<&-"
BARE = {"PATH": "/usr/bin:/bin"}
ENVIRONMENTS = {
    "nothing but PATH": BARE,
    "HOME that cannot be written": BARE | {"HOME": "/proc"},
    "HOME that is not there": BARE | {"HOME": "/nonexistent/home"},
    "LANG=C": BARE | {"LANG": "C", "HOME": "/root"},
    "ASCII, no coercion": BARE | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
CASES = [pytest.param(value, "local", id=name) for name, value in ENVIRONMENTS.items()] + [
    pytest.param(ENVIRONMENTS[name], "docker", id=f"{name}, docker", marks=pytest.mark.docker)
    for name in ("nothing but PATH", "ASCII, no coercion")
]
# Tests of one machine share it: without these the worker would be everybody's, the daemon another.
KEPT = ("WUWAN_NAMESPACE", "DOCKER_HOST", "XDG_RUNTIME_DIR")


@pytest.fixture
def chinese(tmp_path: Path, photos: Path) -> Path:
    """A directory and files with Chinese names."""
    directory = tmp_path / "我的照片"
    directory.mkdir()
    for number, source in enumerate(sorted(photos.glob("*.[jp][pn]g"))[:2]):
        (directory / f"{number}-猫咪{source.suffix}").symlink_to(source)
    return directory


def _run(
    environment: dict[str, str], arguments: list[str], redirections: str
) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'exec "$@" {redirections}',
            "sh",
            sys.executable,
            "-m",
            "wuwan_cli",
            *arguments,
        ],
        env=environment | kept,
        capture_output=True,
        cwd="/",
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize(("environment", "runner"), CASES)
def test_chinese_stays_chinese(
    tools: Any,
    request: pytest.FixtureRequest,
    chinese: Path,
    environment: dict[str, str],
    runner: str,
) -> None:
    arguments = ["tag", str(chinese), "--runner", runner, "--ttl", "1"]
    if runner == "docker":
        arguments += ["--image", request.getfixturevalue("docker_image")]
    done = _run(environment, arguments, CLOSED_STDIN)
    assert done.returncode == 0, done.stderr
    records = tools.parsed(done.stdout)
    assert [record["path"] for record in records] == sorted(map(str, chinese.iterdir()))
    assert all("path_b64" not in record for record in records)
    label = records[0]["labels"][0]["label"]
    assert "一" <= label[0] <= "鿿"
    assert label.encode() in done.stdout  # no escapes
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["HOME that cannot be written", "ASCII, no coercion"])
def test_output_file_and_errors(tools: Any, tmp_path: Path, chinese: Path, name: str) -> None:
    """Messages may need escapes where the locale has no Chinese; the program still speaks."""
    environment, target = ENVIRONMENTS[name], tmp_path / "标签.jsonl"
    arguments = ["tag", str(chinese), str(chinese / "没有.jpg"), "--runner", "local", "--ttl", "1"]
    done = _run(environment, [*arguments, "-o", str(target)], CLOSED_STDIN)
    assert done.returncode == 3, done.stderr
    assert len(tools.parsed(target.read_bytes())) == 3
    assert "没有.jpg" in target.read_text(encoding="utf-8")
    wrong = _run(environment, ["tag", "--files-from", str(chinese / "没有.txt")], CLOSED_STDIN)
    assert wrong.returncode == 2
    assert b"wuwan: " in wrong.stderr
    assert b"Traceback" not in wrong.stderr


@pytest.mark.parametrize("redirections", ["0<&- 2>&-", "0<&- 1>&- 2>&-", "1>&-"])
def test_other_closed_streams(tools: Any, tmp_path: Path, chinese: Path, redirections: str) -> None:
    """No file that the program opens becomes its "standard output"."""
    target = tmp_path / "tags.jsonl"
    arguments = ["tag", str(chinese), "--runner", "local", "--ttl", "1"]
    done = _run(BARE, [*arguments, "-o", str(target)], redirections)
    assert done.returncode == 0, done.stderr
    assert len(tools.parsed(target.read_bytes())) == 2
    if "1>&-" in redirections:
        without = _run(BARE, arguments, redirections)
        assert without.returncode == 1
        if "2>&-" not in redirections:
            assert b"cannot write to standard output" in without.stderr
