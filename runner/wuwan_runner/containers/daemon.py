"""The Docker daemon: one way to reach it, with deadlines, and errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuwan_runner.errors import WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

# A daemon may promise GPUs, and find out at a container's start that it has no driver for them.
_GPU_ERROR = re.compile(r"nvidia|\bCDI\b|device driver", re.IGNORECASE)
_GPU_HINT = "does `nvidia-smi` work on the daemon's machine? or use --gpus none"
DEFAULT_SOCKET = "/var/run/docker.sock"


def may_answer() -> bool:
    """Whether looking for a daemon makes sense at all; costs no import and no connection."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host or host.startswith("unix://"):
        return Path(host.removeprefix("unix://") or DEFAULT_SOCKET).exists()
    return True


@contextmanager
def connected(timeout: float) -> Iterator[docker.DockerClient]:
    """A client of the daemon that DOCKER_HOST names; each call has `timeout` seconds.

    Raises:
        WorkerUnavailableError: if no daemon answers. Errors of calls inside are translated, too.
    """
    import docker
    import docker.errors
    import requests

    try:
        client = docker.from_env(timeout=max(1, int(timeout)))
    except (docker.errors.DockerException, ValueError) as error:
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
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise unreachable(error) from None
    finally:
        client.close()


def is_remote() -> bool:
    """Whether DOCKER_HOST names a daemon on another machine, or one that may be."""
    host = os.environ.get("DOCKER_HOST", "")
    return bool(host) and not host.startswith("unix://")


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
    """The error for a daemon that does not answer."""
    text = str(error)
    if "Permission denied" in text:
        return WorkerUnavailableError(
            "no permission to speak to the Docker daemon",
            hint="add yourself to the group `docker` and log in again, or use --runner local",
        )
    where = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    return WorkerUnavailableError(
        f"no Docker daemon answers at {where}",
        hint="start it (`systemctl start docker`), set DOCKER_HOST, or use --runner local",
    )


def explanation(error: Any) -> str:
    """What the daemon said, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())
