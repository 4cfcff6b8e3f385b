"""Fault 13: Chinese characters arrive in pieces, lines are long (docker-py: chunks of a stream).

Each chunk decoded by itself turns a split character into U+FFFD. Nothing here decodes before a
frame is whole, and what stands on standard output is compared byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.support import Plan, Proxy, address_of, worker_at
from wuwan_runner import WorkerSpec
from wuwan_runner.wire import address
from wuwan_worker.shared import protocol
from wuwan_worker.shared.bundle import EMBEDDED
from wuwan_worker.shared.protocol import (
    Done,
    End,
    FrameDecoder,
    Hello,
    Images,
    Labelled,
    LabelScore,
    Result,
    Results,
    ToClient,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wuwan_runner.wire.address import Address

# Two, three and four bytes a character, a combining one, and what JSON has to escape.
SPECIMEN = 'é汉字𠮷龍e\u0301"\\\t\x7f\u2028'


def _long(size: int, number: int) -> str:
    """A text of at least `size` bytes of UTF-8."""
    return f"{number}·" + SPECIMEN * (size // len(SPECIMEN.encode()) + 1)


def _line(path: str, labels: list[dict[str, Any]]) -> str:
    record = {"v": 1, "path": path, "labels": labels, "width": 3, "height": 2}
    record["model"] = "imagenet-zh"
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def _scores(labels: list[dict[str, Any]]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(**label) for label in labels)


class FakeWorker:
    """Speaks our protocol, answers with labels of the test's choice, one byte at a time."""

    def __init__(self, target: Address, labels: list[list[dict[str, Any]]]) -> None:
        listener = address.listen(target)
        assert listener is not None
        self._listener = listener
        self._labels = labels
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        decoder, count = FrameDecoder(protocol.WORKER), 0
        while True:
            data, descriptors = protocol.receive(client)
            if not data:
                return
            for frame in decoder.feed(data, descriptors):
                frame.close()
                match frame.message:
                    case Hello():
                        self._send(client, _welcome())
                    case Images(ids=ids):
                        count += len(ids)
                        labels = {i: _scores(self._labels[i]) for i in ids}
                        results: list[Result] = [
                            Labelled(id=i, width=3, height=2, labels=labels[i]) for i in ids
                        ]
                        self._send(client, Results(items=results))
                    case End():
                        self._send(client, Done(count=count))

    @staticmethod
    def _send(client: socket.socket, message: ToClient) -> None:
        for byte in protocol.encode(message):
            client.sendall(bytes((byte,)))

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def _welcome() -> Welcome:
    return Welcome(
        name="fake",
        model="imagenet-zh",
        fingerprint="0" * 64,
        runner="local",
        device="none",
        state="ready",
        pid=os.getpid(),
        credits=32,
        readable=True,
    )


@pytest.fixture
def chinese(tmp_path: Path, photos: Path) -> list[str]:
    """Photos with names that are no ASCII, in the order of their records."""
    directory = tmp_path / "照片 𠮷"
    directory.mkdir()
    for number, source in enumerate(sorted(photos.glob("*.[jp][pn]g"))):
        (directory / f"{number}-相片龍{source.suffix}").symlink_to(source)
    return sorted(str(path) for path in directory.iterdir())


def _read_slowly(command: Any) -> bytes:
    """All of its standard output, through a pipe of one page and odd pieces."""
    data = b""
    while piece := os.read(command.process.stdout.fileno(), 777):
        data += piece
    return data


def test_labels_of_100_kb_byte_by_byte(tools: Any, chinese: list[str]) -> None:
    labels = [
        [{"label": _long(100_000, i), "score": 0.5, "id": "n1", "broader": [SPECIMEN, "动物"]}]
        for i in range(len(chinese))
    ]
    with FakeWorker(address_of("local", WorkerSpec()), labels):
        run = tools.start("tag", *chinese, "--runner", "local")
        output = _read_slowly(run)
        code, _, messages = run.finish()
    assert code == 0, messages
    assert output == "".join(map(_line, chinese, labels)).encode()


@pytest.fixture(scope="module")
def long_labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A bundle whose labels have 20 KB each, so that five of them are 100 KB; and the labels."""
    root = tmp_path_factory.mktemp("bundles") / "long"
    shutil.copytree(EMBEDDED / "imagenet-zh", root)
    heading, *rows = (root / "labels.tsv").read_text(encoding="utf-8").splitlines()
    cells = [row.split("\t") for row in rows]
    # A table's cells end at tabs, its lines at U+2028, too.
    filler = SPECIMEN.replace("\t", "").replace("\u2028", "")
    for row in cells:
        row[1] += filler * (20_000 // len(filler.encode()))
    text = "\n".join([heading, *("\t".join(row) for row in cells), ""])
    (root / "labels.tsv").write_text(text, encoding="utf-8")
    yield root, [row[1] for row in cells]
    shutil.rmtree(root)


def _with_long_labels(output: bytes, labels: list[str]) -> bytes:
    """What the ordinary bundle's records become with those labels."""
    short = (EMBEDDED / "imagenet-zh/labels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    longer = {row.split("\t")[1]: label for row, label in zip(short, labels, strict=True)}
    lines = []
    for line in output.decode().splitlines():
        record = json.loads(line)
        for label in record["labels"]:
            label["label"] = longer[label["label"]]
        lines.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines).encode()


def test_real_worker_byte_by_byte(
    tools: Any, wuwan: Any, chinese: list[str], long_labels: tuple[Path, list[str]]
) -> None:
    bundle, labels = long_labels
    spec = WorkerSpec(model=str(bundle))
    plain = wuwan("tag", *chinese, "--runner", "local", "--ttl", 0)
    assert plain.returncode == 0, plain.stderr
    front, back = address_of("local", spec), address_of("local", spec, "real")
    with worker_at(back, "local", spec), Proxy(front, back, lambda _: Plan(piece=1)):
        done = wuwan("tag", *chinese, "--runner", "local", "--model", bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout == _with_long_labels(plain.stdout, labels)
    assert len(done.stdout) > 100_000 * len(chinese)


@pytest.mark.docker
def test_multiplexed_stream_of_docker(
    tools: Any,
    wuwan: Any,
    docker_image: str,
    chinese: list[str],
    long_labels: tuple[Path, list[str]],
) -> None:
    """Docker cuts the exec channel's bytes where it likes, and puts headers in between."""
    bundle, labels = long_labels
    image = "wuwan-test-long-labels"
    dockerfile = bundle.parent / "Dockerfile"
    dockerfile.write_text(
        f"FROM {docker_image}\n"
        "COPY --chown=0:0 long/labels.tsv /app/wuwan_worker/bundles/imagenet-zh/labels.tsv\n"
    )
    subprocess.run(
        ["docker", "build", "-q", "-t", image, str(bundle.parent)],
        check=True,
        capture_output=True,
        timeout=100,
    )
    common = ("--runner", "docker", "--channel", "exec", "--ttl", 1)
    plain = wuwan("tag", *chinese, *common, "--image", docker_image)
    done = wuwan("tag", *chinese, *common, "--image", image)
    assert (plain.returncode, done.returncode) == (0, 0), plain.stderr + done.stderr
    assert done.stdout == _with_long_labels(plain.stdout, labels)
