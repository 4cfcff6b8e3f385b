"""Directories that are this user's alone, though others may write where they lie.

A name that anybody can guess, in a place that is everybody's, may be taken: by a directory of
somebody else's, or by a link to one of ours, so that our files go, or are written, where another
user wants it. So each name of ours is opened without following a link, the owner and the mode are
looked at on what was opened, and all work is relative to that descriptor: what is swapped by name
afterwards is of no consequence. A directory that is not ours alone is not used.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a named pipe would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class PrivateDir:
    """A directory, which need not exist."""

    base: Path
    """Chosen by the user or the administrator, links and all; made if it is not there."""
    names: tuple[str, ...] = ()
    """The way from there on, which is ours."""

    @property
    def path(self) -> Path:
        """For messages, and for what takes no descriptor."""
        return self.base.joinpath(*self.names)

    def __truediv__(self, name: str) -> PrivateDir:
        return PrivateDir(self.base, (*self.names, name))

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory, which is this user's alone.

        Args:
            make: make what is missing of it, for this user alone.

        Raises:
            OSError: if it is not there, cannot be made, or is not ours alone.
        """
        if make:
            _make_base(self.base)
        descriptor = os.open(self.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = self.base
            for name in self.names:
                path /= name
                inner = _enter(descriptor, name, path, make)
                os.close(descriptor)
                descriptor = inner
            if not self.names:  # one that is only searched cannot be listed
                inner = os.open(".", _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def problem(self) -> str:
        """Why it cannot be used or made, as `opened` would find it; "" if it can."""
        try:
            with self.opened() as descriptor:
                usable = os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor)
        except FileNotFoundError:
            if self.names:  # it can be made where the one above can be written to
                return PrivateDir(self.base, self.names[:-1]).problem()
            above = next(parent for parent in self.base.parents if parent.exists())
            usable = _has_home(self.base) and os.access(above, os.W_OK | os.X_OK)
        except OSError as error:
            return f"{error.filename or self}: {error.strerror}"
        return "" if usable else f"{self} cannot be written to"


def read(name: str, directory: int) -> bytes:
    """A file's content.

    Args:
        name: in that directory.
        directory: a descriptor.

    Raises:
        OSError: if it is not there, is no plain file, or others may write to it.
    """
    descriptor = os.open(name, _FILE, dir_fd=directory)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", name)
        # What came with an image or a package is root's.
        _check_owner(status, name, (os.geteuid(), 0))
        return file.read()


def write(name: str, directory: int, content: bytes) -> None:
    """Make a file, for this user alone.

    Raises:
        OSError: if it cannot be made, or that name is taken, be it by a link.
    """
    with open(os.open(name, _NEW_FILE, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)


def exposed(directory: Path) -> str:
    """Why a new directory could not be made there, or not stay ours; "" if it can and will.

    Whoever owns a directory may rename what is in it, and so may all who can write to it, unless
    its sticky bit is set, as /tmp has it.
    """
    try:
        status = directory.stat()
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if status.st_uid not in (os.geteuid(), 0):
        return f"{directory} belongs to the user with id {status.st_uid}"
    if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        return f"{directory} can be written to by others, who could rename what is in it"
    if not (directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)):
        return f"{directory} cannot be written to"
    return ""


def home() -> Path:
    """The user's home directory, which may not be there."""
    # Without a HOME it is in the user database, and a user may be in neither (in containers).
    found = os.path.expanduser("~")
    return Path(found if found.startswith("/") else "/nonexistent")


def _has_home(base: Path) -> bool:
    """False for a place in a home that is not there: services have none, and root could make it."""
    return not base.is_relative_to(home()) or home().is_dir()


def _make_base(base: Path) -> None:
    if not _has_home(base):
        raise FileNotFoundError(errno.ENOENT, "there is no home directory", str(home()))
    base.mkdir(mode=0o700, parents=True, exist_ok=True)


def _enter(above: int, name: str, path: Path, make: bool) -> int:
    """A descriptor of the directory of that name, which is ours alone."""
    if make:
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            pass  # whose it is comes next
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "is a link, or no directory"
        raise OSError(error.errno, reason, str(path)) from None
    try:
        _check_owner(os.fstat(descriptor), str(path), (os.geteuid(),))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(status: os.stat_result, path: str, owners: tuple[int, ...]) -> None:
    if status.st_uid not in owners:
        reason = f"belongs to the user with id {status.st_uid}"
        raise PermissionError(errno.EPERM, reason, path)
    if status.st_mode & _OTHERS_WRITE:
        reason = "can be written to by others (chmod go-w closes it)"
        raise PermissionError(errno.EPERM, reason, path)
