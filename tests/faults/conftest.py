"""What the fault tests share: workers that fail on request, and a look at what a test has left."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wuwan_runner.containers import boot_socket
from wuwan_runner.wire import address, control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FAULT_WORKER = Path(__file__).parent / "fault_worker"
FAULT_IMAGE = "wuwan-test-faults"
DOCKER_TIMEOUT = 30  # seconds for one call of the docker command


# ---------------------------------------------------------------- processes and containers


def _docker(*arguments: str, check: bool = True, data: bytes | None = None) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        input=data,
        capture_output=True,
        timeout=DOCKER_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture
def docker_command() -> Callable[..., str]:
    """Runs `docker ARGUMENTS…`; its standard output."""
    return _docker


def _containers(namespace: str) -> list[str]:
    if shutil.which("docker") is None:
        return []
    listed = _docker(
        "ps", "-a", "--filter", f"label=io.wuwan.namespace={namespace}", "--format",
        "{{.Names}}", check=False,
    )  # fmt: skip
    return listed.split()


def _environment(pid: str) -> bytes:
    try:
        return b"\0" + Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return b""


def _processes(namespace: str) -> list[str]:
    """The processes of this test, but for the one it runs in: what they run, with their ids."""
    mark = f"\0{address.NAMESPACE_VARIABLE}={namespace}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if (
            entry.name.isdigit()
            and entry.name != str(os.getpid())
            and mark in _environment(entry.name)
        ):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if command:  # a zombie has none
                    found.append(f"{entry.name}: {command}")
    return found


class Inventory:
    """What of a test's namespace is on the machine now."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def containers(self) -> list[str]:
        """Names of containers, whatever their state."""
        return _containers(self.namespace)

    def processes(self) -> list[str]:
        """Workers of the local runner, CLIs, and their children."""
        return _processes(self.namespace)

    def boot_directories(self) -> list[str]:
        """Directories of boot sockets."""
        return [str(path) for path in boot_socket.base().glob(f"{boot_socket.PREFIX}*")]

    def sockets(self) -> list[str]:
        """Names of workers' sockets."""
        return [place.name[1:] for place in address.listed()]

    def all(self) -> dict[str, list[str]]:
        """All of it, by kind; empty if there is nothing."""
        kinds = {
            "processes": self.processes(),
            "sockets": self.sockets(),
            "boot directories": self.boot_directories(),
            "containers": self.containers(),
        }
        return {kind: found for kind, found in kinds.items() if found}


@pytest.fixture
def inventory(namespace: str) -> Inventory:
    """Says what of this test's processes, containers, sockets and directories is there."""
    return Inventory(namespace)


def _eventually(condition: Callable[[], Any], seconds: float, what: str = "") -> float:
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < seconds, f"not within {seconds:.0f} s: {what or condition}"
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.fixture
def eventually() -> Callable[..., float]:
    """`eventually(condition, seconds, what)` waits for something; how long it took."""
    return _eventually


