"""Send a share of the traffic to a canary: which key goes where, and a client that follows what the server says.

A canary of the model ``NAME`` is the model ``NAME-canary`` beside it, since the server gives whoever names no version
the highest one: as a version of ``NAME`` it would get all of them. Its configuration holds the share, which clients
read from the server, so that nothing else has to reach them.
"""

import contextlib
import hashlib
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recpress.errors import OverloadError, RecpressError, RepositoryError, ServerError
from recpress.serving.client import Client

SUFFIX = "-canary"
SHARE, SALT = "canary_share", "canary_salt"
"""Parameters in a canary's configuration."""


def check_share(share: float) -> None:
    """Raises RepositoryError unless ``share`` is a part of the traffic."""
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise RepositoryError(f"the share is {share!r}; give a number from 0 to 1, or a percentage such as 5%")


@dataclass(frozen=True)
class Split:
    """Which keys go to the canary: always the same, and with a larger share those of the smaller one and more.

    Args:
        share: of all keys, from 0 to 1.
        salt: other keys than another canary's.
    """

    share: float
    salt: str

    def takes(self, key: str) -> bool:
        """Whether ``key``, such as a user's id, goes to the canary."""
        digest = hashlib.blake2b(f"{self.salt}:{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64


class SplitClient:
    """Scores each key by the model or by its canary. Not to be shared between threads, as its client.

    A request that the canary does not answer is sent to the model, and the share is read again: taking the canary out
    of the server is enough to stop it.

    Args:
        client: a connection.
        model: the model's name, without the suffix of its canary.
        refresh_s: how long what the server said of the share holds, in seconds.

    Attributes:
        answered: how many requests each model has answered, by its name.
    """

    def __init__(self, client: Client, model: str, *, refresh_s: float = 5.0) -> None:
        self.model, self.canary, self.refresh_s = model, model + SUFFIX, refresh_s
        self.answered: Counter[str] = Counter()
        self._client, self._split, self._read_at = client, Split(0.0, ""), -math.inf

    def score(self, inputs: Mapping[str, np.ndarray], *, key: str) -> dict[str, np.ndarray]:
        """Outputs by name, as :meth:`recpress.serving.client.Client.score`, of the model that ``key`` goes to.

        Raises:
            OverloadError: turned away, by the canary too.
            RequestError, ServerError: the model does not answer.
        """
        if self._current().takes(key):
            try:
                return self._score(self.canary, inputs)
            except OverloadError:
                raise  # the model would have it on top of its own
            except RecpressError:
                self._read_at = -math.inf
        return self._score(self.model, inputs)

    def _score(self, model: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._client.score(model, inputs)
        self.answered[model] += 1
        return outputs

    def _current(self) -> Split:
        if time.monotonic() - self._read_at > self.refresh_s:
            with contextlib.suppress(ServerError):  # whether it can be reached, the request itself will tell
                self._split = read_split(self._client.parameters(self.canary))
            self._read_at = time.monotonic()
        return self._split


def read_split(parameters: Mapping[str, str]) -> Split:
    """What the parameters of a canary's configuration say; a share of 0 where they say nothing."""
    return Split(float(parameters.get(SHARE, 0.0)), parameters.get(SALT, ""))
