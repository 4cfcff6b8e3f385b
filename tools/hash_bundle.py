"""Refresh the sha256 of every file that a bundle's `bundle.toml` lists under `[files]`.

    python tools/hash_bundle.py image/wuwan_worker/bundles/imagenet-zh
    python tools/hash_bundle.py --check image/wuwan_worker/bundles/imagenet-zh

Only the values change: comments, order and layout of `bundle.toml` stay. With `--check` nothing is
written, and the exit status is 1 if a value is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tomllib
from pathlib import Path


def refresh(text: str, bundle: Path) -> str:
    """Return `text`, a `bundle.toml`, with the present digests of the files in `bundle`.

    Raises FileNotFoundError for a listed file that is missing, and ValueError for an entry that is
    not written as `"name" = "digest"` on a line of its own.
    """
    for name in tomllib.loads(text)["files"]:
        with (bundle / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entry = re.compile(rf'^("{re.escape(name)}" *= *)"[0-9a-f]*"', re.MULTILINE)
        text, found = entry.subn(rf'\g<1>"{digest}"', text)
        if found != 1:
            raise ValueError(f'expected one line `"{name}" = "…"` in bundle.toml, found {found}')
    return text


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Refresh the digests in a bundle.toml.")
    parser.add_argument("bundle", type=Path, help="directory with bundle.toml")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if outdated")
    options = parser.parse_args()
    manifest: Path = options.bundle / "bundle.toml"
    old = manifest.read_text(encoding="utf-8")
    new = refresh(old, options.bundle)
    if new == old:
        print(f"{manifest}: up to date")
        return 0
    if options.check:
        print(f"{manifest}: digests differ from the files")
        return 1
    manifest.write_text(new, encoding="utf-8")
    print(f"{manifest}: refreshed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
