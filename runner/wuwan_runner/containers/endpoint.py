"""Which Docker daemon: one answer for all verbs, by the rules of Docker's own command line.

DOCKER_HOST, else the context that DOCKER_CONTEXT names, else the current one of Docker's
`config.json`, else the default socket. The two small files are read here rather than by docker-py:
a warm run needs the answer, and the import alone costs 0.15 s. (docker-py's own reader also looks
for contexts in another directory than Docker does, where `config.json` is absent, and drops a CA
that comes without a client's certificate.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuwan_runner.errors import WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT = "unix:///var/run/docker.sock"
_UNIX = "unix://"
_DEFAULT_CONTEXT = "default"  # Docker's name for "no context"
# All that the answer depends on, besides the files.
_VARIABLES = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "HOME",
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS; files that are "" are not used."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon, and how it was chosen."""

    host: str = DEFAULT  # as it was given: unix://PATH, tcp://…, ssh://…
    chosen: str = "the default"  # by what, for people
    tls: Tls | None = None

    @property
    def socket(self) -> Path | None:
        """Its socket in this machine's file system, if that is how it is reached."""
        if not self.host.startswith(_UNIX):
            return None
        return Path("/", self.host.removeprefix(_UNIX).lstrip("/"))

    @property
    def is_remote(self) -> bool:
        """Whether it is on another machine, or may be: of what is no file nobody knows."""
        return self.socket is None

    @property
    def may_answer(self) -> bool:
        """Whether looking for it makes sense at all; costs no connection."""
        return self.socket is None or self.socket.exists()

    @property
    def identity(self) -> str:
        """Equal for one daemon however it is named: /var/run is a link to /run."""
        if self.socket is None:
            return self.host.rstrip("/")
        return _UNIX + os.path.realpath(self.socket)

    def __str__(self) -> str:
        return f"{self.host} ({self.chosen})"


def current() -> Endpoint:
    """The daemon for this process's environment: looked up once, so all parts of a run agree.

    Raises:
        WorkerUnavailableError: see `resolve`.
    """
    return _once(tuple((name, os.environ.get(name, "")) for name in _VARIABLES))


@functools.cache
def _once(variables: tuple[tuple[str, str], ...]) -> Endpoint:
    return resolve(dict(variables))


def resolve(environment: Mapping[str, str]) -> Endpoint:
    """The daemon for that environment. What is empty counts as absent.

    Raises:
        WorkerUnavailableError: if the context that is asked for is not there, or cannot be read.
    """
    home = environment.get("HOME") or os.path.expanduser("~")
    config = Path(environment.get("DOCKER_CONFIG") or os.path.join(home, ".docker"))
    if host := environment.get("DOCKER_HOST"):
        # As docker-py has it: no path means the default one.
        host = DEFAULT if host == _UNIX else host
        return Endpoint(host, "DOCKER_HOST", _tls_by_variables(environment, config))
    if name := environment.get("DOCKER_CONTEXT"):
        chosen, cure = f"context {name}, by DOCKER_CONTEXT", "unset DOCKER_CONTEXT"
    elif name := _current_context(config):
        chosen, cure = f"context {name}, the current one", "`docker context use default`"
    if not name or name == _DEFAULT_CONTEXT:
        return Endpoint(tls=_tls_by_variables(environment, config))
    return _context(config, name, chosen, cure)


def _current_context(config: Path) -> str:
    """What `docker context use` has written; a file that cannot be read says nothing, as there."""
    try:
        return str(json.loads((config / "config.json").read_bytes()).get("currentContext") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _context(config: Path, name: str, chosen: str, cure: str) -> Endpoint:
    hint = f"`docker context ls` shows those that there are; or {cure}"
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    try:
        meta = json.loads((config / "contexts/meta" / digest / "meta.json").read_bytes())
        found: Mapping[str, Any] = meta["Endpoints"]["docker"]
        host, skip = str(found.get("Host") or DEFAULT), bool(found.get("SkipTLSVerify"))
    except FileNotFoundError:
        raise WorkerUnavailableError(f"there is no Docker {chosen}", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkerUnavailableError(
            f"the Docker {chosen}, cannot be read: {type(error).__name__}: {error}", hint=hint
        ) from None
    directory = config / "contexts/tls" / digest / "docker"
    files = [directory / f"{part}.pem" for part in ("ca", "cert", "key")]
    ca, certificate, key = (str(path) if path.exists() else "" for path in files)
    tls = Tls(ca, certificate, key, not skip) if ca or certificate or key or skip else None
    return Endpoint(host, chosen, tls)


def _tls_by_variables(environment: Mapping[str, str], config: Path) -> Tls | None:
    directory, verify = environment.get("DOCKER_CERT_PATH"), environment.get("DOCKER_TLS_VERIFY")
    if not (directory or verify):
        return None
    ca, certificate, key = (
        os.path.join(directory or config, f"{part}.pem") for part in ("ca", "cert", "key")
    )
    return Tls(ca, certificate, key, bool(verify))
