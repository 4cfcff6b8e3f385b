"""What a container of ours may do, which it is, and that it can be removed. The daemon is real."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.starting import request_for
from wuwan_runner.containers import boot_socket, container
from wuwan_runner.errors import NoSharedFilesError, WorkerUnavailableError
from wuwan_runner.gpus.placement import Placement
from wuwan_runner.launchers.docker import DockerLauncher
from wuwan_runner.options import Timeouts, WorkerSpec
from wuwan_runner.wire import address
from wuwan_worker.shared import bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker

    from wuwan_runner.worker import StartRequest

MIB = 1024 * 1024
OURS = {
    container.LABEL_WORKER,
    container.LABEL_OWNER,
    container.LABEL_NAMESPACE,
    container.LABEL_KEY,
    container.LABEL_LISTENS,
}


def locked_down(client: docker.DockerClient, **settings: Any) -> Any:
    """With 64 MiB."""
    return container.locked_down(client, memory="64m", **settings)


def remove(name: str) -> None:
    """With ordinary deadlines."""
    container.remove(name, Timeouts())


@pytest.fixture
def request_of(docker_image: str) -> Callable[..., StartRequest]:
    """`request_of(SPEC…)`: for a worker in a container of the test image."""

    def make(**spec: Any) -> StartRequest:
        wanted = WorkerSpec(**({"image": docker_image, "gpus": "none"} | spec))
        return request_for(DockerLauncher(), wanted, ttl=7.5)

    return make


@pytest.fixture
def created(client: docker.DockerClient, namespace: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """`created(REQUEST, …)`: the description of a worker's container, which is not started."""
    made: list[str] = []

    def make(request: StartRequest, listen: tuple[str, ...] = (), **boot: Path) -> dict[str, Any]:
        made.append(f"{namespace}-made-{len(made)}")
        identity = container.create(client, request, made[-1], listen, **boot)
        found: dict[str, Any] = client.api.inspect_container(identity)
        return found

    yield make
    for name in made:
        if client.api.containers(all=True, filters={"name": name}):
            client.api.remove_container(name, force=True, v=True)


def check_locked_down(host: dict[str, Any], memory: int) -> None:
    """`host` is the daemon's HostConfig of a container of ours."""
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == container.PIDS
    assert (host["Memory"], host["MemorySwap"]) == (memory, memory)  # so there is no swap
    assert host["AutoRemove"] is True
    assert host["Init"] is True
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "1m", "max-file": "1"},
    }
    assert not host["PortBindings"]
    assert not host["Binds"]


@pytest.mark.docker
class TestLockedDown:
    """What anything may do that we run in a container."""

    def test_all_is_closed(
        self, client: docker.DockerClient, make_container: Callable[..., str]
    ) -> None:
        """As the daemon has understood it: nothing is open that nobody asked for."""
        name = make_container("true", start=False, host_config=locked_down(client))
        host = client.api.inspect_container(name)["HostConfig"]
        check_locked_down(host, 64 * MIB)
        assert not host.get("Tmpfs")
        assert not host["DeviceRequests"]
        assert not host.get("Mounts")

    def test_what_is_asked_for_is_open(
        self, client: docker.DockerClient, make_container: Callable[..., str], tmp_path: Path
    ) -> None:
        """Mounts, a GPU and a writable directory; all else stays as it was."""
        from docker.types import DeviceRequest, Mount

        asked = locked_down(
            client,
            mounts=[Mount("/in", str(tmp_path), type="bind", read_only=True)],
            devices=[DeviceRequest(driver="nvidia", device_ids=["3"])],
            scratch="/tmp",
        )
        name = make_container("true", start=False, host_config=asked)
        found = client.api.inspect_container(name)
        check_locked_down(found["HostConfig"], 64 * MIB)
        (mount,) = found["Mounts"]
        assert (mount["Source"], mount["Destination"], mount["RW"]) == (str(tmp_path), "/in", False)
        assert found["HostConfig"]["Tmpfs"] == {"/tmp": ""}
        (device,) = found["HostConfig"]["DeviceRequests"]
        assert (device["Driver"], device["DeviceIDs"]) == ("nvidia", ["3"])


