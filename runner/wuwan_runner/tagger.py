"""The public API: label images by a worker that is found or started."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from wuwan_runner.containers import daemon
from wuwan_runner.inputs.discover import discover
from wuwan_runner.options import TagOptions
from wuwan_runner.pool.choose import choose
from wuwan_runner.pool.sockets import SocketPool
from wuwan_runner.resolved import resolve
from wuwan_runner.run.dispatch import Dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType

    from wuwan_runner.inputs.base import Input
    from wuwan_runner.inputs.survey import Survey
    from wuwan_runner.launchers.base import Launcher
    from wuwan_runner.pool.base import WorkerPool
    from wuwan_runner.records import Record
    from wuwan_worker.shared.protocol import Welcome


def _ignore(_message: str) -> None:
    pass


def _never(_path: str) -> bool:
    return False


def _remaining(
    inputs: Iterator[Input], done: Callable[[str], bool], over: threading.Event
) -> Iterator[Input]:
    """Those that are not done; nothing more once it is over."""
    skipping = True
    for entry in inputs:
        if over.is_set():
            return
        skipping = skipping and done(entry.path)
        if not skipping:
            yield entry


class Tagger:
    """Labels images.

    ::

        with Tagger(TagOptions(top_k=3)) as tagger:
            for record in tagger.tag(["photos"]):
                print(record.to_json())
    """

    def __init__(
        self, options: TagOptions | None = None, notify: Callable[[str], None] = _ignore
    ) -> None:
        """
        Args:
            options: how to tag, and by which workers.
            notify: is told, in one line each, what a person may want to know: which runner was
                picked and why, that a worker was replaced.

        Raises:
            UsageError: if the model has no labels at the level that is asked for.
        """
        self._options = options or TagOptions()
        self._wanted = resolve(self._options.spec)
        self._wanted.model.check_level(self._options.level)
        self._notify = notify
        self._launcher: Launcher | None = None

    def tag(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        survey: Survey | None = None,
    ) -> Generator[Record, None, None]:
        """One record for each image under `paths`, in order. Errors, `survey` as `tag_batches`."""
        with closing(self.tag_batches(paths, survey=survey)) as batches:
            for batch in batches:
                yield from batch

    def tag_batches(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        done: Callable[[str], bool] = _never,
        survey: Survey | None = None,
    ) -> Generator[list[Record], None, None]:
        """The same, as many records at a time as become available together.

        Inputs are taken lazily. Nothing is started if there is no image to tag.

        Args:
            paths: images and directories. What is iterated may take its time, and holds up no
                record: that is done in a thread of its own, as are calls of `done`.
            done: called with each input's path, in order, until it first says no; the inputs
                before that one are left out. So an interrupted run is taken up again.
            survey: is told what directories hold besides images, and which of them gave none.

        Raises:
            WorkerUnavailableError: if no worker can be had, or none that lives.
            UsageError: if the options do not make sense.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        over = threading.Event()  # another thread walks the inputs, and is not to go on
        named = (os.fspath(path) for path in paths)
        found = discover(named, self._options.selection, survey, over.is_set)
        inputs = _remaining(found, done, over)
        try:
            with closing(Dispatch(inputs, self._pool_for, self._options).run()) as batches:
                for outcomes in batches:
                    yield [outcome.record for outcome in outcomes]
        finally:
            over.set()

    def warm(self) -> list[Welcome]:
        """Start the workers that a run would use, and return when their models are loaded.

        Raises:
            WorkerUnavailableError: if they cannot be had.
        """
        return Dispatch(iter(()), self._pool_for, self._options).warm()

    def _pool_for(self, over_exec: bool) -> WorkerPool:
        if self._launcher is None:
            self._launcher = choose(self._wanted, self._options, self._notify)
        if self._launcher.name == "docker" and (over_exec or self._is_remote()):
            # Imported here: few need it.
            from wuwan_runner.pool.exec import ExecPool

            return ExecPool(self._launcher, self._wanted, self._options, self._notify)
        return SocketPool(self._launcher, self._wanted, self._options, self._notify)

    def _is_remote(self) -> bool:
        channel = self._options.channel
        return channel == "exec" or (channel == "auto" and daemon.is_remote())

    def __enter__(self) -> Tagger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held between runs: workers end by their TTL."""
