"""Other users of the machine: what they put in its shared places harms nobody.

The attacker and the victim are two user ids, each in processes of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
PATHS = [*(str(REPOSITORY / part) for part in ("", "runner", "image")), *site.getsitepackages()]
ATTACKER, VICTIM, GROUP = 12345, 12346, 12347
# A run that meets a bug, so that it writes a log file.
BREAK = (
    "import sys; import wuwan_cli.inputs as inputs\n"
    "def broken(*_, **__): raise RuntimeError('boom')\n"
    "inputs.Inputs.of = broken\n"
    "sys.argv = ['wuwan', 'tag', 'x']\n"
    "from wuwan_cli.main import run; run()"
)
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")


def _interpreter() -> str:
    """One that everybody can run, as the tests' own may not be, with their packages."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            run = _as(VICTIM, candidate, "-c", "import wuwan_cli.main, msgpack, typer")
        except OSError:
            continue
        if run.returncode == 0:
            return candidate
    pytest.skip("no Python here that another user could run with these packages")


def _as(
    user: int, *command: str, groups: tuple[int, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=list(groups),
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(PATHS), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Machine:
    """A shared temporary directory, and the files of the victim's that are at stake."""

    def __init__(self, root: Path, python: str) -> None:
        self.python = python
        self.shared = root / "tmp"
        self.shared.mkdir()
        self.shared.chmod(0o1777)
        self.logs = root / "home" / "log"  # of another program of the victim's
        self.logs.mkdir(parents=True)
        names = [f"200001{day:02}T000000-1.log" for day in range(12)]
        for name in [*names, *(f"diary-{day}.log" for day in range(12))]:
            (self.logs / name).write_text("precious")
        for path in (root / "home", self.logs, *self.logs.iterdir()):
            os.chown(path, VICTIM, VICTIM)
        self.precious = self._snapshot()
        self.ours = self.shared / f"wuwan-{VICTIM}"

    def _snapshot(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.logs.iterdir()}

    def attack(self, shell: str, groups: tuple[int, ...] = ()) -> None:
        """Run commands as the attacker; `$OURS` is where the victim's directory will be."""
        names = {"OURS": str(self.ours), "LOGS": str(self.logs), "HOME_": str(self.logs.parent)}
        done = _as(ATTACKER, "/bin/sh", "-ec", shell, groups=groups, **names)
        assert done.returncode == 0, done.stderr

    def victim(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python as the victim, who has no home directory."""
        places = {
            "TMPDIR": str(self.shared),
            "HOME": "/nonexistent",
            "DOCKER_HOST": "tcp://127.0.0.1:9",
        }
        return _as(VICTIM, self.python, *arguments, **places)

    def crash(self) -> str:
        """A run of the victim's that meets a bug; its message."""
        done = self.victim("-c", BREAK)
        assert done.returncode == 1
        assert done.stderr.startswith("wuwan: internal error: RuntimeError: boom; ")
        return done.stderr

    def check(self) -> None:
        """Nothing of the victim's has gone, changed or come."""
        assert self._snapshot() == self.precious

    def doctor(self, check: str) -> dict[str, Any]:
        """What `wuwan doctor` says to the victim of one of its checks."""
        done = self.victim("-m", "wuwan_cli", "doctor", "--json")
        found = {entry["name"]: entry for entry in json.loads(done.stdout)["checks"]}
        return found[check]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with two users. Not in pytest's directory, which is root's alone."""
    python = _interpreter()
    root = Path(tempfile.mkdtemp(prefix="wuwan-strangers-"))
    root.chmod(0o755)
    yield Machine(root, python)
    shutil.rmtree(root)


ATTACKS = {
    "our directory is a link": ("ln -s $HOME_ $OURS", "is a link"),
    "log is a link": ("mkdir -m 755 $OURS; ln -s $LOGS $OURS/log", f"id {ATTACKER}"),
    "a directory of the attacker's": (
        "mkdir $OURS $OURS/log; chmod 777 $OURS $OURS/log",
        f"id {ATTACKER}",
    ),
    "a file": ("touch $OURS", "is a link, or no directory"),
}


@pytest.mark.parametrize(("shell", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_a_directory_that_somebody_else_made(machine: Machine, shell: str, reason: str) -> None:
    """A log is written nowhere rather than there, and none of ours is removed; doctor says why."""
    machine.attack(shell)
    before = sorted(machine.shared.rglob("*"))
    assert "no place to write the details to" in machine.crash()
    machine.check()
    assert sorted(machine.shared.rglob("*")) == before
    found = machine.doctor("log directory")
    assert found["outcome"] == "fail"
    assert reason in found["detail"]
    machine.check()


def test_a_directory_that_a_group_can_write_to(machine: Machine) -> None:
    """It is the victim's own, but `log` in it is not."""
    machine.ours.mkdir()
    os.chown(machine.ours, VICTIM, GROUP)
    machine.ours.chmod(0o770)
    machine.attack("ln -s $LOGS $OURS/log", groups=(GROUP,))
    assert "no place to write the details to" in machine.crash()
    machine.check()
    found = machine.doctor("log directory")
    assert found["outcome"] == "fail"
    assert "can be written to by others" in found["detail"]


def test_a_directory_that_changes_all_the_time(machine: Machine) -> None:
    """Between any two looks at it, the attacker puts another one in its place."""
    machine.attack("mkdir $OURS.link $OURS.dir; ln -s $LOGS $OURS.link/log; mkdir $OURS.dir/log")
    # By a rename, so that the victim never finds the name free.
    swap = "ln -s $OURS.$k $OURS.new; mv -T $OURS.new $OURS"
    machine.attack(f"k=dir; {swap}")
    swap = f"while true; do for k in link dir; do {swap}; done; done"
    swapping = subprocess.Popen(
        ["/bin/sh", "-c", swap],
        user=ATTACKER,
        group=ATTACKER,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "OURS": str(machine.ours)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            machine.crash()
            machine.check()
    finally:
        os.killpg(swapping.pid, signal.SIGKILL)
        swapping.wait(10)


def test_ours_is_used_and_kept_to_ourselves(machine: Machine) -> None:
    """Without an attack the log is there; what is no log of ours stays, and what links lead to."""
    assert f"details in {machine.ours}/log/" in machine.crash()
    assert [path.stat().st_mode & 0o777 for path in (machine.ours, machine.ours / "log")] == [
        0o700,
        0o700,
    ]
    (machine.ours / "log" / "diary.log").touch()
    for name in machine.precious:
        (machine.ours / "log" / name).hardlink_to(machine.logs / name)
    (machine.ours / "log" / "20000101T000000-2.log").symlink_to(machine.logs / "diary-1.log")
    machine.crash()
    machine.check()
    kept = [path.name for path in (machine.ours / "log").iterdir()]
    assert "diary.log" in kept
    assert len([name for name in kept if name.startswith("2")]) == 10
    found = machine.doctor("log directory")
    assert found["outcome"] == "warn"  # there is no home
    assert str(machine.ours) in found["detail"]


def test_doctor_cleans_nothing_that_others_point_at(machine: Machine) -> None:
    """What bears the name of a dead run's directory, and is a link or somebody else's, stays."""
    os.utime(machine.logs, (0, 0))
    machine.attack(
        "cd $(dirname $OURS); ln -s $LOGS wuwan-boot-a; ln -s $HOME_ wuwan-boot-b;"
        "mkdir -m 777 wuwan-boot-c; touch wuwan-boot-c/s; touch -d 2000-01-01 wuwan-boot-c"
    )
    ours = machine.shared / "wuwan-boot-d"
    ours.mkdir(0o700)
    os.chown(ours, VICTIM, VICTIM)
    os.utime(ours, (0, 0))
    before = sorted(machine.shared.iterdir())
    done = machine.victim("-m", "wuwan_cli", "doctor", "--clean", "--json")
    assert done.stderr == f"wuwan: removed directory {ours}\n"
    machine.check()
    assert sorted(machine.shared.iterdir()) == [path for path in before if path != ours]


def test_another_users_runtime_directory(machine: Machine) -> None:
    """`su` keeps XDG_RUNTIME_DIR: whose it is could put another socket in the place of ours."""
    machine.attack("mkdir -m 777 $OURS.runtime")
    script = (
        "import os; os.environ['XDG_RUNTIME_DIR'] = os.environ['TMPDIR'] + '/wuwan-12346.runtime'\n"
        "from wuwan_runner.containers import boot_socket; print(boot_socket.base())"
    )
    assert machine.victim("-c", script).stdout == f"{machine.shared}\n"