@pytest.mark.docker
class TestCreate:
    """A worker's container."""

    def test_one_that_gets_a_socket(
        self,
        created: Callable[..., dict[str, Any]],
        request_of: Callable[..., StartRequest],
        docker_image: str,
        namespace: str,
        tmp_path: Path,
    ) -> None:
        """Locked down, with that one mount; its labels say whose it is, its arguments what."""
        with socket.socket(socket.AF_UNIX) as boot:
            boot.bind(str(path := tmp_path / "s"))
            request = request_of(memory="96m")
            found = created(request, ("--adopt=/x",), boot=path)
        check_locked_down(found["HostConfig"], 96 * MIB)
        (mount,) = found["Mounts"]
        assert (mount["Source"], mount["Destination"]) == (str(path), boot_socket.TARGET)
        assert mount["RW"] is False
        config = found["Config"]
        name = f"{namespace}-made-0"
        assert found["Name"] == f"/{name}"
        assert config["User"] == container.USER
        assert config["Image"] == docker_image
        assert {key: value for key, value in config["Labels"].items() if key in OURS} == {
            container.LABEL_WORKER: name,
            container.LABEL_OWNER: str(os.getuid()),
            container.LABEL_NAMESPACE: address.namespace(),
            container.LABEL_KEY: request.key,
        }
        assert config["Cmd"] == [
            *("python", "-m", "wuwan_worker", "--adopt=/x", f"--name={name}", "--runner=docker"),
            *("--model=imagenet-zh", "--backend=auto", "--device=cpu", "--ttl=7.5"),
        ]

    def test_one_that_listens_inside(
        self,
        created: Callable[..., dict[str, Any]],
        request_of: Callable[..., StartRequest],
    ) -> None:
        """It has no mount, and a label by which it is known."""
        found = created(request_of(), ("--listen", "x"))
        assert not found["Mounts"]
        assert found["Config"]["Labels"][container.LABEL_LISTENS] == "inside"

    def test_a_model_of_the_users(
        self,
        created: Callable[..., dict[str, Any]],
        request_of: Callable[..., StartRequest],
        tmp_path: Path,
    ) -> None:
        """It is mounted to be read; a directory that the daemon does not see is an error."""
        shutil.copytree(bundle.EMBEDDED / "imagenet-zh", tmp_path / "mine")
        request = request_of(model=str(tmp_path / "mine"))
        found = created(request)
        (mount,) = found["Mounts"]
        assert (mount["Source"], mount["RW"]) == (str(tmp_path / "mine"), False)
        assert f"--model={mount['Destination']}" in found["Config"]["Cmd"]
        shutil.rmtree(tmp_path / "mine")
        with pytest.raises(WorkerUnavailableError, match="does not see the directory") as caught:
            created(request)
        assert caught.value.hint == f"wuwan image build --model {tmp_path / 'mine'}"

    def test_a_daemon_that_sees_other_files(
        self,
        created: Callable[..., dict[str, Any]],
        request_of: Callable[..., StartRequest],
        tmp_path: Path,
    ) -> None:
        """A boot socket that is not there for the daemon: the exec channel is what is left."""
        with pytest.raises(NoSharedFilesError) as caught:
            created(request_of(), boot=tmp_path / "not there")
        assert caught.value.hint == "use --channel exec"

    def test_a_gpu_and_a_note(
        self,
        created: Callable[..., dict[str, Any]],
        request_of: Callable[..., StartRequest],
        docker_image: str,
    ) -> None:
        """Each worker has the GPU of its index; a note on the choice is told once."""
        placed = Placement("nvidia", ("4", "6"), docker_image, "a note")
        told: list[str] = []
        request = dataclasses.replace(request_of(), placement=lambda: placed, notify=told.append)
        for index, device in enumerate(("4", "6", "4")):
            found = created(dataclasses.replace(request, index=index))
            (given,) = found["HostConfig"]["DeviceRequests"]
            assert given["DeviceIDs"] == [device]
            assert "--device=cuda" in found["Config"]["Cmd"]
        assert told == ["a note"]


@pytest.mark.docker
class TestRemove:
    """However it is, it goes."""

    @pytest.mark.parametrize("state", ["created", "running", "paused"])
    def test_in_each_state(
        self,
        client: docker.DockerClient,
        make_container: Callable[..., str],
        gone: Callable[[str], None],
        state: str,
    ) -> None:
        """A paused container, too, whose processes cannot see a signal."""
        name = make_container("sleep", "60", start=state != "created")
        if state == "paused":
            client.api.pause(name)
        assert client.api.inspect_container(name)["State"]["Status"] == state
        remove(name)
        gone(name)

    def test_one_that_is_gone(
        self, make_container: Callable[..., str], gone: Callable[..., Any]
    ) -> None:
        """Is as it should be; so is one that was never there."""
        name = make_container("true")
        gone(name)
        remove(name)
        remove("wuwan-test-never-there")

    def test_by_several_at_once(
        self, make_container: Callable[..., str], gone: Callable[[str], None]
    ) -> None:
        """Who finds its removal under way has nothing to complain of."""
        name = make_container("sleep", "60")
        errors: list[Exception] = []
        start = threading.Barrier(6)

        def go() -> None:
            start.wait(10)
            try:
                remove(name)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=go) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        gone(name)
        assert not errors


def test_what_cannot_be_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a person can do it."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(WorkerUnavailableError, match="wuwan-x hangs and cannot be removed") as no:
        remove("wuwan-x")
    assert "no Docker daemon answers at tcp://127.0.0.1:1" in str(no.value)
    assert no.value.hint == "docker rm -f wuwan-x"
