"""What all tests share: the program as a process, photos, a container image, a clean machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wuwan_runner.wire import address, control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[1]
# Set where a skipped Docker test must fail the run.
REQUIRE_DOCKER = os.environ.get("WUWAN_REQUIRE_DOCKER") == "1"
BASE_IMAGE = os.environ.get("WUWAN_TEST_BASE_IMAGE", "")
TEST_IMAGE = "wuwan-test:latest"


def _docker_problem() -> str:
    """Why Docker cannot be used here; "" if it can."""
    if shutil.which("docker") is None:
        return "no docker command here"
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "the Docker daemon does not answer"
    return "" if done.returncode == 0 else "no Docker daemon answers here"


def pytest_configure() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need Docker where there is none, or fail them where there must be one."""
    marked = [item for item in items if item.get_closest_marker("docker")]
    if marked and not REQUIRE_DOCKER and (problem := _docker_problem()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=problem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A Docker test that skips itself all the same has failed where Docker is required."""
    report = yield
    if REQUIRE_DOCKER and report.skipped and item.get_closest_marker("docker"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but WUWAN_REQUIRE_DOCKER=1: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Workers of one test are its own, and none outlives it."""
    name = f"wuwan-test-{secrets.token_hex(4)}"
    monkeypatch.setenv(address.NAMESPACE_VARIABLE, name)
    yield name
    monkeypatch.setenv(address.NAMESPACE_VARIABLE, name)  # whatever the test made of it
    stop_workers()


def stop_workers(timeout: float = 10.0) -> None:
    """End all workers of this test's namespace, and wait until they are gone."""
    deadline = time.monotonic() + timeout
    while (places := address.listed()) and time.monotonic() < deadline:
        for place in places:
            try:
                with control.attach(place, 2.0) as worker:
                    worker.stop()
            except control.NoAnswerError:
                pass
        time.sleep(0.05)


@pytest.fixture
def photos() -> Path:
    """A directory with a few photos that may be published."""
    return REPOSITORY / "examples/photos"


@pytest.fixture(scope="session")
def sample() -> Path:
    """200 photos with known labels: `photos/` and `photos.tsv` (file, id, index)."""
    root = Path(os.environ.get("WUWAN_TEST_DATA", "/nonexistent"))
    if not (root / "photos.tsv").is_file():
        pytest.skip("WUWAN_TEST_DATA names no directory with photos.tsv and photos/")
    return root


@pytest.fixture
def wuwan() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs `wuwan ARGUMENTS…` as a process of its own; keywords as `subprocess.run`."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        settings: dict[str, object] = {"capture_output": True, "timeout": 90, "check": False}
        command = [sys.executable, "-m", "wuwan_cli", *map(str, arguments)]
        return subprocess.run(command, **(settings | options))  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture(scope="session")
def docker_image() -> str:
    """The name of an image built from this checkout by the real `wuwan image build`."""
    command = [sys.executable, "-m", "wuwan_cli", "image", "build", "--tag", TEST_IMAGE]
    if BASE_IMAGE:
        command += ["--base", BASE_IMAGE, "--network", "host"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return TEST_IMAGE
