"""What a decoder that was taken over tries, inside a real worker; each line of the log is one try.

WUWAN_ATTACK_VICTIM=PID     another process of the user
WUWAN_ATTACK_PORT=PORT      somebody who listens, on TCP and UDP
WUWAN_ATTACK_SOCKET=PATH    somebody who listens, at a path and at an abstract name of that text
WUWAN_ATTACK_FILES=DIR      a directory of the user's; it holds `file`, and `program`, which
                            makes the file `ran`
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("attack")


def run(photo: int) -> None:
    """Try everything with `photo`, a descriptor that was handed over, and say how each went."""
    for name, attempt in _attempts(photo, Path(os.environ["WUWAN_ATTACK_FILES"])):
        try:
            attempt()
        except (OSError, subprocess.SubprocessError) as error:
            log.info("attack: %s: refused: %s", name, error)
        else:
            log.info("attack: %s: DONE", name)
    # What has to go on: a library that is loaded late, memory that is run, files in memory.
    ctypes.CDLL("libutil.so.1")
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    with open(os.memfd_create("late"), "wb") as memory:
        memory.write(b"x")
    unrestricted = [
        task.name
        for task in Path("/proc/self/task").iterdir()
        if not {"NoNewPrivs:\t1", "Seccomp:\t2"} <= {*(task / "status").read_text().splitlines()}
    ]
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
    cores = resource.getrlimit(resource.RLIMIT_CORE)
    log.info("attack: dumpable: %s, core dumps: %s", dumpable, cores)
    log.info("attack: threads unrestricted: %s", unrestricted)
    log.info("attack: over in %s", threading.current_thread().name)


def _attempts(photo: int, files: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    own, other = f"/proc/self/fd/{photo}", str(files / "file")
    path = os.readlink(own)
    for name, place in (("descriptor", own), ("photo", path), ("file", other)):
        for flags in ("O_WRONLY", "O_RDWR", "O_TRUNC", "O_APPEND"):
            bits = getattr(os, flags) | (os.O_WRONLY if flags in ("O_TRUNC", "O_APPEND") else 0)
            yield f"{flags} {name}", lambda place=place, bits=bits: os.open(place, bits)
        yield f"O_TRUNC alone {name}", lambda place=place: os.open(place, os.O_TRUNC)
        yield f"truncate {name}", lambda place=place: os.truncate(place, 0)
        yield f"chmod {name}", lambda place=place: os.chmod(place, 0)
        yield f"utime {name}", lambda place=place: os.utime(place, (0, 0))
        yield f"xattr {name}", lambda place=place: os.setxattr(place, "user.x", b"x")
    yield "write descriptor", lambda: os.write(photo, b"x")
    yield "fchmod descriptor", lambda: os.fchmod(photo, 0)
    yield "futimens descriptor", lambda: os.utime(photo, (0, 0))
    yield "ftruncate descriptor", lambda: os.ftruncate(photo, 0)
    yield "remove photo", lambda: os.unlink(path)
    yield "rename photo", lambda: os.rename(path, path + ".moved")
    places = {Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm")}
    for home in sorted({*places, Path.home(), files, Path(path).parent}):
        new = home / f"attack-{os.getpid()}"
        yield f"create in {home}", lambda new=new: new.touch()
        yield f"directory in {home}", lambda new=new: new.mkdir()
        yield f"link in {home}", lambda new=new: new.symlink_to("/")
        yield f"hard link in {home}", lambda new=new: os.link(other, new)
        yield f"FIFO in {home}", lambda new=new: os.mkfifo(new)
        yield f"unnamed in {home}", lambda home=home: os.open(home, os.O_TMPFILE | os.O_WRONLY)
        yield f"socket in {home}", lambda new=new: socket.socket(socket.AF_UNIX).bind(str(new))
    yield "tempfile", tempfile.mkstemp
    port = int(os.environ["WUWAN_ATTACK_PORT"])
    yield "TCP", lambda: socket.create_connection(("127.0.0.1", port), 2)
    yield "TCP bind", lambda: socket.socket().bind(("127.0.0.1", 0))
    udp = (socket.AF_INET, socket.SOCK_DGRAM)
    yield "UDP", lambda: socket.socket(*udp).sendto(b"x", ("127.0.0.1", port))
    name = os.environ["WUWAN_ATTACK_SOCKET"]
    yield "path socket", lambda: socket.socket(socket.AF_UNIX).connect(name)
    yield "abstract socket", lambda: socket.socket(socket.AF_UNIX).connect(f"\0{name}")
    program = str(files / "program")
    yield "run", lambda: subprocess.run([program], check=True)
    yield "run by the loader", lambda: subprocess.run(["/bin/sh", program], check=True)
    yield "spawn", lambda: os.posix_spawn(program, [program], {})
    yield "exec", lambda: os.execv(program, [program])  # noqa: S606
    yield "fork", _fork
    victim = int(os.environ["WUWAN_ATTACK_VICTIM"])
    yield "kill", lambda: os.kill(victim, signal.SIGKILL)
    yield "kill by descriptor", lambda: signal.pidfd_send_signal(os.pidfd_open(victim), 9)
    yield "memory", lambda: os.open(f"/proc/{victim}/mem", os.O_RDWR)
    yield "read memory", lambda: os.open(f"/proc/{victim}/mem", os.O_RDONLY)
    if os.geteuid():  # root may look at it whatever else it has given up (CAP_PERFMON)
        yield "environment of others", lambda: Path(f"/proc/{victim}/environ").read_bytes()
    yield "name of others", lambda: Path(f"/proc/{victim}/comm").write_text("x")
    yield "ptrace", lambda: _system("ptrace", 16, victim, 0, 0)
    yield "shared memory", lambda: _system("shmget", 0, 4096, 0o1600)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _system(function: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
