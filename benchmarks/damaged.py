"""What hostile and damaged files cost: peak memory of the workers, workers lost, time.

    python benchmarks/damaged.py PHOTOS [--runner docker --memory 1g]

Beside up to 200 good photos: 12 cut PNGs of under a megabyte that are 256 megapixels, 60 damaged
TIFFs of 24 megapixels, 8 and 30 lossless WebPs of 34 bytes that are 268 megapixels. Each set runs
through the real program with a worker of its own; the peak is what the kernel says of the worker's
process (VmHWM), a container's as well.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import secrets
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image


def cut_png(side: int = 16_000, part: float = 0.4) -> bytes:
    """A PNG of one colour and `side` x `side` pixels whose data end early."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    packed = b"".join(packer.compress(row * 64) for _ in range(side // 64)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack("!I", zlib.crc32(kind + content))
        return struct.pack("!I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack("!2I5B", side, side, 8, 2, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed)
    return whole[: int(len(whole) * part)]


def cut_tiff(part: float = 0.4) -> bytes:
    """A TIFF of 24 megapixels whose data end early."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((6000, 4000)).save(buffer, "TIFF", compression="tiff_lzw")
    content = bytearray(buffer.getvalue())
    # The directory is at the end: it stays, and strips before it are nonsense.
    content[int(len(content) * part) : -20_000] = b"\xff" * (
        len(content) - 20_000 - int(len(content) * part)
    )
    return bytes(content)


# 16,383 x 16,383 pixels of one colour.
TINY_WEBP = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")


def peaks(found: dict[int, int], namespace: str, over: threading.Event) -> None:
    """Watch this run's workers: the most memory that each has had, bytes.

    A local worker has its namespace in its environment; one in a container is known by being new.
    """
    before = set(os.listdir("/proc"))
    while not over.wait(0.02):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                if b"wuwan_worker" not in command:
                    continue
                if b"--runner=docker" in command:
                    if entry in before:
                        continue
                elif namespace not in Path(f"/proc/{entry}/environ").read_bytes().decode():
                    continue
                status = Path(f"/proc/{entry}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
                found[int(entry)] = max(found.get(int(entry), 0), peak)
            except (OSError, IndexError):
                continue


def measure(title: str, paths: list[Path], arguments: list[str]) -> None:
    """Run the program over these files and print a row."""
    namespace = f"damaged-{secrets.token_hex(4)}"
    found: dict[int, int] = {}
    over = threading.Event()
    watcher = threading.Thread(target=peaks, args=(found, namespace, over))
    watcher.start()
    environment = os.environ | {"WUWAN_NAMESPACE": namespace}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "wuwan_cli", "tag", "--ttl", "0", *arguments, *map(str, paths)],
        capture_output=True,
        env=environment,
        timeout=900,
        check=False,
    )
    seconds = time.monotonic() - started
    over.set()
    watcher.join()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = Counter(
        record["error"]["code"] if "error" in record else "warning" if "warning" in record else "ok"
        for record in records
    )
    lost = done.stderr.count(b"was lost")
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    peak = max(found.values(), default=0) / 1e6
    print(f"| {title} | {peak:,.0f} MB | {lost} | {seconds:.1f} s | {done.returncode} | {told} |")


def main() -> None:
    """Make the files, run the sets, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--most", type=int, default=200, help="good photos, at the most")
    known, rest = parser.parse_known_args()
    good = sorted(path for path in known.photos.iterdir() if path.is_file())[: known.most]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        def copies(content: bytes, count: int, kind: str) -> list[Path]:
            made = [directory / f"{number:02}{kind}" for number in range(count)]
            for path in made:
                path.write_bytes(content)
            return made

        sets = {
            "good photos alone": [],
            "12 cut PNGs": copies(cut_png(), 12, ".png"),
            "60 damaged TIFFs of 24 MP": copies(cut_tiff(), 60, ".tif"),
            "8 x 34 bytes of WebP": copies(TINY_WEBP, 8, ".webp"),
            "30 x 34 bytes of WebP": copies(TINY_WEBP, 30, "-.webp"),
        }
        print("| files | peak of a worker | lost | time | exit | records |")
        print("|---|---:|---:|---:|---:|---|")
        for title, bad in sets.items():
            # The bad ones among the good ones, the first of them first.
            step = max(1, len(good) // max(1, len(bad)))
            groups = [good[place : place + step] for place in range(0, len(good), step)]
            mixed = [
                path
                for wrong, group in itertools.zip_longest(bad, groups)
                for path in ([wrong] if wrong else []) + (group or [])
            ]
            measure(title, mixed, rest)


if __name__ == "__main__":
    main()
