"""Pages of mapped weights that are given back."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from wuwan_worker.backends.openvino import mapped_pages

SIZE = 4 * 2**20


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of 4 MiB; its name has a space."""
    path = tmp_path / "some weights.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def _resident(path: Path) -> int:
    """Bytes of all mappings of the file that are in memory (proc(5), smaps)."""
    maps = Path("/proc/self/smaps").read_text()
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", maps, flags=re.MULTILINE)
    mine = "".join(block for block in blocks if block.partition("\n")[0].endswith(str(path)))
    return sum(int(size) * 1024 for size in re.findall(r"^Rss: +(\d+) kB", mine, re.MULTILINE))


def _mapped(path: Path, access: int) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def test_pages_go_and_come_back(weights: Path) -> None:
    """Nothing of the file is resident, and it reads as before."""
    with _mapped(weights, mmap.ACCESS_READ) as mapping:
        content = mapping[:]
        assert _resident(weights) == SIZE
        assert mapped_pages.give_back({str(weights)}) == 1
        assert _resident(weights) == 0
        assert mapping[:] == content


def test_what_was_written_stays(weights: Path) -> None:
    """A private mapping may hold what the file does not."""
    with _mapped(weights, mmap.ACCESS_COPY) as mapping:
        mapping[:3] = b"new"
        assert mapped_pages.give_back({str(weights)}) == 0
        assert mapping[:3] == b"new"


def test_other_files_are_left_alone(weights: Path, tmp_path: Path) -> None:
    """Only what was named, whatever link it was named by."""
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(SIZE))
    link = tmp_path / "link"
    link.symlink_to(weights)
    with _mapped(weights, mmap.ACCESS_READ) as mine, _mapped(other, mmap.ACCESS_READ) as its:
        with mapped_pages.given_back([link]):
            assert mine[:] != its[:]
        assert _resident(weights) == 0
        assert _resident(other) == SIZE
