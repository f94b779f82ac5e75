"""Calls that can wait, such as metrics, made on a thread of their own: none of them delays an answer.

An observation is a message to the server and back, 70 us at batch 1, as long as a small model takes to score a row.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

_PAUSE_S = 0.02
"""How long calls gather before they are made, so that the thread wakes, and takes the interpreter, that seldom."""


class Aside:
    """Makes calls in the order they were given, within about 20 ms.

    A call that raises goes to ``failed``, and the calls after it are made all the same.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._calls: deque[tuple[Callable, tuple]] = deque()
        self._some = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="recpress-aside", daemon=True)
        self._thread.start()

    def __call__(self, call: Callable, *args: object) -> None:
        """Make this call soon, on the other thread."""
        self._calls.append((call, args))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Make the calls that wait, and end the thread."""
        self._closing = True
        self._some.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._some.wait()
            if not self._closing:
                time.sleep(_PAUSE_S)
            self._some.clear()
            while self._calls:
                call, args = self._calls.popleft()
                try:
                    call(*args)
                except Exception as error:
                    self._failed(error)
