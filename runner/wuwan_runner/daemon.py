"""The Docker daemon: one way to reach it, with deadlines, and errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuwan_runner.errors import EngineError
from wuwan_runner.launchers.base import Ending
from wuwan_worker import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

_MEMORY = 3600.0  # seconds of the past in which a container's end is looked for
_LAST_EVENT = 2.0  # seconds an end that is under way may take
_FRESH = 5.0  # seconds: a newer end is the one that is asked for
# A daemon may promise GPUs, and find out at a container's start that it has no driver for them.
_GPU_ERROR = re.compile(r"nvidia|\bCDI\b|device driver", re.IGNORECASE)
_GPU_HINT = "does `nvidia-smi` work on the daemon's machine? or use --gpus none"
DEFAULT_SOCKET = "/var/run/docker.sock"
# Labels of our containers and images.
LABEL_WORKER = "io.wuwan.worker"  # the worker's name
LABEL_OWNER = "io.wuwan.owner"  # uid of who started it
LABEL_NAMESPACE = "io.wuwan.namespace"
LABEL_KEY = "io.wuwan.key"
LABEL_LISTENS = "io.wuwan.listens"  # only on workers that listen inside their container
LABEL_VARIANT = "io.wuwan.variant"  # of the image: cpu, gpu
LABEL_MODELS = "io.wuwan.models"  # of the image: the bundles that were added to it


def own_image(variant: str) -> str:
    """The name of this version's own image of that variant."""
    return f"wuwan:{__version__}" if variant == "cpu" else f"wuwan:{__version__}-{variant}"


def build_hint(variant: str) -> str:
    """The command that makes this version's own image of that variant."""
    return "wuwan image build" if variant == "cpu" else f"wuwan image build --variant {variant}"


def image_reference(image: str) -> str:
    """The image to run: the given one, or this version's own."""
    return image or own_image("cpu")


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
        EngineError: if no daemon answers. Errors of calls inside are translated, too.
    """
    import docker
    import docker.errors
    import requests

    try:
        client = docker.from_env(timeout=max(1, int(timeout)))
    except (docker.errors.DockerException, ValueError) as error:
        raise unreachable(error) from None
    try:
        yield client
    except docker.errors.ImageNotFound as error:
        raise EngineError(
            f"the container image is not there: {explanation(error)}",
            hint="wuwan image build",
        ) from None
    except docker.errors.APIError as error:
        text = explanation(error)
        hint = _GPU_HINT if _GPU_ERROR.search(text) else ""
        raise EngineError(f"Docker refused: {text}", hint=hint) from None
    except requests.exceptions.Timeout:
        raise EngineError(
            f"the Docker daemon did not answer within {timeout:.0f} s",
            hint="is the machine overloaded? try `docker info`, and restart the daemon if it hangs",
        ) from None
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


def post_mortem(client: docker.DockerClient, name: str) -> Ending:
    """How a container ended; empty if the daemon does not know, or it goes on.

    A container that removes itself leaves nothing to inspect, but the daemon remembers its last
    events. Its end may be under way: it is waited for, a little.
    """
    now = time.time()
    oom, killed, code = False, False, ""
    until: Any = f"{now + _LAST_EVENT:.3f}"  # the daemon takes fractions, docker-py no floats
    events = client.api.events(
        since=int(now - _MEMORY),
        until=until,
        filters={"container": name},
        decode=True,
    )
    try:
        for event in events:
            action = str(event.get("Action", ""))
            if action == "start":  # a container of that name that came after the last one's end
                oom, killed, code = False, False, ""
            oom = oom or action == "oom"
            killed = killed or action == "kill"
            if action == "die":
                code = str(event.get("Actor", {}).get("Attributes", {}).get("exitCode", ""))
                if float(event.get("time", 0)) > now - _FRESH:
                    break
    finally:
        hang_up(events)
    if not code:
        return Ending()
    if oom or (code == "137" and not killed):  # 128 + SIGKILL, and it was not the daemon's
        return Ending("likely out of memory (exit code 137); see --memory")
    if killed:
        return Ending(f"stopped or removed by somebody (exit code {code})", by_hand=True)
    return Ending(f"exit code {code}", in_order=code == "0")


def unreachable(error: Exception) -> EngineError:
    """The error for a daemon that does not answer."""
    text = str(error)
    if "Permission denied" in text:
        return EngineError(
            "no permission to speak to the Docker daemon",
            hint="add yourself to the group `docker` and log in again, or use --runner local",
        )
    where = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    return EngineError(
        f"no Docker daemon answers at {where}",
        hint="start it (`systemctl start docker`), set DOCKER_HOST, or use --runner local",
    )


def explanation(error: Any) -> str:
    """What the daemon said, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())
