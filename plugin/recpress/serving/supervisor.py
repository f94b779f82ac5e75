"""Bring back what dies: a stub by loading its model again, the server by starting it again, within bounds."""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from recpress.artifact.manifest import MANIFEST
from recpress.errors import NoAnswerError, OverloadError, RecpressError, RepositoryError, ServerError
from recpress.serving.client import Client
from recpress.serving.config import instances_of, read_config, served_versions
from recpress.serving.control import Control
from recpress.serving.probe import prove
from recpress.serving.processes import stubs_of
from recpress.serving.server import Server


@dataclass(frozen=True)
class Limits:
    """How often the supervisor looks, and when it gives up.

    Attributes:
        look_s: seconds between two looks at the processes.
        probe_s: seconds between two rounds of golden rows.
        probe_timeout_s: how long a request of a probe may take.
        strikes: rounds in a row that must fail before the server is started again: a loaded server may be slow once.
        restarts: starts of the server within ``window_s`` seconds; one more, and the supervisor gives up.
    """

    look_s: float = 0.25
    probe_s: float = 5.0
    probe_timeout_s: float = 10.0
    strikes: int = 3
    restarts: int = 5
    window_s: float = 120.0


class Supervisor:
    """Watches a server that is started, from :meth:`run` until the server cannot be brought back.

    * A stub that is gone while its version is in service: the version's manifest is touched, which makes the server
      load that version again; the other instances and versions serve on. The server itself says nothing of a dead
      stub until a request meets it, and then fails that request and every other one that falls to it.
    * The server is gone, as it may be when a stub dies in the middle of a request: it is started again on the same
      ports.
    * A version fails its golden rows ``strikes`` times in a row, or does not load again: the server is started again.
      Time-outs of a version that meanwhile answers others are no failures: it is busy.

    Args:
        server: started.
        report: called with one line on everything that was found and done.
    """

    def __init__(
        self, server: Server, *, limits: Limits = Limits(), report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.server, self.limits, self.report = server, limits, report
        self._stubs: Counter[tuple[str, int]] = Counter()
        self._starts: deque[float] = deque()
        self._strikes: Counter[str] = Counter()
        self._probed_at = time.monotonic()

    def run(self) -> NoReturn:
        """Watch for ever.

        Raises:
            ServerError: the server ended more often than the limits allow, or does not start again.
        """
        while True:
            self.look()
            time.sleep(self.limits.look_s)

    def look(self) -> None:
        """Look once, and bring back what is gone.

        Raises:
            ServerError: as :meth:`run`.
        """
        code = self.server.process.poll()
        if code is not None:
            self._restart(f"the server ended ({_ending(code)})")
            return
        stubs = Counter(stubs_of(self.server.process.pid).values())
        due = time.monotonic() - self._probed_at >= self.limits.probe_s
        if stubs == self._stubs and not due:
            return
        self._stubs = stubs
        try:
            serving = self._in_service()
        except ServerError as error:
            self._strike("the server", str(error))
            return
        self._strikes.pop("the server", None)
        for model, version, instances in serving:
            if stubs[model, version] < instances:
                self._reload(model, version)
        if due:
            for model, version, _ in serving:
                self._probe(model, version)
            self._probed_at = time.monotonic()

    def _in_service(self) -> list[tuple[str, int, int]]:
        """Model, version and instances of what the server serves and the repository has it serve.

        What the server is just unloading is not among them.
        """
        found = []
        for v in self.server.control.versions():
            with contextlib.suppress(RepositoryError, OSError):
                model = self.server.repository / v.model
                if v.state == "READY" and v.version in served_versions(model):
                    found.append((v.model, v.version, instances_of(read_config(model))))
        return found

    def _reload(self, model: str, version: int) -> None:
        self.report(f"a stub of {model}, version {version}, is gone; loading the version again")
        begin = time.monotonic()
        try:
            os.utime(self.server.repository / model / str(version) / MANIFEST)
            self.server.control.load(model)
        except (OSError, ServerError) as error:
            self._restart(f"{model}, version {version}, has lost a stub and is not loaded again ({error})")
            return
        self.report(f"{model}, version {version}, is loaded again after {time.monotonic() - begin:.1f} s")

    def _probe(self, model: str, version: int) -> None:
        control, what = self.server.control, f"{model}, version {version}"
        executed = _executions(control, model, version)
        try:
            with Client(control.address, protocol="http", timeout_s=self.limits.probe_timeout_s) as client:
                prove(client, self.server.repository / model / str(version))
        except RecpressError as error:
            late = isinstance(error, (NoAnswerError, OverloadError))
            busy = late and _executions(control, model, version) > executed
            if not busy:
                self._strike(what, f"its golden rows fail: {error}")
        else:
            self._strikes.pop(what, None)

    def _strike(self, what: str, problem: str) -> None:
        self._strikes[what] += 1
        count = self._strikes[what]
        self.report(f"{what} ({count} of {self.limits.strikes}): {problem}")
        if count >= self.limits.strikes:
            self._restart(f"{what} fails {count} times in a row: {problem}")

    def _restart(self, why: str) -> None:
        begin = time.monotonic()
        while True:
            now = time.monotonic()
            while self._starts and now - self._starts[0] > self.limits.window_s:
                self._starts.popleft()
            if len(self._starts) >= self.limits.restarts:
                raise ServerError(
                    f"{why}; starts within {self.limits.window_s:.0f} s: {len(self._starts)}, which is the limit, so "
                    "something is wrong with the models or the machine; the log above says what"
                )
            self._starts.append(now)
            self.report(f"{why}; starting it again ({len(self._starts)} of {self.limits.restarts})")
            try:
                self.server.restart()
                break
            except ServerError as error:
                why = str(error)
                time.sleep(self.limits.look_s)
        self._stubs, self._probed_at = Counter(), time.monotonic()
        self._strikes.clear()
        self.report(f"serving again after {time.monotonic() - begin:.1f} s")


def _executions(control: Control, model: str, version: int) -> int:
    try:
        return control.executions(model, version)
    except ServerError:
        return 0


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
