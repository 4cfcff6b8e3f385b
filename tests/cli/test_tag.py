"""`wuwan tag`: records, lists, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import wuwan_runner

SCHEMA = json.loads(Path(wuwan_runner.__file__).with_name("record.schema.json").read_text())


def records(output: bytes) -> list[dict[str, Any]]:
    """The records in `output`, each valid by the schema."""
    assert output == b"" or output.endswith(b"\n")
    found = [json.loads(line) for line in output.decode("utf-8").splitlines()]
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for record in found:
        validator.validate(record)
    return found


def local(*arguments: object) -> tuple[object, ...]:
    """Arguments of a run that needs no Docker."""
    return ("tag", "--runner", "local", *arguments)


def test_a_directory_gives_one_record_an_image_in_order(wuwan: Any, photos: Path) -> None:
    """Labels are Chinese and not escaped; every record fits the schema; the exit code is 0."""
    done = wuwan(*local(photos, "--top-k", 3))
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert [Path(record["path"]).name for record in found] == sorted(os.listdir(photos))
    assert all(len(record["labels"]) == 3 for record in found)
    assert "咖啡".encode() in done.stdout
    assert b"wuwan: 4 images in " in done.stderr
    assert b"\r" not in done.stderr


def test_failures_get_error_records_and_exit_code_3(
    wuwan: Any, photos: Path, tmp_path: Path
) -> None:
    """One record each, a name that is not UTF-8 keeps its bytes, the good photo is tagged."""
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes((photos / "coffee.png").read_bytes())
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    done = wuwan(*local(tmp_path, tmp_path / "missing.jpg"))
    assert done.returncode == 3, done.stderr
    found = records(done.stdout)
    codes = {
        Path(record["path"]).name: record["error"]["code"] for record in found if "error" in record
    }
    assert codes == {
        "empty.jpg": "not_an_image",
        "text.jpg": "not_an_image",
        "missing.jpg": "unreadable",
    }
    (tagged,) = [record for record in found if "labels" in record]
    assert tagged["labels"][0]["label"] == "意式浓缩咖啡"
    assert tagged["path_b64"]
    assert b"3 of 4 images failed" in done.stderr


def test_a_damaged_photo_has_labels_and_a_warning(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """It is counted, and the run is a success; with --strict it is an error."""
    content = (photos / "rocket.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * 9 // 10])
    (tmp_path / "no-end.jpg").write_bytes(content[:-2])
    (tmp_path / "whole.jpg").write_bytes(content)
    done = wuwan(*local(tmp_path))
    assert done.returncode == 0, done.stderr
    cut, whole_but_its_end, whole = records(done.stdout)
    assert cut["warning"]["code"] == whole_but_its_end["warning"]["code"] == "truncated"
    assert "% of the picture is there" in cut["warning"]["message"]
    assert "warning" not in whole
    assert cut["labels"]
    assert whole_but_its_end["labels"] == whole["labels"]
    assert b"2 of 3 images are damaged" in done.stderr
    strict = wuwan(*local(tmp_path, "--strict"))
    assert strict.returncode == 3
    codes = [record.get("error", {}).get("code") for record in records(strict.stdout)]
    assert codes == ["truncated", "truncated", None]
    assert b"damaged" not in strict.stderr.split(b"failed")[-1]


def test_the_environment_of_cron(wuwan: Any, photos: Path, namespace: str) -> None:
    """No HOME, no PATH, LANG=C, standard input closed: it works, and Chinese is still UTF-8."""
    done = wuwan(
        *local(photos / "coffee.png"),
        env={"LC_ALL": "C", "WUWAN_NAMESPACE": namespace},
        preexec_fn=lambda: os.close(0),
    )
    assert done.returncode == 0, done.stderr
    assert records(done.stdout)[0]["labels"][0]["label"] == "意式浓缩咖啡"


def test_lists(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """`-` and --files-from read lists; entries are bytes, ended by a newline or by NUL."""
    first, second = photos / "coffee.png", photos / "rocket.jpg"
    done = wuwan(*local("-", "-q"), input=f"{first}\n\n{second}".encode())
    assert [record["path"] for record in records(done.stdout)] == [str(first), str(second)]

    odd = tmp_path / "line\nbreak.png"
    odd.write_bytes(first.read_bytes())
    listed = tmp_path / "list"
    listed.write_bytes(b"\0".join(map(os.fsencode, (odd, second))))
    done = wuwan(*local("--files-from", listed, "-0", "-q", photos / "camera.png"))
    assert done.returncode == 0, done.stderr
    assert [record["path"] for record in records(done.stdout)] == [
        str(photos / "camera.png"),
        str(odd),
        str(second),
    ]
    assert done.stderr == b""


def test_which_files_are_taken(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """--include, --exclude, --no-recursive and --hidden choose among a directory's files."""
    inner = tmp_path / "inner"
    inner.mkdir()
    image = (photos / "rocket.jpg").read_bytes()
    for path in (tmp_path / "a.jpg", tmp_path / "b.data", tmp_path / ".c.jpg", inner / "d.jpg"):
        path.write_bytes(image)

    def names(*options: str) -> list[str]:
        done = wuwan(*local(tmp_path, "--top-k", 1, "-q", *options))
        assert done.returncode == 0, done.stderr
        return [Path(record["path"]).name for record in records(done.stdout)]

    assert names() == ["a.jpg", "d.jpg"]
    assert names("--no-recursive", "--hidden") == [".c.jpg", "a.jpg"]
    assert names("--include", "*.data", "--include", "d.*") == ["b.data", "d.jpg"]
    assert names("--exclude", "inner") == ["a.jpg"]


