"""Downloads over real sockets, from a hub that misbehaves."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runner.models.hub import Hub, serving
from wuwan_runner.errors import LockedError, ModelError, UsageError
from wuwan_runner.models import modelscope
from wuwan_runner.models.general_zh import MODELSCOPE_ID
from wuwan_runner.models.modelscope import ModelScope

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another faster than they should for a real hub."""
    monkeypatch.setattr(modelscope, "_PAUSE", 0.001)
    monkeypatch.setattr(modelscope, "_CHUNK", 1 << 16)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one file."""
    with serving(Hub({"weights.pt": CONTENT})) as found:
        yield found


def fetch(hub: Hub, target: Path) -> list[tuple[str, int, int]]:
    """Download the file; what progress was reported."""
    seen: list[tuple[str, int, int]] = []
    client = ModelScope(MODELSCOPE_ID, hub.endpoint, lambda *step: seen.append(step))
    client.download(client.listing()["weights.pt"], target)
    return seen


def test_a_file_arrives_whole(hub: Hub, tmp_path: Path) -> None:
    """Progress grows up to the size; the same again asks for nothing."""
    target = tmp_path / "a" / "weights.pt"
    seen = fetch(hub, target)
    assert target.read_bytes() == CONTENT
    assert seen[-1] == ("weights.pt", len(CONTENT), len(CONTENT))
    assert [step[1] for step in seen] == sorted({step[1] for step in seen})
    assert os.listdir(target.parent) == ["weights.pt"]
    assert fetch(hub, target) == []
    assert hub.asked == [("weights.pt", "")]


def test_cut_connections_are_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    """More cuts than attempts: as long as each brings something, it goes on where it was."""
    hub.cut_after, hub.cuts = 200_000, 8
    fetch(hub, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert [wanted for _, wanted in hub.asked[:3]] == ["", "bytes=200000-", "bytes=400000-"]
    assert len(hub.asked) == 9


def test_a_later_run_goes_on_where_the_first_gave_up(hub: Hub, tmp_path: Path) -> None:
    """What has come stays in a .part file, and is not fetched again."""
    target = tmp_path / "weights.pt"
    hub.cut_after, hub.cuts = 0, 99
    (tmp_path / "weights.pt.part").write_bytes(CONTENT[:1_000_000])
    with pytest.raises(ModelError, match=r"cannot reach http://127.0.0.1:\d+: the connection was"):
        fetch(hub, target)
    assert len(hub.asked) == 4
    assert os.listdir(tmp_path) == ["weights.pt.part"]
    hub.cuts = 0
    seen = fetch(hub, target)
    assert target.read_bytes() == CONTENT
    assert hub.asked[-1] == ("weights.pt", "bytes=1000000-")
    assert seen[0][1] > 1_000_000


def test_a_hub_without_ranges(hub: Hub, tmp_path: Path) -> None:
    """It sends the whole file again; if it never comes further than before, that has an end."""
    hub.honours_range = False
    (tmp_path / "weights.pt.part").write_bytes(b"old" * 1000)
    fetch(hub, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    (tmp_path / "weights.pt").unlink()
    hub.cut_after, hub.cuts = 200_000, 99
    with pytest.raises(ModelError, match="the connection was cut"):
        fetch(hub, tmp_path / "weights.pt")


def test_damage_is_found(hub: Hub, tmp_path: Path) -> None:
    """A file without the hub's sum is not kept, so the next run starts it anew."""
    hub.damaged = True
    with pytest.raises(ModelError, match="arrived damaged"):
        fetch(hub, tmp_path / "weights.pt")
    assert os.listdir(tmp_path) == []
    hub.damaged = False
    (tmp_path / "weights.pt.part").write_bytes(CONTENT + b"of an older, longer revision")
    fetch(hub, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_errors_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    """A server's error is tried again, a client's is not."""
    hub.errors = [503, 502]
    fetch(hub, tmp_path / "weights.pt")
    hub.errors = [403]
    with pytest.raises(ModelError, match="403"):
        fetch(hub, tmp_path / "other")
    hub.errors = [500] * 4
    with pytest.raises(ModelError, match="500"):
        fetch(hub, tmp_path / "other")


def test_no_network(tmp_path: Path) -> None:
    """A refused connection, a name that leads nowhere, an answer of something else."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ModelError, match="Connection refused"):
        ModelScope("a/b", f"http://127.0.0.1:{port}", print).listing()
    with pytest.raises(ModelError, match=r"cannot reach http://hub\.invalid: "):
        ModelScope("a/b", "http://hub.invalid", print).listing()
    with pytest.raises(UsageError):
        ModelScope("a/b", "file:///etc", print)


def test_an_answer_that_is_no_listing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A portal's page, for example."""
    for content in (b"<html>", b"[]", b'{"Data": {}}', b'{"Data": {"Files": [{}]}}'):
        monkeypatch.setattr(hub, "listing", lambda content=content: content)
        with pytest.raises(ModelError, match="is it a ModelScope hub"):
            ModelScope(MODELSCOPE_ID, hub.endpoint, print).listing()


def test_two_downloads_of_one_file(hub: Hub, tmp_path: Path) -> None:
    """The second is told, and does not write into the first one's file."""
    with (tmp_path / "weights.pt.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            fetch(hub, tmp_path / "weights.pt")
    assert hub.asked == []


def test_a_full_disk_is_not_a_network_problem(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the download at once, with what the system says."""
    real = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        return real(Path("/dev/full") if path.suffix == ".part" else path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(hub, tmp_path / "weights.pt")
    assert len(hub.asked) == 1