@pytest.fixture(autouse=True)
def nothing_left(
    namespace: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """After each test: no container, no process, no socket, no boot directory.

    Warm workers that a test leaves to their TTL are asked to end first. All the rest must have
    gone by itself, and what has not is removed only after it was reported.
    """
    # Of this test alone, and short: a socket's path has 107 bytes.
    runtime = tempfile.mkdtemp(prefix="wuwan-faults-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    inventory = Inventory(namespace)
    assert not inventory.all()
    yield
    monkeypatch.setenv(address.NAMESPACE_VARIABLE, namespace)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    _stop_warm(inventory)
    deadline = time.monotonic() + 15.0
    while (left := inventory.all()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name in inventory.containers():
        _docker("unpause", name, check=False)
        _docker("rm", "-f", name, check=False)
    for process in inventory.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.partition(":")[0]), signal.SIGKILL)
    shutil.rmtree(runtime, ignore_errors=True)
    assert not left, f"left behind by {request.node.name}: {left}"


def _stop_warm(inventory: Inventory) -> None:
    for place in address.listed():
        with contextlib.suppress(control.NoAnswerError), control.attach(place, 2.0) as worker:
            worker.stop()
    # Those of the exec channel listen inside their container; SIGTERM drains them.
    for name in inventory.containers():
        _docker("kill", "--signal", "TERM", name, check=False)


# ---------------------------------------------------------------- the program


class Program:
    """`wuwan ARGUMENTS…` in the background."""

    def __init__(self, arguments: Sequence[object], **options: Any) -> None:
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            # A shell that runs the tests in the background has SIGINT ignored.
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        }
        command = [sys.executable, "-m", "wuwan_cli", *map(str, arguments)]
        self.process = subprocess.Popen(command, **(settings | options))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def lines(self, count: int, timeout: float = 60.0) -> bytes:
        """The next `count` lines of its standard output."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        descriptor, data, deadline = self.process.stdout.fileno(), b"", time.monotonic() + timeout
        while data.count(b"\n") < count:
            assert time.monotonic() < deadline, f"only {data!r} after {timeout:.0f} s"
            try:
                chunk = os.read(descriptor, 65536)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            assert chunk, f"it ended after {data!r}: {self.finish()[2]!r}"
            data += chunk
        return data

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def finish(self, timeout: float = 60.0, data: bytes | None = None) -> tuple[int, bytes, str]:
        """Wait for its end: exit code (negative: the signal), rest of the output, messages."""
        if self.process.stdout is not None:
            os.set_blocking(self.process.stdout.fileno(), True)
        out, err = self.process.communicate(data, timeout=timeout)
        return self.process.returncode, out or b"", (err or b"").decode()

    def close(self) -> None:
        """End it whatever it does."""
        if self.running:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait(10)


@pytest.fixture
def start(nothing_left: None) -> Iterator[Callable[..., Program]]:
    """`start("tag", …)` runs wuwan in the background; keywords are Popen's."""
    programs: list[Program] = []

    def make(*arguments: object, **options: Any) -> Program:
        programs.append(Program(arguments, **options))
        return programs[-1]

    yield make
    for program in programs:
        program.close()


def _parsed(output: bytes) -> list[dict[str, Any]]:
    assert not output or output.endswith(b"\n"), f"half a line: {output[-200:]!r}"
    return [json.loads(line) for line in output.decode("utf-8").splitlines()]


@pytest.fixture
def parsed() -> Callable[[bytes], list[dict[str, Any]]]:
    """Records from bytes of JSONL; half a line is an error."""
    return _parsed


# ---------------------------------------------------------------- images and workers that fail


class Album:
    """A directory of photos, good ones and `FAULT:` ones."""

    def __init__(self, root: Path, sources: Sequence[Path], count: int, faults: dict[int, str]):
        self.root = root
        root.mkdir(parents=True)
        self._sources: dict[str, str] = {}
        for number in range(count):
            if number in faults:
                (root / f"{number:03}-fault.jpg").write_bytes(f"FAULT:{faults[number]}\n".encode())
            else:
                source = sources[number % len(sources)]
                path = root / f"{number:03}-{source.name}"
                path.symlink_to(source)
                self._sources[str(path)] = source.name

    @property
    def paths(self) -> list[str]:
        """All, in the order of their records."""
        return sorted(str(path) for path in self.root.iterdir())

    def check(self, records: Sequence[dict[str, Any]], expected: dict[str, Any]) -> None:
        """One record for each, in order; each good one with its own labels."""
        assert [record["path"] for record in records] == self.paths
        self.check_good(records, expected)
        for record in records:
            if record["path"] not in self._sources:
                assert "error" in record, record

    def check_good(self, records: Sequence[dict[str, Any]], expected: dict[str, Any]) -> None:
        """Those records of good photos that there are: with the right labels."""
        for record in records:
            source = self._sources.get(record["path"])
            if source is not None:
                assert "error" not in record, record
                found = (record["labels"][0]["id"], record["width"], record["height"])
                assert found == expected[source], record


@pytest.fixture
def album(photos: Path, tmp_path: Path) -> Callable[..., Album]:
    """`album(count, {index: "segfault"})` makes a directory of photos, some of them faulty."""
    made = 0

    def make(count: int, faults: dict[int, str] | None = None) -> Album:
        nonlocal made
        made += 1
        sources = sorted(path for path in photos.iterdir() if path.suffix in (".png", ".jpg"))
        return Album(tmp_path / f"album-{made}", sources, count, faults or {})

    return make


