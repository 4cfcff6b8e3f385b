"""What tells this user's clients from other users' where a worker cannot (`shared.peers`).

Under Docker's userns-remap all users of the machine look alike to a container. So a client shows a
token, made of a secret that only its user can read, and of the worker's name: hostile code in a
container learns what opens that container, and nothing else.

The secret is a file that stays, in the user's state directory: a later run must find it, and no
process of ours is there to ask. Where it cannot be kept, each process has a secret of its own, and
its workers, under userns-remap, end with it.
"""

from __future__ import annotations

import contextlib
import hmac
import os

from wuwan_worker.shared import dirs, private_dir

_FILE = "secret"
_SIZE = 32  # bytes
_OWN = os.urandom(_SIZE)


def keep() -> bool:
    """Have a secret that is there for this user's later runs; whether there is one."""
    if _kept() is not None:
        return True
    temporary = f"{_FILE}.{os.urandom(4).hex()}"
    try:
        with dirs.state().opened(make=True) as directory:
            private_dir.write(temporary, directory, os.urandom(_SIZE))
            try:
                # Whole or not at all; and of several runs that make one, the first one's counts.
                os.link(temporary, _FILE, src_dir_fd=directory, dst_dir_fd=directory)
            except FileExistsError:
                if _kept() is None:  # cut short, by a crash of the machine
                    os.replace(temporary, _FILE, src_dir_fd=directory, dst_dir_fd=directory)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
    except OSError:
        return False
    return _kept() is not None


def token(name: str) -> str:
    """What opens the worker with that socket's name, if it looks at tokens."""
    return hmac.digest(_kept() or _OWN, name.encode(), "sha256").hex()


def _kept() -> bytes | None:
    try:
        with dirs.state().opened() as directory:
            content = private_dir.read(_FILE, directory)
    except OSError:
        return None
    return content if len(content) == _SIZE else None
