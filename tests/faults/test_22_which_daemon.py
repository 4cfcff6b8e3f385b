"""Fault 22: a worker that is warm is not the one that was meant.

There are two daemons, the machine's and the test's own, which Docker's contexts name; images are
built anew under their old name, and the worker's code changes under its old version.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wuwan_worker
from tests.faults.own_daemon import Daemon, running
from wuwan_runner.wire import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = pytest.mark.timeout(180)


class Docker:
    """Docker's directory of a test, and environments that name a daemon by it."""

    def __init__(self, config: Path, daemon: Daemon) -> None:
        self.config = config
        for name, host in {"near": daemon.unix, "far": daemon.tcp}.items():
            where = f"--docker=host={host}"
            subprocess.run(
                ["docker", f"--config={config}", "context", "create", name, where],
                capture_output=True,
                timeout=30,
                check=True,
            )

    def environment(self, **variables: str) -> Mapping[str, str]:
        """This test's, with nothing that names a daemon but those variables."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")}
        return kept | {"DOCKER_CONFIG": str(self.config)} | variables

    def use(self, context: str) -> Mapping[str, str]:
        """The environment; that context is the current one."""
        (self.config / "config.json").write_text(json.dumps({"currentContext": context}))
        return self.environment()


@pytest.fixture(scope="module")
def daemon(docker_image: str) -> Iterator[Daemon]:
    """The test's own daemon, up, with the image."""
    with running() as own:
        own.load(docker_image)
        yield own


@pytest.fixture
def docker(daemon: Daemon, tmp_path: Path, tools: Any) -> Iterator[Docker]:
    """Its contexts; nothing is left there after."""
    yield Docker(tmp_path / "docker", daemon)
    with contextlib.suppress(AssertionError):
        tools.eventually(lambda: not daemon.containers(), 10)
    left = daemon.containers()
    for name in left:
        daemon.command("rm", "-f", name)
    assert not left