@pytest.fixture(scope="session")
def expected() -> dict[str, tuple[str, int, int]]:
    """By file name: the best label's id, and the size, of the photos that albums are made of."""
    photos = Path(__file__).parents[2] / "examples/photos"
    command = [sys.executable, "-m", "wuwan_cli", "tag", photos, "--runner", "local", "--ttl", "0"]
    environment = os.environ | {address.NAMESPACE_VARIABLE: "wuwan-test-expected"}
    done = subprocess.run(command, capture_output=True, timeout=90, check=True, env=environment)
    return {
        Path(record["path"]).name: (record["labels"][0]["id"], record["width"], record["height"])
        for record in _parsed(done.stdout)
    }


@pytest.fixture
def faulty_local(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`faulty_local(WUWAN_FAULT_…=…)`: local workers obey faults from now on."""

    def apply(**environment: str) -> None:
        path = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv(
            "PYTHONPATH", f"{FAULT_WORKER}{os.pathsep}{path}" if path else str(FAULT_WORKER)
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return apply


def _build(name: str, dockerfile: str, files: Sequence[Path] = ()) -> str:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in files:
            member = archive.gettarinfo(str(path), path.name)
            member.mode, member.mtime = 0o644, 0  # so that the layer is found in the cache
            with path.open("rb") as content:
                archive.addfile(member, content)
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile.encode())
        archive.addfile(entry, io.BytesIO(dockerfile.encode()))
    _docker("build", "-q", "-t", name, "-", data=context.getvalue())
    return name


@pytest.fixture(scope="session")
def fault_image(docker_image: str) -> str:
    """The name of the test image whose worker obeys `FAULT:` images."""
    return _build(
        f"{FAULT_IMAGE}:latest",
        f"FROM {docker_image}\nCOPY sitecustomize.py /app/sitecustomize.py\n",
        [FAULT_WORKER / "sitecustomize.py"],
    )


@pytest.fixture(scope="session")
def fault_image_with(fault_image: str) -> Callable[..., str]:
    """`fault_image_with(WUWAN_FAULT_…=…, entrypoint=[…])`: that image, with more; its name."""
    base = _docker("inspect", "--format", "{{.Id}}", fault_image)

    def make(entrypoint: Sequence[str] = (), **environment: str) -> str:
        lines = [f"FROM {fault_image}"]
        lines += [f"ENV {name}={value}" for name, value in sorted(environment.items())]
        if entrypoint:
            lines.append(f"ENTRYPOINT {json.dumps(list(entrypoint))}")
        dockerfile = "\n".join(lines) + "\n"
        # Named for what it is: another run of the tests at the same time may build others.
        tag = hashlib.sha256((base + dockerfile).encode()).hexdigest()[:12]
        return _build(f"{FAULT_IMAGE}:{tag}", dockerfile)

    return make


class Created:
    """Which containers of a namespace were created, by the daemon's own account."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._since = time.time()

    def names(self) -> list[str]:
        """In the order of their creation."""
        listed = _docker(
            "events",
            f"--since={self._since:.3f}",
            f"--until={time.time():.3f}",
            f"--filter=label=io.wuwan.namespace={self._namespace}",
            "--filter=event=create",
            "--format={{.Actor.Attributes.name}}",
        )
        return listed.split()


@pytest.fixture
def created(namespace: str) -> Created:
    """Which containers were created since the test began."""
    return Created(namespace)


class Tools:
    """What most of these tests need, in one place."""

    def __init__(self, **tools: Any) -> None:
        self.start: Callable[..., Program] = tools["start"]
        self.album: Callable[..., Album] = tools["album"]
        self.inventory: Inventory = tools["inventory"]
        self.expected: dict[str, tuple[str, int, int]] = tools["expected"]
        self.parsed = _parsed
        self.eventually = _eventually
        self.docker = _docker


@pytest.fixture
def tools(
    start: Callable[..., Program],
    album: Callable[..., Album],
    inventory: Inventory,
    expected: dict[str, tuple[str, int, int]],
) -> Tools:
    """`start`, `album`, `inventory`, `expected`, `parsed`, `eventually`, `docker` in one."""
    return Tools(start=start, album=album, inventory=inventory, expected=expected)
