"""What a decoder of batches leaves to the CPU: decoded beside it, one image a thread.

Each image has its time here as everywhere. So one that hangs holds up its batch for no longer.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from wuwan_worker import overdue
from wuwan_worker.decoding import decode

if TYPE_CHECKING:
    from wuwan_worker.decoding.decode import Decoded, Refused
    from wuwan_worker.jobs import Job
    from wuwan_worker.overdue import Attempt, Overdue
    from wuwan_worker.shared.bundle import InputSpec


class Beside:
    """Starts threads, of which as many decode at once as there are cores."""

    def __init__(self, watch: Overdue, spec: InputSpec, threads: int) -> None:
        self._watch = watch
        self._spec = spec
        self._turns = threading.Semaphore(threads)

    def submit(self, job: Job) -> Future[Decoded | Refused]:
        """Decode one image soon. The job's descriptor is not needed any more after this."""
        future: Future[Decoded | Refused] = Future()
        # By the time it ends, the number of the job's own may be another file's.
        arguments = (job, os.dup(job.descriptor), future)
        # A thread each: of a pool those that hang would be missing. A batch has 32 at the most.
        threading.Thread(target=self._run, args=arguments, name="beside", daemon=True).start()
        return future

    def _run(self, job: Job, descriptor: int, future: Future[Decoded | Refused]) -> None:
        self._turns.acquire()

        def given_up(attempt: Attempt) -> None:
            self._turns.release()
            future.set_result(overdue.refusal(attempt))

        attempt = self._watch.begin(job, given_up)
        image: Decoded | Refused | None = None
        error: BaseException | None = None
        try:
            exact, patience = job.options.exact, attempt.patience
            image = decode.attempt(descriptor, self._spec, exact=exact, patience=patience)
        except BaseException as raised:
            error = raised
        finally:
            os.close(descriptor)
        if not self._watch.end(attempt):
            return
        self._turns.release()
        if image is not None:
            future.set_result(image)
        elif error is not None:
            future.set_exception(error)