def test_nothing_found_is_no_error(wuwan: Any, tmp_path: Path) -> None:
    """An empty directory gives no record, and exit code 0."""
    done = wuwan(*local(tmp_path))
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"no images found" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-", "-"),
        ("x", "-0"),
        ("x", "--files-from", "/nonexistent/list"),
        ("x", "--top-k", "0"),
        ("x", "--min-score", "2"),
        ("x", "--min-score", "nan"),
        ("x", "--batch-size", "33"),
        ("x", "--ttl", "-1"),
        ("x", "--ttl", "inf"),
        ("x", "--workers", "0"),
        ("x", "--gpus", "some"),
        ("x", "--runner", "cloud"),
        ("x", "--memory", "lots"),
        ("x", "--progress", "loud"),
        ("x", "--no-such-option"),
        ("x", "-o", "/"),
    ],
)
def test_usage_errors_exit_with_2(wuwan: Any, arguments: tuple[str, ...]) -> None:
    """Wrong arguments are found before any work, and nothing goes to standard output."""
    done = wuwan("tag", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == b""
    assert done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "200"), "--batch-size must be a whole number from 1 to 32, not 200"),
        (("--top-k", "0"), "--top-k must be a whole number from 1 to 1,000,000, not 0"),
        (("--min-score", "nan"), "--min-score must be a number from 0 to 1, not nan"),
        (
            ("--timeout", "0"),
            "--timeout must be a number of seconds over 0 and at most 1,000,000, not 0.0",
        ),
        (("--runner", "cloud"), "--runner must be one of auto, docker, local, not 'cloud'"),
        (("--memory", "lots"), "--memory must be an amount such as 512m or 4g, not 'lots'"),
    ],
)
def test_options_have_the_names_that_users_know(
    wuwan: Any, arguments: tuple[str, str], message: str
) -> None:
    """One line: the option as it was typed, what it must be, and what it was."""
    done = wuwan("tag", "x", *arguments)
    assert (done.returncode, done.stderr.decode()) == (2, f"wuwan: {message}\n")


def test_an_unknown_model_exits_with_4(wuwan: Any, photos: Path) -> None:
    """No worker can be had: one line, and what to do."""
    done = wuwan(*local(photos, "--model", "nope"))
    assert done.returncode == 4
    assert done.stdout == b""
    assert done.stderr.startswith(b"wuwan: no model named 'nope'")
    assert b"\n  hint: " in done.stderr


@pytest.mark.docker
def test_docker_gives_what_local_gives(wuwan: Any, photos: Path, docker_image: str) -> None:
    """The same labels from a container, with the same scores."""
    docker = wuwan("tag", "--runner", "docker", "--image", docker_image, photos)
    assert docker.returncode == 0, docker.stderr
    here, there = records(wuwan(*local(photos)).stdout), records(docker.stdout)
    for one, other in zip(here, there, strict=True):
        assert one["path"] == other["path"]
        assert one["labels"][0]["id"] == other["labels"][0]["id"]
        # bf16 rounds differently in batches of different sizes
        assert one["labels"][0]["score"] == pytest.approx(other["labels"][0]["score"], abs=0.02)


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run with standard output and standard error on a terminal; the exit code and its text."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(master, (24, 100))
    command = [sys.executable, "-m", "wuwan_cli", *map(str, local(*arguments))]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        text = b""
        # EIO: the last holder of the terminal's other end has gone
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 65536):
                text += chunk
        os.close(master)
        return process.wait(timeout=30), text.decode()


def test_a_bar_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    """With a bar failures are shown above it, and the end is a summary."""
    paths = [tmp_path / "missing.jpg", *[photos / "rocket.jpg"] * 300]
    code, text = on_a_terminal(*paths, "--batch-size", 1, "-o", tmp_path / "out")
    assert code == 3
    assert "img/s" in text
    assert "/301" in text
    assert f"wuwan: {tmp_path}/missing.jpg: No such file or directory (unreadable)" in text
    assert "wuwan: 301 images in " in text


def test_no_bar_among_records(photos: Path) -> None:
    """Records that go to the terminal are not drawn over."""
    code, text = on_a_terminal(photos)
    assert code == 0
    assert len(text.splitlines()) == 4


def test_resume_knows_of_warnings(wuwan: Any, photos: Path, tmp_path: Path) -> None:
    """Those of the interrupted run are counted, and --strict does not take them over."""
    content = (photos / "rocket.jpg").read_bytes()
    album = tmp_path / "album"
    album.mkdir()
    (album / "cut.jpg").write_bytes(content[: len(content) * 9 // 10])
    (album / "whole.jpg").write_bytes(content)
    first = wuwan(*local(album, "-o", tmp_path / "all.jsonl"))
    assert first.returncode == 0, first.stderr
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True)
    target = tmp_path / "labels.jsonl"
    partial = tmp_path / "labels.jsonl.partial"
    partial.write_bytes(lines[0])
    strict = wuwan(*local(album, "-o", target, "--resume", "--strict"))
    assert strict.returncode == 2
    assert b"holds records with warnings" in strict.stderr
    assert partial.read_bytes() == lines[0]
    done = wuwan(*local(album, "-o", target, "--resume"))
    assert done.returncode == 0, done.stderr
    assert b"damaged" in done.stderr
    assert target.read_bytes().splitlines(keepends=True) == lines
