import time

import numpy as np

from recpress.latency import Latency, interleave


def test_quantiles():
    latency = Latency.of(np.arange(1, 101) / 1000)
    assert latency.p50 == 0.05 and latency.p99 == 0.099 and latency.calls == 100


def test_variants_take_turns_and_are_told_apart():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    found = interleave({"a": lambda: call("a", 0.0), "b": lambda: call("b", 0.01)}, calls=5, warm_up=2)
    assert order == ["a", "b"] * 7
    assert found["b"].p50 >= 0.01 and found["a"].calls == 5
