"""`python -m wuwan_worker.programs.stub --listen-fd N`: a worker that answers without looking.

It speaks the whole protocol and does no work, so what is measured with it is the client.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
from typing import TYPE_CHECKING

from wuwan_worker.serving.lifecycle import Lifecycle
from wuwan_worker.serving.server import Identity, Server
from wuwan_worker.shared.protocol import Labelled, LabelScore, close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

_LABELS = (LabelScore("无", 1.0, "none"),)


def _answer(server: Server) -> None:
    while (job := server.jobs.get()) is not None:
        close_all((job.descriptor,))
        server.answer(job.client, [Labelled(id=job.id, width=1, height=1, labels=_LABELS)])


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the TTL ends; the exit code."""
    parser = argparse.ArgumentParser(prog="wuwan_worker.programs.stub")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--ttl", type=float, default=30.0)
    arguments = parser.parse_args(argv)
    server = Server(
        socket.socket(fileno=arguments.listen_fd),
        Identity(name="wuwan-stub", model="stub", fingerprint="", runner="local"),
        Lifecycle(ttl=arguments.ttl),
        owner=os.getuid(),
    )
    threading.Thread(target=_answer, args=(server,), daemon=True).start()
    server.loaded("none", lambda: 0)
    return server.run()


if __name__ == "__main__":
    os._exit(main())
