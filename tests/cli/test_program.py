"""The program as a whole: start-up, help, completion, the error boundary."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_worker import __version__

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {"docker", "numpy", "rich", "tqdm", "requests", "urllib3", "PIL", "openvino"}
BREAK = (
    "import sys; import wuwan_cli.inputs as inputs\n"
    "def broken(*_, **__): raise RuntimeError('boom')\n"
    "inputs.Inputs.of = broken\n"
    "sys.argv = ['wuwan', 'tag', 'x']\n"
    "from wuwan_cli.main import run; run()"
)


def test_version(wuwan: Any) -> None:
    """One line on standard output."""
    done = wuwan("--version")
    assert (done.returncode, done.stdout) == (0, f"wuwan {__version__}\n".encode())


@pytest.mark.parametrize(
    "verb", ["tag", "model", "labels", "image", "doctor", "ps", "warm", "stop", "logs"]
)
def test_every_verb_has_help(wuwan: Any, verb: str) -> None:
    """The group lists it, and its own help can be shown."""
    assert f"  {verb} ".encode() in wuwan("--help").stdout
    done = wuwan(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: wuwan {verb} ".encode())


def test_a_misspelt_verb_is_a_usage_error(wuwan: Any) -> None:
    """It names the one that was meant."""
    done = wuwan("tga")
    assert done.returncode == 2
    assert b"Did you mean 'tag'" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["labels", "--grep=狗"], ["tag", "--runner=local", "-q", "PHOTO"]]
)
def test_nothing_heavy_is_imported(photos: Path, arguments: list[str]) -> None:
    """Start-up is what a warm run costs: no Docker client, no model library, no table, no bar."""
    arguments = [str(photos / "rocket.jpg") if word == "PHOTO" else word for word in arguments]
    command = [sys.executable, "-X", "importtime", "-m", "wuwan_cli", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    lines = done.stderr.decode().splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "wuwan_cli" in imported
    assert not imported & HEAVY


def test_completion_knows_the_verbs(wuwan: Any) -> None:
    """What the shell asks for when TAB is pressed."""
    environment = {
        "_WUWAN_COMPLETE": "complete_bash",
        "COMP_WORDS": "wuwan do",
        "COMP_CWORD": "1",
    }
    assert wuwan(env=environment).stdout.split() == [b"doctor"]


def test_help_into_a_closed_pipe_is_quiet(wuwan: Any) -> None:
    """No traceback at the end of the process."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = wuwan("tag", "--help", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert done.stderr == b""


def test_a_locale_without_chinese(wuwan: Any) -> None:
    """What cannot be shown is escaped, and nothing fails."""
    done = wuwan("model", "show", "imagenet-zh", env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"imagenet-zh" in done.stdout


def broken(**options: Any) -> subprocess.CompletedProcess[str]:
    """A run of `wuwan tag x` that meets a bug."""
    command = [sys.executable, "-c", BREAK]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_a_bug_is_one_line_and_a_log_file(tmp_path: Path) -> None:
    """Exit code 1; the traceback is in the named file; ten files are kept."""
    logs = tmp_path / "wuwan" / "log"
    logs.mkdir(parents=True)
    for day in range(12):
        (logs / f"200001{day:02}T000000-1.log").touch()
    done = broken(env={"XDG_STATE_HOME": str(tmp_path)})
    assert done.returncode == 1
    kept = sorted(logs.iterdir())
    assert len(kept) == 10
    expected = f"wuwan: internal error: RuntimeError: boom; details in {kept[-1]}\n"
    assert done.stderr == expected
    report = kept[-1].read_text()
    assert "Traceback (most recent call last):" in report
    assert __version__ in report


@pytest.mark.parametrize(
    "environment", [{"HOME": "/nonexistent/home"}, {"HOME": "/proc"}, {"HOME": "relative"}]
)
def test_a_bug_without_a_home(tmp_path: Path, environment: dict[str, str]) -> None:
    """The log goes to the temporary directory where HOME is not there or cannot be written to."""
    done = broken(env={"TMPDIR": str(tmp_path), **environment})
    assert done.returncode == 1
    (report,) = tmp_path.glob("wuwan-*/log/*.log")
    assert str(report) in done.stderr
