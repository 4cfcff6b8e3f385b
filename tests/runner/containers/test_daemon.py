"""Errors of the Docker daemon, and what they tell people.

The daemon is the real one. What it cannot be made to do, to hang or to break off, does a server
that speaks as much HTTP as is needed to get there.
"""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.stranger import as_stranger
from tests.runner.containers.conftest import wait_until
from wuwan_runner.containers import daemon, endpoint
from wuwan_runner.containers.endpoint import Endpoint, Tls
from wuwan_runner.errors import ExitCode, WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

NO_IMAGE = "wuwan-test:none"


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Answers with its version, unless it hangs at once, and to nothing else as it should."""

    def __init__(self, path: Path, fault: str) -> None:
        self.fault = fault
        self.over = threading.Event()
        super().__init__(str(path), _Answers)

    def server_close(self) -> None:
        """Those who wait in here go, too."""
        self.over.set()
        super().server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Daemon

    def address_string(self) -> str:
        """A Unix socket's peer has none."""
        return "-"

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        fault = self.server.fault
        if fault == "hangs at once" or (fault == "hangs" and self.path != "/version"):
            self.server.over.wait(30)
        elif fault == "breaks off" and self.path != "/version":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "is no daemon":
            self._say({"message": "hello"})
        else:
            self._say({"ApiVersion": "1.41"})

    def _say(self, content: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`faulty(FAULT)`: DOCKER_HOST names a daemon with that fault from now on."""
    with contextlib.ExitStack() as ends:

        def make(fault: str) -> None:
            server = ends.enter_context(Daemon(path := tmp_path / "s", fault))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            ends.callback(thread.join, 10)
            ends.callback(server.shutdown)
            monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")

        yield make


def refused(ask: Callable[[docker.DockerClient], object], timeout: float = 30) -> Any:
    """What `connected` makes of the error of a call inside."""
    with (
        pytest.raises(WorkerUnavailableError) as caught,
        daemon.connected(timeout) as client,
    ):
        ask(client)
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.docker
@pytest.mark.usefixtures("descriptors")
class TestRealDaemon:
    """What the daemon of this machine refuses."""

    def test_no_such_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cure is to build it, wherever it was missed."""
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        for ask in (
            lambda client: client.images.get(NO_IMAGE),
            lambda client: client.api.create_container(NO_IMAGE),
        ):
            error = refused(ask)
            assert str(error).startswith("the container image is not there: ")
            assert NO_IMAGE in str(error)
            assert error.hint == "wuwan image build"

    def test_a_request_that_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The daemon's own words, in one line, and no advice that would lead astray."""
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        error = refused(lambda client: client.api.inspect_container("wuwan-test-no-such"))
        assert str(error) == "Docker refused: No such container: wuwan-test-no-such"
        assert error.hint == ""

    def test_a_gpu_that_is_refused(
        self, make_container: Callable[..., str], client: docker.DockerClient
    ) -> None:
        """A driver that is missing shows at the start only: the hint names the GPU's options."""
        from docker.types import DeviceRequest

        devices = [DeviceRequest(driver="wuwan-test-no-such", count=1)]
        host = client.api.create_host_config(network_mode="none", device_requests=devices)
        name = make_container("true", start=False, host_config=host)
        error = refused(lambda other: other.api.start(name))
        assert "could not select device driver" in str(error)
        assert "nvidia-smi" in error.hint
        assert "--gpus none" in error.hint

    def test_errors_of_other_kinds_pass(self) -> None:
        """Only what the daemon says is translated."""
        with pytest.raises(ZeroDivisionError), daemon.connected(30):
            raise ZeroDivisionError

    def test_to_hang_up_ends_a_stream(self, client: docker.DockerClient) -> None:
        """Whoever reads it goes on, and its descriptor is free at once."""
        before = len(os.listdir("/proc/self/fd"))
        events = client.api.events(decode=True, filters={"container": "wuwan-test-no-such"})

        def read() -> None:
            with contextlib.suppress(Exception):
                list(events)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            wait_until(lambda: len(os.listdir("/proc/self/fd")) > before)
        finally:
            daemon.hang_up(events)
            thread.join(10)
        assert not thread.is_alive()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("descriptors")
class TestFaultyDaemon:
    """What a daemon does that is overloaded, ends, or is none."""

    @pytest.mark.parametrize("fault", ["hangs", "hangs at once"])
    def test_a_daemon_that_hangs(self, faulty: Callable[[str], None], fault: str) -> None:
        """Each call has its deadline, the first one, too; it is said what was waited for."""
        faulty(fault)
        started = time.monotonic()
        error = refused(lambda client: client.api.info(), 1)
        assert time.monotonic() - started < 10
        assert str(error) == "the Docker daemon did not answer within 1 s"
        assert "restart the daemon" in error.hint

    @pytest.mark.parametrize("fault", ["breaks off", "is no daemon"])
    def test_a_daemon_that_goes(self, faulty: Callable[[str], None], fault: str) -> None:
        """It is named as it was looked for."""
        faulty(fault)
        error = refused(lambda client: client.api.info())
        assert str(error) == f"no Docker daemon answers at {os.environ['DOCKER_HOST']}"
        assert "--runner local" in error.hint


# docker-py leaves the socket of a connection that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "host",
    ["unix:///nonexistent/s", "tcp://127.0.0.1:1", "tcp://127.0.0.1:x", "nonsense", "x://y"],
)
def test_no_daemon(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever DOCKER_HOST says, it is repeated, and what may be done is said."""
    monkeypatch.setenv("DOCKER_HOST", host)
    error = refused(lambda client: client.api.info())
    assert str(error) == f"no Docker daemon answers at {host}"
    assert "set DOCKER_HOST" in error.hint
    del error
    gc.collect()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is what is missing, not the daemon."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")

    def attempt() -> list[str]:
        error = refused(lambda client: client.api.info())
        return [str(error), error.hint]

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{tmp_path}/s")
        listener.listen()
        message, hint = as_stranger(attempt)
    assert message == "no permission to speak to the Docker daemon"
    assert "group `docker`" in hint


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("Install paramiko package to enable ssh:// support", "pip install paramiko"),
        (
            "Credentials store error: InitializationError('docker-credential-x not installed')",
            "`credsStore`",
        ),
        ("Invalid CA certificate provided for `ca_cert`.", "DOCKER_CERT_PATH"),
        ("Client sent an HTTP request to an HTTPS server.", "DOCKER_TLS_VERIFY"),
    ],
)
def test_what_the_client_itself_cannot_do(error: str, hint: str) -> None:
    """Its own reason, and an answer to it: the daemon may be well."""
    made = daemon.unreachable(OSError(error))
    assert str(made) == f"Docker's client: {error}"
    assert hint in made.hint


def test_ssh_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-py needs paramiko for it, and says so."""
    monkeypatch.delattr("docker.api.client.SSHHTTPAdapter", raising=False)  # if it is installed
    monkeypatch.setenv("DOCKER_HOST", "ssh://somebody@127.0.0.1:1")
    error = refused(lambda client: client.api.info())
    assert "paramiko" in str(error)
    assert "pip install paramiko" in error.hint


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Of a CA, in a directory like a context's: for a server at 127.0.0.1, and for a client."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")

    def openssl(*arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, timeout=30, check=True
        )

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-subj=/CN=ca", "-days=2", "-keyout=ca.key", "-out=ca.pem")
    for name in ("server", "client"):
        openssl("req", *new, f"-subj=/CN={name}", f"-keyout={name}.key", f"-out={name}.csr")
        signed = ("-CA=ca.pem", "-CAkey=ca.key", "-CAcreateserial", "-days=2", "-extfile=names")
        openssl("x509", "-req", f"-in={name}.csr", *signed, f"-out={name}.crt")
    (tmp_path / "client.crt").rename(tmp_path / "cert.pem")
    (tmp_path / "client.key").rename(tmp_path / "key.pem")
    return tmp_path


# docker-py leaves the socket of a connection that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_tls_by_a_context(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificates are shown and checked; without them the reason is TLS's, with an answer."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # they go before what a client is told
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    class Quiet(socketserver.ThreadingTCPServer):
        fault = "none"

        def handle_error(self, *_: object) -> None:
            """A handshake that fails is the test's."""

    with Quiet(("127.0.0.1", 0), _Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            files = [str(certificates / f"{name}.pem") for name in ("ca", "cert", "key")]
            host = f"tcp://127.0.0.1:{server.server_address[1]}"
            for tls in (Tls(*files), Tls("", *files[1:], verify=False)):
                monkeypatch.setattr(endpoint, "current", lambda tls=tls: Endpoint(host, "x", tls))
                with daemon.connected(30) as client:
                    assert client.api._version == "1.41"
            for tls in (Tls(files[0]), Tls(), Tls("", *files[1:]), Tls(*files[:2], "/missing")):
                monkeypatch.setattr(endpoint, "current", lambda tls=tls: Endpoint(host, "x", tls))
                error = refused(lambda client: client.api.info())
                assert str(error).startswith("Docker's client: "), error
                assert "docker context inspect" in error.hint
        finally:
            server.shutdown()
            thread.join(10)
        del error
        gc.collect()


@pytest.mark.docker
@pytest.mark.filterwarnings("ignore:docker-credential-nowhere")  # docker-py's, besides its error
def test_a_credential_helper_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for when an image is built, and named."""
    (tmp_path / "config.json").write_text('{"credsStore": "nowhere"}')
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    error = refused(lambda client: client.api.build(fileobj=io.BytesIO(), custom_context=True))
    assert "docker-credential-nowhere not installed" in str(error)
    assert "`credsStore`" in error.hint


def test_an_explanation_has_one_line() -> None:
    """The daemon's, or the error's own where it has none."""
    error: Any = OSError("no\n  explanation")
    assert daemon.explanation(error) == "no explanation"
    error.explanation = "a\tlong\n\nstory "
    assert daemon.explanation(error) == "a long story"
