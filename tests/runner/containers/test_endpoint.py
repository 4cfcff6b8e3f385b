"""Which Docker daemon is meant, by environments and by what `docker context` has written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wuwan_runner.containers import endpoint
from wuwan_runner.containers.endpoint import DEFAULT, Endpoint, Tls
from wuwan_runner.errors import ExitCode, WorkerUnavailableError

LAB, FAR = "unix:///lab/docker.sock", "tcp://192.0.2.1:2376"


def directory(config: Path, part: str, name: str) -> Path:
    """Where a context has its `meta` or its `tls`."""
    return config / "contexts" / part / hashlib.sha256(name.encode()).hexdigest()


def context(config: Path, name: str, meta: object) -> None:
    """A context as `docker context create` writes it."""
    path = directory(config, "meta", name)
    path.mkdir(parents=True)
    (path / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))


def docker(host: str, **more: object) -> dict[str, object]:
    """A context's content."""
    return {"Name": "x", "Metadata": {}, "Endpoints": {"docker": {"Host": host, **more}}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Docker's directory, with two contexts."""
    path = tmp_path / ".docker"
    context(path, "lab", docker(LAB))
    context(path, "远方", docker(FAR, SkipTLSVerify=False))
    return path


@pytest.mark.parametrize(
    ("environment", "current", "host", "chosen"),
    [
        ({}, None, DEFAULT, "the default"),
        ({}, "", DEFAULT, "the default"),
        ({}, "default", DEFAULT, "the default"),
        ({}, "lab", LAB, "context lab, the current one"),
        ({"DOCKER_CONTEXT": "远方"}, None, FAR, "context 远方, by DOCKER_CONTEXT"),
        ({"DOCKER_CONTEXT": "远方"}, "lab", FAR, "context 远方, by DOCKER_CONTEXT"),
        ({"DOCKER_CONTEXT": "default"}, "lab", DEFAULT, "the default"),
        ({"DOCKER_CONTEXT": ""}, "lab", LAB, "context lab, the current one"),
        ({"DOCKER_HOST": "ssh://a@b"}, "lab", "ssh://a@b", "DOCKER_HOST"),
        ({"DOCKER_HOST": "ssh://a@b", "DOCKER_CONTEXT": "none"}, None, "ssh://a@b", "DOCKER_HOST"),
        ({"DOCKER_HOST": "", "DOCKER_CONTEXT": "lab"}, None, LAB, "context lab, by DOCKER_CONTEXT"),
        ({"DOCKER_HOST": "unix://"}, "lab", DEFAULT, "DOCKER_HOST"),
    ],
)
@pytest.mark.parametrize("by", ["HOME", "DOCKER_CONFIG"])
def test_which_daemon(
    config: Path, by: str, environment: dict[str, str], current: str | None, host: str, chosen: str
) -> None:
    """DOCKER_HOST, else DOCKER_CONTEXT, else the current context, else the default socket."""
    if current is not None:
        (config / "config.json").write_text(json.dumps({"currentContext": current}))
    place = {"HOME": str(config.parent)} if by == "HOME" else {"DOCKER_CONFIG": str(config)}
    found = endpoint.resolve(environment | place)
    assert (found.host, found.chosen, found.tls) == (host, chosen, None)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"currentContext": null}'])
def test_a_config_that_says_nothing(config: Path, content: str) -> None:
    """As for Docker's own command, it is as good as none."""
    (config / "config.json").write_text(content)
    assert endpoint.resolve({"HOME": str(config.parent)}) == Endpoint()


@pytest.mark.parametrize("by", ["DOCKER_CONTEXT", "config.json"])
def test_a_context_that_does_not_exist(config: Path, by: str) -> None:
    """Exit code 4; the name, who named it, and what to do."""
    environment = {"DOCKER_CONFIG": str(config)}
    if by == "DOCKER_CONTEXT":
        environment[by] = "nowhere"
    else:
        (config / by).write_text('{"currentContext": "nowhere"}')
    with pytest.raises(WorkerUnavailableError, match="there is no Docker context nowhere") as error:
        endpoint.resolve(environment)
    assert error.value.exit_code == ExitCode.UNAVAILABLE
    assert "docker context ls" in error.value.hint
    assert ("unset DOCKER_CONTEXT" in error.value.hint) == (by == "DOCKER_CONTEXT")


