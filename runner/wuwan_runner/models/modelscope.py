"""Downloads from ModelScope: plain HTTPS, resumed where it was cut.

The two addresses are those that ModelScope's own client uses (modelscope/hub/api.py and
file_download.py): the list of files with sizes and sha256 sums, and one file, which honours Range.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from wuwan_runner.errors import LockedError, ModelError, UsageError
from wuwan_worker import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ENDPOINT = "https://www.modelscope.cn"
_REVISION = "master"
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 4  # in a row that bring nothing
_PAUSE = 0.5  # seconds before the second attempt; twice as long each time
_CHUNK = 1 << 20
_LISTING_LIMIT = 1 << 22


class _AgainError(Exception):
    """What went wrong may go right next time."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub."""

    name: str
    size: int  # bytes
    sha256: str  # as the hub says; may be empty


class ModelScope:
    """One model's files."""

    def __init__(
        self, model: str, endpoint: str, progress: Callable[[str, int, int], None]
    ) -> None:
        """
        Args:
            model: "owner/name".
            endpoint: the hub's address, without a path.
            progress: is told a file's name, how many bytes are there, and of how many.

        Raises:
            UsageError: if the endpoint is no HTTP address.
        """
        if urllib.parse.urlsplit(endpoint).scheme not in ("http", "https"):
            raise UsageError(f"{endpoint!r} is not an address", hint=f"for example {ENDPOINT}")
        self._endpoint = endpoint.rstrip("/")
        self._base = f"{self._endpoint}/api/v1/models/{model}/repo"
        self._progress = progress

    def listing(self) -> dict[str, RemoteFile]:
        """The model's files, by name.

        Raises:
            ModelError: if the hub cannot be reached, or has no such model.
        """
        query = urllib.parse.urlencode({"Revision": _REVISION, "Recursive": "True"})
        content = self._tried(lambda: self._text(f"{self._base}/files?{query}"))
        try:
            entries = json.loads(content)["Data"]["Files"]
            return {
                str(entry["Path"]): RemoteFile(
                    str(entry["Path"]),
                    int(entry["Size"]),
                    str(entry.get("Sha256") or "").lower(),
                )
                for entry in entries
            }
        except (ValueError, KeyError, TypeError):
            raise ModelError(
                f"{self._endpoint} answers with no list of files; is it a ModelScope hub?"
            ) from None

    def download(self, file: RemoteFile, target: Path) -> None:
        """Have `file` at `target`, whole and with the hub's sum.

        What is there of it already, in `target` or in `target`.part, is not fetched again.

        Raises:
            ModelError: if it cannot be had; what has come stays in `target`.part.
            LockedError: if another run is fetching it.
        """
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.is_file() and file.sha256 and _sha256(target) == file.sha256:
            return
        partial = target.with_name(f"{target.name}.part")
        with partial.open("ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LockedError(f"another run is fetching {target.name}") from None
            self._fetch(file, out)
            if file.sha256 and _sha256(partial) != file.sha256:
                partial.unlink()
                raise ModelError(
                    f"{file.name} arrived damaged: its sha256 is not the one that the hub names",
                    hint="run the command again; it starts this file anew",
                )
            partial.rename(target)

    # ------------------------------------------------------------ HTTP

    def _fetch(self, file: RemoteFile, out: IO[bytes]) -> None:
        query = urllib.parse.urlencode({"Revision": _REVISION, "FilePath": file.name})
        if out.tell() > file.size:
            out.truncate(0)  # of another revision
            out.seek(0)
        while out.tell() < file.size:
            self._tried(lambda: self._some(file, f"{self._base}?{query}", out))

    def _some(self, file: RemoteFile, address: str, out: IO[bytes]) -> None:
        """Fetch from where `out` ends, as far as it goes.

        Raises:
            _AgainError: if it is no longer than before.
        """
        before, problem = out.tell(), "the connection was cut"
        with self._opened(address, {"Range": f"bytes={before}-"} if before else {}) as answer:
            if before and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                out.truncate(0)  # it sends the file from its beginning
                out.seek(0)
            while out.tell() < file.size:
                try:
                    chunk = answer.read(min(_CHUNK, file.size - out.tell()))
                except (OSError, http.client.HTTPException) as error:
                    problem = _reason(error)
                    break
                if not chunk:
                    break
                out.write(chunk)
                self._progress(file.name, out.tell(), file.size)
        out.flush()
        if out.tell() <= before:
            raise _AgainError(problem)

    def _text(self, address: str) -> bytes:
        with self._opened(address, {}) as answer:
            try:
                content: bytes = answer.read(_LISTING_LIMIT)
            except (OSError, http.client.HTTPException) as error:
                raise _AgainError(_reason(error)) from None
            return content

    @contextlib.contextmanager
    def _opened(self, address: str, headers: Mapping[str, str]) -> Iterator[Any]:
        request = urllib.request.Request(  # noqa: S310  # http or https: see __init__
            address, headers={"User-Agent": f"wuwan/{__version__}", **headers}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise _AgainError(f"the hub answers {error.code} {error.reason}") from None
                raise ModelError(f"{address}: {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _AgainError(_reason(error)) from None
        with answer:
            if self._endpoint.startswith("https:") and not answer.url.startswith("https:"):
                raise ModelError(f"{address} leads to an address without encryption")
            yield answer

    def _tried(self, step: Callable[[], Any]) -> Any:
        """The step's result; it is tried again, a few times."""
        for attempt in range(_ATTEMPTS):
            try:
                return step()
            except _AgainError as error:
                problem = str(error)
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE * 2**attempt)
        raise ModelError(f"cannot reach {self._endpoint}: {problem}")


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)  # urllib wraps what happened
    found = inner if isinstance(inner, Exception) else error
    return getattr(found, "strerror", None) or str(found) or type(found).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
