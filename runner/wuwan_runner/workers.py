"""Finds warm workers and starts new ones, for one run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wuwan_runner import daemon, eviction, gpus, launchers
from wuwan_runner.errors import EngineError
from wuwan_runner.launch import Launch
from wuwan_runner.staff import Staff
from wuwan_runner.wire import address, proof
from wuwan_runner.wire.address import Address
from wuwan_runner.wire.connection import Connection, ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wuwan_runner.launchers.base import Launcher
    from wuwan_runner.options import TagOptions, WorkerSpec

_CONNECT = 5.0  # seconds; only a full queue makes connecting wait
_AGAIN = 0.002


def choose(options: TagOptions, notify: Callable[[str], None]) -> Launcher:
    """The launcher for `options.runner`; for "auto" whatever is warm, then Docker, then local.

    A warm worker is looked for first: that costs microseconds, and asking Docker needs its client.

    Raises:
        EngineError: if the runner cannot be used.
    """
    if options.runner != "auto":
        return launchers.get(options.runner)
    docker, local = launchers.get("docker"), launchers.get("local")
    # An image that is asked for means Docker.
    for launcher in (docker,) if options.spec.image else (docker, local):
        try:
            if is_warm(launcher, options.spec):
                return launcher
        except EngineError:  # a model that this launcher does not know
            continue
    spec = options.spec
    if not daemon.may_answer():
        if spec.image:
            raise EngineError(
                f"--image {spec.image} needs Docker: no Docker daemon here",
                hint="start Docker, or set DOCKER_HOST",
            )
        return local
    try:
        contained = docker.place(spec, options.timeouts)
    except EngineError as error:
        if spec.image or (gpus.by_name(spec.gpus) and not _has_gpu(local, options)):
            raise  # what was asked for by name needs Docker
        notify(f"using the local runner: {error} ({error.hint})")
        return local
    if spec.gpus == "auto" and not (contained.devices or spec.image) and _has_gpu(local, options):
        notify("using the local runner: it has a GPU, a container would have none")
        return local
    return docker


def _has_gpu(launcher: Launcher, options: TagOptions) -> bool:
    try:
        return bool(launcher.place(options.spec, options.timeouts).devices)
    except EngineError:
        return False


def is_warm(launcher: Launcher, spec: WorkerSpec) -> bool:
    """Whether a worker for `spec` is up."""
    sock = address.connect(Address(launcher.key(spec), "0"), _CONNECT)
    if sock is None:
        return False
    sock.close()
    return True


class Workers(Staff):
    """Workers that share this machine's sockets."""

    def acquire(self, slot: int) -> Connection:
        """A connection to the worker in that slot, which is started if there is none.

        Binding the slot's name is what decides between several clients that want to start it: one
        binds, the others find the name taken and connect to it.

        Raises:
            EngineError: if the name can be neither bound nor connected to.
        """
        # Where anybody may be the listener there is no warm worker to be trusted.
        known = address.told_apart()
        place = Address(self._key, str(slot)) if known else address.private(self._key)
        deadline = time.monotonic() + self._options.timeouts.start
        while time.monotonic() < deadline:
            if (sock := address.connect(place, _CONNECT)) is not None:
                connection = Connection(sock, slot, False, self._options.timeouts, None)
                return self._greeted(connection, proof.token(place.name))
            if (started := self._start(place, slot, private=False)) is not None:
                return started
            time.sleep(_AGAIN)
        raise EngineError(
            f"the worker name {place.name[1:]} is taken by something that does not answer",
            hint="another user of this machine may hold it: look for it in /proc/net/unix",
        )

    def acquire_private(self) -> Connection:
        """A new worker that no other client will find; it ends with its connection."""
        place = address.private(self._key)
        connection = self._start(place, 0, private=True)
        if connection is None:
            raise EngineError(f"cannot listen on the socket {place.name[1:]}")
        return connection

    def _start(self, place: Address, slot: int, *, private: bool) -> Connection | None:
        listener = address.listen(place)
        if listener is None:
            return None
        sock = address.connect(place, _CONNECT, bound=True)
        if sock is None:
            listener.close()
            return None
        # Before the token: it is made of what is kept.
        shared = self.launcher.contained and proof.keep()
        token = proof.token(place.name)
        launch = Launch(
            self.launcher,
            self._order(slot, private=private, token=token, shared=shared),
            listener,
            prepare=lambda: eviction.make_room(place, self._options.max_cached, self.notify),
        )
        connection = Connection(sock, slot, private, self._options.timeouts, launch)
        return self._greeted(connection, token)

    def _greeted(self, connection: Connection, token: str) -> Connection:
        connection.token = token
        try:
            connection.greet(self._options)
        except ConnectionLostError:
            # A start that has failed already says why when its end is read.
            if connection.launch is None:
                connection.close()
                raise
        return connection
