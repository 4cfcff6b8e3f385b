"""The Docker daemon: one way to reach it, with deadlines, and errors that say what to do."""

from __future__ import annotations

import contextlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wuwan_runner.containers import endpoint
from wuwan_runner.errors import WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker
    from docker.tls import TLSConfig

    from wuwan_runner.containers.endpoint import Tls

# A daemon may promise GPUs, and find out at a container's start that it has no driver for them.
_GPU_ERROR = re.compile(r"nvidia|\bCDI\b|device driver", re.IGNORECASE)
_GPU_HINT = "does `nvidia-smi` work on the daemon's machine? or use --gpus none"
# Where the client itself fails: what its reason has in it, and what to do.
_ANSWERS = (
    (re.compile("paramiko"), "pip install paramiko, or tunnel the daemon's socket with `ssh -L`"),
    (
        re.compile("credential", re.IGNORECASE),
        "install that helper, or take `credsStore` and `credHelpers` out of Docker's config.json",
    ),
    (
        re.compile(r"certificate|\bSSL|\bTLS|HTTPS server", re.IGNORECASE),
        "look at DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or at `docker context inspect`",
    ),
)


def may_answer() -> bool:
    """Whether looking for the daemon makes sense at all; costs no import and no connection.

    Raises WorkerUnavailableError as `endpoint.current`.
    """
    return endpoint.current().may_answer


def is_remote() -> bool:
    """Whether the daemon is on another machine, or may be.

    Raises WorkerUnavailableError as `endpoint.current`.
    """
    return endpoint.current().is_remote


@contextmanager
def connected(timeout: float) -> Iterator[docker.DockerClient]:
    """A client of the daemon (see `endpoint`); each call has `timeout` seconds.

    Raises:
        WorkerUnavailableError: if no daemon answers. Errors of calls inside are translated, too.
    """
    import docker
    import docker.errors
    import requests
    from docker.credentials.errors import StoreError

    target = endpoint.current()
    try:
        client = docker.DockerClient(
            target.host, timeout=max(1, int(timeout)), tls=_tls(target.tls) or False
        )
    except Exception as error:  # ssh:// has errors of its own, of a package that may not be there
        if isinstance(error.__cause__, requests.exceptions.Timeout):  # it is asked for its version
            raise _silent(timeout) from None
        raise unreachable(error) from None
    try:
        yield client
    except docker.errors.ImageNotFound as error:
        raise WorkerUnavailableError(
            f"the container image is not there: {explanation(error)}",
            hint="wuwan image build",
        ) from None
    except docker.errors.APIError as error:
        text = explanation(error)
        hint = _GPU_HINT if _GPU_ERROR.search(text) else ""
        raise WorkerUnavailableError(f"Docker refused: {text}", hint=hint) from None
    except requests.exceptions.Timeout:
        raise _silent(timeout) from None
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        StoreError,  # the credential helper, when an image is built
    ) as error:
        raise unreachable(error) from None
    finally:
        client.close()


def hang_up(stream: Any) -> None:
    """End one of docker-py's streams."""
    with contextlib.suppress(Exception):
        stream.close()
    # docker-py shuts its socket down, but leaves the descriptor to the garbage collector.
    with contextlib.suppress(Exception):
        stream._response.close()  # noqa: SLF001


def _silent(timeout: float) -> WorkerUnavailableError:
    return WorkerUnavailableError(
        f"the Docker daemon did not answer within {timeout:.0f} s",
        hint="is the machine overloaded? try `docker info`, and restart the daemon if it hangs",
    )


def unreachable(error: Exception) -> WorkerUnavailableError:
    """The error for a daemon that does not answer, or a client that cannot ask it."""
    text = str(error)
    if "Permission denied" in text:
        return WorkerUnavailableError(
            "no permission to speak to the Docker daemon",
            hint="add yourself to the group `docker` and log in again, or use --runner local",
        )
    for pattern, hint in _ANSWERS:
        if pattern.search(text):
            return WorkerUnavailableError(f"Docker's client: {explanation(error)}", hint=hint)
    target = endpoint.current()
    named = "" if target.chosen == "DOCKER_HOST" else f" ({target.chosen})"
    return WorkerUnavailableError(
        f"no Docker daemon answers at {target.host}{named}",
        hint="start it (`systemctl start docker`), set DOCKER_HOST, or use --runner local",
    )


def _tls(wanted: Tls | None) -> TLSConfig | None:
    from docker.tls import TLSConfig

    if wanted is None:
        return None
    pair = (wanted.certificate, wanted.key) if wanted.certificate or wanted.key else None
    return TLSConfig(client_cert=pair, ca_cert=wanted.ca or None, verify=wanted.verify)


def explanation(error: Any) -> str:
    """What the daemon said, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())
