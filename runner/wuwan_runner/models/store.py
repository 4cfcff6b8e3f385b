"""The user's model bundles: added, verified and removed.

A bundle is made in a directory beside its place and put there by a rename, so there is never half
a bundle. The directory is also the lock: whoever makes a bundle of that name holds a flock(2) on
it. A run that dies leaves it unlocked, for the next one, or `wuwan doctor --clean`, to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from wuwan_runner.errors import LockedError, ModelError, UsageError
from wuwan_runner.models import manifest
from wuwan_worker.shared import bundle, dirs, labels
from wuwan_worker.shared.bundle import Bundle, BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wuwan_runner.models.conversion import Converter
    from wuwan_runner.models.manifest import Source
    from wuwan_worker.shared.private_dir import PrivateDir

# Not a bundle's name, so it is never taken for one.
_STAGING = ".{name}.staging"
_REMOVED = ".{name}.{token}.removed"


def add(source: Source, convert: Converter) -> Bundle:
    """Make a bundle and put it among the user's.

    Raises:
        ModelError: if checkpoint, architecture and labels do not fit together; nothing is left.
        LockedError: if another run is making a bundle of that name.
        UsageError: if the name cannot be used.
    """
    check_new(source.name)
    with _staged(source.name) as directory:
        converted = convert(source.checkpoint, directory)
        (directory / labels.FILE).write_text(source.labels.text(), encoding="utf-8")
        files = {labels.FILE, *converted.files.values()}
        sums = _seal(directory, files)
        text = manifest.write(source, converted, sums)
        (directory / bundle.MANIFEST).write_text(text, encoding="utf-8")
        _seal_file(directory / bundle.MANIFEST)
        _sync(directory)
        try:
            labels.read(bundle.load(directory))
        except BundleError as error:
            reason = str(error).replace(f"{directory}/", "")
            raise ModelError(f"{source.name} makes no valid bundle: {reason}") from None
        target = bundle.user_directory() / source.name
        os.replace(directory, target)
        _sync(target.parent)
    return bundle.load(target)


def check_new(name: str) -> None:
    """Raises UsageError unless a bundle of that name can be added."""
    if not bundle.NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name",
            hint="up to 64 letters, digits and . _ -, a letter or digit first",
        )
    if name in bundle.embedded():
        raise UsageError(f"{name} is the name of a model that comes with wuwan")
    if (bundle.user_directory() / name).exists():
        raise UsageError(
            f"there is a model {name} already", hint=f"`wuwan model remove {name}` makes room"
        )


def remove(name: str) -> None:
    """Remove one of the user's bundles; workers that have loaded it go on.

    Raises:
        UsageError: if there is none of that name, or it comes with wuwan.
    """
    if name in bundle.embedded():
        raise UsageError(f"{name} comes with wuwan and cannot be removed")
    directory = bundle.user_directory()
    if not bundle.NAME.fullmatch(name) or not (directory / name).is_dir():
        raise UsageError(f"you have no model named {name!r}", hint="`wuwan model list` shows them")
    # Renamed first: half a bundle must not be found.
    gone = directory / _REMOVED.format(name=name, token=secrets.token_hex(4))
    (directory / name).rename(gone)
    shutil.rmtree(gone)


def private(directory: PrivateDir) -> Path:
    """The path of a directory that is made where it is missing, and is this user's alone.

    Raises:
        ModelError: if it cannot be made, or others could put something there.
    """
    try:
        with directory.opened(make=True):
            return directory.path
    except OSError as error:
        where = error.filename or directory
        raise ModelError(f"cannot use {where}: {error.strerror}") from None


def unfinished() -> list[Path]:
    """What runs that died while they added or removed a bundle have left."""
    found = []
    for path in sorted(bundle.user_directory().glob(".*.*")):
        if path.suffix in (".staging", ".removed") and (descriptor := _lock(path)) is not None:
            os.close(descriptor)
            found.append(path)
    return found


def discard(path: Path) -> None:
    """Remove one of `unfinished`, unless somebody works in it by now."""
    descriptor = _lock(path)
    if descriptor is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def _staged(name: str) -> Iterator[Path]:
    """An empty directory for the bundle, ours alone; whatever is still there at the end goes."""
    path = private(dirs.data() / "models") / _STAGING.format(name=name)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make {error.filename}: {error.strerror}") from None
    descriptor = _lock(path)
    if descriptor is None:
        raise LockedError(f"another run is adding the model {name}", hint="wait for it to end")
    try:
        for left in path.iterdir():  # by a run that died
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield path
    finally:
        if _is(path, descriptor):
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None if it is taken, gone, or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
    else:
        if _is(path, descriptor) and os.fstat(descriptor).st_uid == os.geteuid():
            return descriptor
    os.close(descriptor)
    return None


def _is(path: Path, descriptor: int) -> bool:
    """Whether the directory that is open is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _seal(directory: Path, files: set[str]) -> dict[str, str]:
    """Drop all other files, seal these; their sha256."""
    for path in directory.iterdir():
        if path.name not in files:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.chmod(0o755)
    return {name: _seal_file(directory / name) for name in sorted(files)}


def _seal_file(path: Path) -> str:
    """Make a file readable for a container's user, and have it on the disk; its sha256."""
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
