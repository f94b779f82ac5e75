"""What became of a request, and how errors of tritonclient and of our own are sorted into it."""

import asyncio
from enum import IntEnum

from recpress.errors import OverloadError, RequestError, ServerError


class Outcome(IntEnum):
    """What became of a request; the first alone is a success."""

    OK = 0
    WRONG = 1
    """Answered with other scores than expected."""
    REJECTED = 2
    """Turned away for load: a full queue, a limit, a deadline that would be missed."""
    TIMEOUT = 3
    """No answer in time."""
    REFUSED = 4
    """The request itself is not taken: 400, 404."""
    UNREACHABLE = 5
    """No connection, or it broke."""
    FAILED = 6
    """Any other error."""

    @property
    def label(self) -> str:
        """As in metrics and tables."""
        return self.name.lower()


_OVERLOADED = ("overloaded", "exceeds maximum queue size", "request timeout expired")
_STATUS = {
    "StatusCode.RESOURCE_EXHAUSTED": Outcome.REJECTED,
    "429": Outcome.REJECTED,
    "503": Outcome.REJECTED,
    "StatusCode.DEADLINE_EXCEEDED": Outcome.TIMEOUT,
    "StatusCode.CANCELLED": Outcome.TIMEOUT,
    "499": Outcome.TIMEOUT,
    "504": Outcome.TIMEOUT,
    "StatusCode.INVALID_ARGUMENT": Outcome.REFUSED,
    "StatusCode.NOT_FOUND": Outcome.REFUSED,
    "400": Outcome.REFUSED,
    "404": Outcome.REFUSED,
    "StatusCode.UNAVAILABLE": Outcome.UNREACHABLE,
    "502": Outcome.UNREACHABLE,
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that ``error`` stands for, raised by tritonclient, aiohttp, or recpress.

    gRPC says UNAVAILABLE both of a server that has no room and of one that is not there; its text tells them apart.
    """
    text = str(error).lower()
    if isinstance(error, OverloadError) or any(told in text for told in _OVERLOADED):
        return Outcome.REJECTED
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return Outcome.TIMEOUT
    status = getattr(error, "status", None)
    if callable(status):
        return _STATUS.get(str(status()), Outcome.FAILED)
    if isinstance(error, RequestError):
        return Outcome.REFUSED
    # aiohttp's errors of a connection are OSErrors, but for that of a server that hangs up.
    unreachable = isinstance(error, (ServerError, OSError)) or type(error).__name__ == "ServerDisconnectedError"
    return Outcome.UNREACHABLE if unreachable else Outcome.FAILED