def _tag(wuwan: Any, album: Any, *more: object, **options: object) -> str:
    """A run that labels the album; what it said besides."""
    done = wuwan("tag", album.root, "--ttl", 60, *more, **options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return str(done.stderr.decode())


@pytest.mark.docker
@pytest.mark.parametrize("named", ["DOCKER_CONTEXT", "the current one"])
@pytest.mark.parametrize("context", ["near", "far"])
def test_all_verbs_know_the_context(
    tools: Any,
    wuwan: Any,
    docker: Docker,
    daemon: Daemon,
    docker_image: str,
    context: str,
    named: str,
) -> None:
    """A worker is started there, found there, shown and stopped, over a socket and over TCP."""
    env = (
        docker.environment(DOCKER_CONTEXT=context)
        if named == "DOCKER_CONTEXT"
        else docker.use(context)
    )
    album = tools.album(1)
    for _ in range(2):
        _tag(wuwan, album, "--image", docker_image, env=env)
    (container,) = daemon.containers()  # the second run found it warm
    listed = [json.loads(line) for line in wuwan("ps", "--json", env=env).stdout.splitlines()]
    assert [(worker["name"], worker["images_done"]) for worker in listed] == [(container, 2)]
    assert b"ready" in wuwan("logs", container, env=env).stdout
    report = wuwan("doctor", "--json", "--image", docker_image, env=env).stdout.decode()
    assert f"context {context}, " in report
    assert (daemon.tcp if context == "far" else daemon.unix) in report
    stopped = wuwan("stop", container, env=env)
    assert stopped.stdout.decode() == f"{container} stopped\n", stopped.stderr
    tools.eventually(lambda: not daemon.containers(), 10, "the container is gone")


@pytest.mark.docker
def test_workers_belong_to_their_daemon(
    tools: Any, wuwan: Any, docker: Docker, daemon: Daemon, docker_image: str, created: Any
) -> None:
    """A worker of one context does not serve another; a daemon of two names has one worker."""
    album = tools.album(1)
    arguments = (album, "--image", docker_image)
    _tag(wuwan, *arguments, env=docker.environment())
    assert daemon.containers() == []
    _tag(wuwan, *arguments, env=docker.environment(DOCKER_CONTEXT="near"))
    _tag(wuwan, *arguments, env=docker.environment(DOCKER_HOST=daemon.unix))
    _tag(wuwan, *arguments, env=docker.environment(DOCKER_HOST="unix:///var/run/docker.sock"))
    _tag(wuwan, *arguments, env=docker.environment(DOCKER_HOST="unix:///run/docker.sock"))
    assert (len(daemon.containers()), len(created.names())) == (1, 1)
    assert wuwan("stop", "--all", env=docker.environment(DOCKER_CONTEXT="near")).returncode == 0


@pytest.mark.docker
def test_a_context_that_does_not_exist(wuwan: Any, photos: Path) -> None:
    """Every verb that needs a daemon says so; where Docker is not asked for, the run goes on."""
    env = os.environ | {"DOCKER_CONTEXT": "wuwan-test-nowhere"}
    env.pop("DOCKER_HOST", None)
    photo = photos / "coffee.png"
    for verb in (("tag", photo, "--runner", "docker"), ("tag", photo, "--image", "x"), ("ps",)):
        done = wuwan(*verb, env=env)
        assert (done.returncode, done.stdout) == (4, b"")
        assert b"there is no Docker context wuwan-test-nowhere" in done.stderr
        assert b"docker context ls" in done.stderr
    done = wuwan("tag", photo, "--ttl", 0, env=env)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert b"using the local runner: there is no Docker context" in done.stderr


@pytest.fixture
def rebuilt(docker_image: str, tools: Any) -> Iterator[Callable[[str], str]]:
    """`rebuilt(LABEL)` builds an image anew, each time under the same name."""
    name = f"wuwan-test-rebuilt-{secrets.token_hex(4)}"

    def build(label: str) -> str:
        dockerfile = f"FROM {docker_image}\nLABEL test={label}\n"
        tools.docker("build", "-q", "-t", name, "-", data=dockerfile.encode())
        return name

    yield build
    tools.docker("rmi", "-f", name)


@pytest.mark.docker
def test_a_rebuilt_image_has_a_new_worker(
    tools: Any, wuwan: Any, rebuilt: Callable[[str], str], created: Any
) -> None:
    """Its name is the same; the old worker serves nobody any more, and a rebuild to the same id
    finds the one that is warm."""
    album = tools.album(1)
    images = []
    for label in ("one", "one", "two", "two"):
        _tag(wuwan, album, "--image", rebuilt(label))
        images.append(
            [tools.docker("inspect", "--format={{.Image}}", name) for name in created.names()]
        )
    assert [len(found) for found in images] == [1, 1, 2, 2]
    assert len(set(images[-1])) == 2


@pytest.mark.docker
@pytest.mark.parametrize("silence", ["it is gone", "it hangs"])
def test_a_warm_worker_outlives_its_daemon(
    tools: Any, wuwan: Any, docker: Docker, daemon: Daemon, docker_image: str, silence: str
) -> None:
    """A daemon that does not answer is no reason not to use what is warm; it is said."""
    album = tools.album(1)
    path = Path(daemon.unix.removeprefix("unix://"))
    aside = path.with_name("aside")
    env = docker.environment(DOCKER_CONTEXT="near")
    arguments = (album, "--runner", "docker", "--image", docker_image)
    assert "does not answer" not in _tag(wuwan, *arguments, env=env)
    path.rename(aside)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
            mute.bind(str(path))
            if silence == "it hangs":
                mute.listen()
            said = _tag(wuwan, *arguments, env=env)
            assert said.count("the Docker daemon does not answer: using the worker") == 1
    finally:
        path.unlink()
        aside.rename(path)
    assert len(daemon.containers()) == 1
    assert "does not answer" not in _tag(wuwan, *arguments, env=env)
    assert wuwan("stop", "--all", env=env).returncode == 0


def test_changed_code_has_a_new_local_worker(tools: Any, wuwan: Any, tmp_path: Path) -> None:
    """Of one version and in one place: what counts is what the modules contain."""
    source = Path(wuwan_worker.__file__).parent
    copy = tmp_path / "checkout/wuwan_worker"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | {"PYTHONPATH": str(copy.parent)}
    album, ups = tools.album(1), []
    for change in ("", "", "# another one\n"):
        with (copy / "ranking.py").open("a") as module:
            module.write(change)
        _tag(wuwan, album, "--runner", "local", env=env)
        ups.append(len(address.listed()))
    assert ups == [1, 1, 2]
