"""A long run: does anything grow?

    python benchmarks/soak.py PHOTOS [--images 20000] [--containers 200] [--runner docker]

Tags many images through one worker and looks at the memory and the descriptors of the command and
of the worker at the 2,000th and at the last image; then starts and stops many containers; and
compares what is there of containers, volumes, sockets, processes and boot directories before and
after. Exits 1 if memory has grown by 5 % or more, or anything else at all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wuwan_cli.benchmark import measure
from wuwan_runner.containers import boot_socket
from wuwan_runner.options import Timeouts
from wuwan_runner.pool import registry
from wuwan_runner.wire import address

EARLY = 2_000
GROWTH = 1.05
_NAME = 7  # the column of /proc/net/unix that only sockets with a name have


@dataclass(frozen=True, slots=True)
class Census:
    """How many of each there are on this machine."""

    containers: int
    volumes: int
    sockets: int
    workers: int
    boot_directories: int

    @classmethod
    def now(cls) -> Census:
        """Count."""

        def lines(*command: str) -> int:
            done = subprocess.run(["docker", *command], capture_output=True, check=False)
            return len(done.stdout.splitlines())

        return cls(
            containers=lines("ps", "--all", "--quiet"),
            volumes=lines("volume", "ls", "--quiet"),
            # With a name; the daemon's own come and go.
            sockets=sum(
                len(line.split()) > _NAME and "docker" not in line
                for line in Path("/proc/net/unix").read_text().splitlines()
            ),
            workers=len(address.listed()),
            boot_directories=len(list(boot_socket.base().glob(f"{boot_socket.PREFIX}*"))),
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    memory: int  # resident, bytes
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Of a running process."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))

    def __str__(self) -> str:
        return f"{self.memory / 2**20:7.1f} MiB, {self.descriptors} descriptors"


def worker_pid(name: str) -> int:
    """The worker's process as this machine numbers it, in a container or not."""
    wanted = f"--name={name}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in arguments and arguments[0].rpartition(b"/")[2].startswith(b"python"):
                return int(entry.name)
    raise SystemExit(f"no process of worker {name} is there")


def tag_many(photos: list[str], images: int, options: list[str]) -> list[str]:
    """Tag `images` images; what has grown."""
    grown = []
    with tempfile.TemporaryFile() as listed:
        listed.write("\0".join(photos[i % len(photos)] for i in range(images)).encode())
        listed.seek(0)
        command = [*measure.PROGRAM, "tag", *options, "--quiet", "--files-from", "-", "-0"]
        process = subprocess.Popen(command, stdin=listed, stdout=subprocess.PIPE)
    assert process.stdout is not None
    seen: dict[str, list[Footprint]] = {"command": [], "worker": []}
    begin = time.perf_counter()
    for number, _ in enumerate(process.stdout, 1):
        if number in (EARLY, images - 100):  # not the very last: the command must still be there
            (member,) = registry.members(Timeouts())
            seen["command"].append(Footprint.of(process.pid))
            seen["worker"].append(Footprint.of(worker_pid(member.name)))
    if process.wait(timeout=60) or number != images:
        raise SystemExit(f"exit code {process.returncode}, {number} records of {images}")
    print(f"{images} images in {time.perf_counter() - begin:.0f} s")
    for who, (early, late) in seen.items():
        change = late.memory / early.memory - 1
        print(f"{who:8} at {EARLY}: {early}; at the end: {late}; memory {change:+.1%}")
        if late.memory >= GROWTH * early.memory or late.descriptors > early.descriptors + 40:
            grown.append(who)  # 32 images under way have a descriptor each
    return grown


def start_and_stop(photo: str, containers: int, options: list[str]) -> None:
    """Start a worker for one photo, and have it leave with its client, again and again."""
    begin = time.perf_counter()
    for number in range(containers):
        measure.tag([*options, "--quiet", "--ttl", "0", photo])
        if number % 50 == 49:
            print(f"{number + 1} workers started and stopped", file=sys.stderr)
    print(f"{containers} workers in {time.perf_counter() - begin:.0f} s")


def settled(before: Census, timeout: float = 30.0) -> Census:
    """The census once it is as before, or when time is up."""
    deadline = time.monotonic() + timeout
    while (now := Census.now()) != before and time.monotonic() < deadline:
        time.sleep(1)
    return now


def main() -> None:
    """Soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--runner", default="docker")
    parser.add_argument("--image", default="")
    arguments = parser.parse_args()
    photos = sorted(str(path.resolve()) for path in arguments.photos.iterdir() if path.is_file())
    options = ["--runner", arguments.runner]
    if arguments.image:
        options += ["--image", arguments.image]
    before = Census.now()
    with measure.apart():
        grown = tag_many(photos, arguments.images, options)
        start_and_stop(photos[0], arguments.containers, options)
    after = settled(before)
    print(f"before: {before}\nafter:  {after}")
    if after != before:
        grown.append("the machine")
    print("nothing has grown" if not grown else f"grown: {', '.join(grown)}")
    raise SystemExit(bool(grown))


if __name__ == "__main__":
    main()
