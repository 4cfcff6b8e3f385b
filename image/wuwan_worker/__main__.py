"""`python -m wuwan_worker`: one worker process.

The socket to listen on comes from outside, so that it exists before the worker does and clients
can queue at it while the model loads:

--listen-fd N       inherited, already listening (launcher `local`)
--adopt PATH        connect to the launcher's socket at PATH and receive it (launcher `docker`)
--listen NAME       an abstract socket of that name in this network namespace (the exec channel)
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wuwan_worker import __version__, cores
from wuwan_worker.serving import sandbox
from wuwan_worker.serving.keeper import Keeper
from wuwan_worker.serving.lifecycle import FIRST_CLIENT_TIMEOUT, PARK_AFTER, Lifecycle
from wuwan_worker.serving.server import CREDITS, Identity, Server
from wuwan_worker.shared import bundle, peers, protocol
from wuwan_worker.shared.protocol import Adopt, FatalCode, FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("wuwan_worker")

ADOPT_TIMEOUT = 20.0  # seconds
EXIT_MODEL = 65  # EX_DATAERR, sysexits(3): the bundle is of no use, trying again will not help
EXIT_BACKEND = 70  # EX_SOFTWARE
EXIT_SOCKET = 71  # EX_OSERR
LOG_LINES = 500
CREDITS_PER_CORE = 8  # a batch of 4 in inference and one in decoding
# Batches of 64: two that are computed and ranked, one that fills, and decoding.
CREDITS_ON_GPU = 256


class _Ring(logging.Handler):
    """Keeps the last log lines for `wuwan logs`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(self.format(record).splitlines())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wuwan_worker", description=__doc__.splitlines()[0])
    sockets = parser.add_mutually_exclusive_group(required=True)
    sockets.add_argument("--listen-fd", type=int, metavar="N")
    sockets.add_argument("--adopt", metavar="PATH")
    sockets.add_argument("--listen", metavar="NAME")
    parser.add_argument("--name", required=True)
    parser.add_argument("--runner", default="local")
    parser.add_argument("--model", default="imagenet-zh", help="bundle name or directory")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ttl", type=float, default=30.0, help="seconds")
    parser.add_argument(
        "--first-client-timeout", type=float, default=FIRST_CLIENT_TIMEOUT, help="seconds"
    )
    parser.add_argument(
        "--park-after",
        type=float,
        default=PARK_AFTER,
        metavar="SECONDS",
        help="idle time after which the weights leave the GPU",
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where a worker listens, and to whom."""

    listener: socket.socket
    owner: int  # the user whose clients are served
    token: str = ""  # what they have to show besides, where they cannot be told from others
    shared: bool = True  # whether several runs have it


def _listener(arguments: argparse.Namespace) -> _Endpoint:
    if arguments.listen_fd is not None:
        listener = socket.socket(fileno=arguments.listen_fd)
        token = os.environ.pop(peers.TOKEN_VARIABLE, "")
        return _guarded(listener, os.getuid(), Adopt(token=token, shared=False))
    if arguments.adopt is not None:
        return _adopt(arguments.adopt)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(f"\0{arguments.listen}")
    sock.listen(512)
    return _Endpoint(sock, os.getuid())


def _guarded(listener: socket.socket, owner: int, adopt: Adopt) -> _Endpoint:
    """Asks for a token only where that is needed: without one, workers are shared by all runs."""
    if not peers.ambiguous(owner):
        return _Endpoint(listener, owner)
    if not adopt.token:
        listener.close()
        raise OSError("users cannot be told apart here, and there is no token to ask them for")
    log.info("users cannot be told apart here: clients have to show a token")
    return _Endpoint(listener, owner, adopt.token, adopt.shared)


def _adopt(path: str) -> _Endpoint:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as launcher:
        launcher.settimeout(ADOPT_TIMEOUT)
        launcher.connect(path)
        decoder = FrameDecoder(protocol.CONTAINER)
        while True:
            data, descriptors = protocol.receive(launcher)
            if not data:
                raise OSError("the launcher closed its socket before it handed one over")
            for frame in decoder.feed(data, descriptors):
                if len(frame.descriptors) == 1:
                    # The owner is whoever launched us, as this user namespace sees them.
                    listener = socket.socket(fileno=frame.descriptors[0])
                    return _guarded(listener, peers.uid(launcher), frame.message)
                frame.close()


def _keeper(arguments: argparse.Namespace) -> Keeper | None:
    """Who writes what is to be kept; None in a container, which has nowhere to keep it."""
    if arguments.listen_fd is None:
        return None
    try:
        return Keeper()
    except OSError as error:
        log.info("nothing can be kept for the next start: %s", error)
        return None


def _load(
    server: Server, model: bundle.Bundle, arguments: argparse.Namespace, keeper: Keeper | None
) -> None:
    """Load libraries and weights; the loader thread's work."""
    try:
        # Imported here: they take most of the start-up, and clients can queue meanwhile.
        from wuwan_worker import backends
        from wuwan_worker.backends.openvino import compile_cache
        from wuwan_worker.shared import labels

        if keeper is not None:
            compile_cache.hand_to(keeper)
            if arguments.device == "cuda":
                keeper.settle()  # only networks on the CPU are kept
        threads = cores.available()
        levels = labels.read(model)
        # Loading is native code for the most part, so the decoders' imports and the first images
        # fit beside it.
        with ThreadPoolExecutor(1, "backend") as pool:
            loading = pool.submit(
                backends.load,
                arguments.backend,
                model,
                levels,
                device=arguments.device,
                threads=threads,
            )
            from wuwan_worker.engine import Engine
            from wuwan_worker.ranking import Ranking, excludes

            engine = Engine(
                server.jobs,
                spec=model.input,
                rankings={
                    name: Ranking(level.labels, exclusive=excludes(model.activation))
                    for name, level in levels.items()
                },
                decode_threads=threads,
                answer=server.answer,
                failed=lambda error: server.fail(
                    FatalCode.BACKEND, f"inference failed: {error}", EXIT_BACKEND
                ),
                hanging=server.hanging,
            )
            if keeper is not None:
                # No image has a say in what is kept. With nothing to load nothing will be.
                loading.add_done_callback(lambda _: keeper.settle())
                keeper.settled.wait()
            engine.start_decoding()
            backend = loading.result()
        engine.start(backend)
        server.loaded(
            backend.device, backend.gpu_memory, parked=lambda: backend.parked, park=engine.park
        )
        # Modules and labels stay: no collection needs to look at them again.
        gc.freeze()
        if keeper is not None:
            keeper.close()
    except Exception as error:
        log.exception("the model does not load")
        server.fail(FatalCode.MODEL, str(error), EXIT_MODEL)
    finally:
        gc.enable()


def _import_what_writes(model: bundle.Bundle, arguments: argparse.Namespace) -> None:
    """Import torch while that is allowed; nothing of a stranger's is here yet.

    Its libraries write temporary files and run a compiler, to find other libraries.
    """
    name = arguments.backend
    if (model.backend_on(arguments.device) if name == "auto" else name) == "torch":
        with contextlib.suppress(ImportError):  # `_load` says what is missing
            importlib.import_module("wuwan_worker.backends.torch.backend")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until its life is over; the exit code."""
    arguments = _arguments(argv)
    # Loading makes hundreds of thousands of objects and no garbage. `_load` enables it again.
    gc.disable()
    ring = _Ring()
    console = logging.StreamHandler(sys.stderr)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[console, ring],
    )
    # Clients pass many descriptors; the soft limit is often 1024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    try:
        endpoint = _listener(arguments)
    except (OSError, protocol.ProtocolError) as error:
        log.error("no socket to listen on: %s", error)
        return EXIT_SOCKET
    try:
        model = bundle.load(bundle.find(arguments.model))
    except bundle.BundleError as error:
        log.error("%s", error)
        endpoint.listener.close()
        return EXIT_MODEL
    server = Server(
        endpoint.listener,
        Identity(
            name=arguments.name,
            model=model.name,
            fingerprint=model.fingerprint,
            runner=arguments.runner,
            levels=model.levels,
            default_level=model.default_level,
        ),
        Lifecycle(
            ttl=arguments.ttl if endpoint.shared else 0.0,
            first_client_timeout=arguments.first_client_timeout,
            park_after=arguments.park_after if arguments.device == "cuda" else math.inf,
        ),
        owner=endpoint.owner,
        token=endpoint.token,
        shared=endpoint.shared,
        credits_=max(
            CREDITS_ON_GPU if arguments.device == "cuda" else CREDITS,
            CREDITS_PER_CORE * cores.available(),
        ),
        log_lines=ring.lines,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.drain())
    keeper = _keeper(arguments)
    _import_what_writes(model, arguments)
    # What a thread has given up is inherited by those that it starts, and by no others: so here.
    sandbox.enter(gpu=arguments.device == "cuda")
    loader = threading.Thread(
        target=_load, args=(server, model, arguments, keeper), name="loader", daemon=True
    )
    loader.start()
    started = time.monotonic()
    code = server.run()
    log.info("gone after %.1f s, exit code %d", time.monotonic() - started, code)
    return code


if __name__ == "__main__":
    # Threads may be inside native code that never returns (a hung decoder): the process must end
    # all the same, and nothing is left to flush.
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)
