"""A hub that speaks as ModelScope does, on a socket of this machine, and can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what was asked of it."""

    files: dict[str, bytes]
    cut_after: int | None = None  # bytes of an answer, then the connection ends …
    cuts: int = 0  # … for so many answers
    honours_range: bool = True
    sums: bool = True  # the list of files has them
    damaged: bool = False  # the files' content is not what the list says
    errors: list[int] = field(default_factory=list)  # status codes of the next answers
    asked: list[tuple[str, str]] = field(default_factory=list)  # file, Range
    endpoint: str = ""

    def listing(self) -> bytes:
        """As `/repo/files`."""
        entries: list[dict[str, Any]] = [{"Path": "images", "Type": "tree", "Size": 0}]
        for name, content in self.files.items():
            entry = {"Path": name, "Type": "blob", "Size": len(content)}
            digest = hashlib.sha256(content).hexdigest()
            entries.append(entry | ({"Sha256": digest} if self.sums else {}))
        return json.dumps({"Code": 200, "Data": {"Files": entries}}).encode()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(address.query))
            assert query["Revision"] == "master"
            assert self.headers["User-Agent"].startswith("wuwan/")
            prefix = "/api/v1/models/iic/cv_resnest101_general_recognition/repo"
            if hub.errors:
                self.send_error(hub.errors.pop(0))
            elif address.path == f"{prefix}/files":
                self._answer(200, hub.listing(), None)
            elif address.path == prefix and query["FilePath"] in hub.files:
                self._file(query["FilePath"])
            else:
                self.send_error(404)

        def _file(self, name: str) -> None:
            wanted, content = self.headers.get("Range", ""), hub.files[name]
            hub.asked.append((name, wanted))
            if hub.damaged:
                content = content[:-1] + b"?"
            begin = int(wanted[6:-1]) if wanted and hub.honours_range else 0
            if begin and begin >= len(content):
                self.send_error(416)
                return
            cut, hub.cuts = (hub.cut_after, hub.cuts - 1) if hub.cuts > 0 else (None, 0)
            self._answer(206 if begin else 200, content[begin:], cut)

        def _answer(self, status: int, content: bytes, cut: int | None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[:cut])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