@pytest.mark.parametrize(
    "meta", ["", "{", "[]", "null", "{}", {"Endpoints": {"kubernetes": {}}}, {"Endpoints": []}]
)
def test_a_context_that_cannot_be_read(config: Path, meta: object) -> None:
    """It was asked for, so no other daemon will do."""
    context(config, "broken", meta)
    with pytest.raises(WorkerUnavailableError, match="context broken, by DOCKER_CONTEXT, cannot"):
        endpoint.resolve({"DOCKER_CONFIG": str(config), "DOCKER_CONTEXT": "broken"})


@pytest.mark.parametrize(
    ("skip", "files", "expected"),
    [
        (False, (), None),
        (True, (), (False, False, False, False)),
        (False, ("ca",), (True, False, False, True)),
        (False, ("ca", "cert", "key"), (True, True, True, True)),
        (True, ("ca", "cert", "key"), (True, True, True, False)),
    ],
)
def test_the_tls_of_a_context(
    config: Path, skip: bool, files: tuple[str, ...], expected: tuple[bool, ...] | None
) -> None:
    """What it has of certificates is used; without any, and without a wish, there is no TLS."""
    context(config, "tls", docker(FAR, SkipTLSVerify=skip))
    place = directory(config, "tls", "tls") / "docker"
    place.mkdir(parents=True)
    for name in files:
        (place / f"{name}.pem").touch()
    # The variables belong to DOCKER_HOST.
    more = {"DOCKER_CONTEXT": "tls", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/x"}
    tls = endpoint.resolve({"DOCKER_CONFIG": str(config), **more}).tls
    if expected is None:
        assert tls is None
        return
    paths = [str(place / f"{name}.pem") for name in ("ca", "cert", "key")]
    found = [path if there else "" for path, there in zip(paths, expected[:3], strict=True)]
    assert tls == Tls(*found, verify=expected[3])


@pytest.mark.parametrize(
    ("more", "place", "verify"),
    [
        ({"DOCKER_TLS_VERIFY": "1"}, "/conf", True),
        ({"DOCKER_CERT_PATH": "/certs"}, "/certs", False),
        ({"DOCKER_CERT_PATH": "/certs", "DOCKER_TLS_VERIFY": "1"}, "/certs", True),
    ],
)
def test_the_tls_of_the_variables(more: dict[str, str], place: str, verify: bool) -> None:
    """As for Docker's own command."""
    found = endpoint.resolve({"DOCKER_HOST": FAR, "DOCKER_CONFIG": "/conf", **more})
    assert found.tls == Tls(f"{place}/ca.pem", f"{place}/cert.pem", f"{place}/key.pem", verify)


@pytest.mark.parametrize(
    ("host", "remote"),
    [
        (DEFAULT, False),
        ("unix:///elsewhere", False),
        ("tcp://127.0.0.1:2375", True),  # may be a tunnel's end
        ("ssh://somebody@somewhere", True),
    ],
)
def test_which_daemon_is_remote(host: str, remote: bool) -> None:
    """One that is reached by a file is on this machine; of the others nobody knows."""
    assert Endpoint(host).is_remote is remote


def test_whether_a_daemon_may_answer(tmp_path: Path) -> None:
    """A socket that is not there answers nobody; of a host only asking can tell."""
    (tmp_path / "there").touch()
    assert Endpoint(f"unix://{tmp_path}/there").may_answer
    assert not Endpoint(f"unix://{tmp_path}/missing").may_answer
    assert Endpoint("tcp://192.0.2.1:2375").may_answer


def test_one_daemon_by_several_names(tmp_path: Path) -> None:
    """Shares its workers."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    names = [f"unix://{tmp_path}/{folder}/s" for folder in ("run", "var", "run/../run")]
    assert len({Endpoint(name).identity for name in names}) == 1
    assert Endpoint().identity == Endpoint(DEFAULT, "DOCKER_HOST").identity
    assert Endpoint("unix://var/run/docker.sock").identity == Endpoint().identity
    assert Endpoint(f"{FAR}/").identity == Endpoint(FAR).identity
    assert Endpoint(FAR).identity != Endpoint(LAB).identity


def test_a_process_has_one_daemon(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `docker context use` does meanwhile concerns the next run; a variable is another one."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    assert endpoint.current() == Endpoint()
    (config / "config.json").write_text('{"currentContext": "lab"}')
    assert endpoint.current() == Endpoint()
    monkeypatch.setenv("DOCKER_CONTEXT", "lab")
    assert endpoint.current().host == LAB
