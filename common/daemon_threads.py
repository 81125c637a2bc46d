"""A pool of daemon threads, which do not keep the process alive."""

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

_PATIENCE_S = 1.0
_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonThreads(Executor):
    """Run calls in daemon threads, first come, first served.

    Python waits at exit for the threads of a ThreadPoolExecutor. A read that hangs there, on a server or a
    network file system, would keep a process from ending after it has saved. At exit these threads get a
    second to end: the interpreter aborts when it ends a thread inside native code.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[Any]] | None] = queue.SimpleQueue()
        self._exiting = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        _open_pools.add(self)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Return the future result of `fn(*args, **kwargs)`."""
        future: Future[_T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self._calls.put((call, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after the submitted calls. `wait` waits for them, at most a second.

        Args:
            wait: whether to wait.
            cancel_futures: not supported; cancel the futures themselves.
        """
        assert not cancel_futures
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            self._join(time.monotonic() + _PATIENCE_S)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (submitted := self._calls.get()) is not None:
            call, future = submitted
            if self._exiting:
                future.cancel()  # another thread may wait for it
            else:
                call()
            del submitted, call, future  # they hold the arguments and the result


_open_pools: weakref.WeakSet[DaemonThreads] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """End the threads of all pools after the calls that they are in."""
    pools = list(_open_pools)
    for pool in pools:
        pool._exiting = True
        pool.shutdown(wait=False)
    deadline = time.monotonic() + _PATIENCE_S
    for pool in pools:
        pool._join(deadline)
