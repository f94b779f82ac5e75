"""Deadlines without a server: what is refused before the forward, why, and what clocks that differ do."""

import json

import pytest

from recpress.serving.deadlines import EXPIRED, LATE, MALFORMED, MARGIN_S, Deadlines, ForwardTimes, read_deadline

NOW = 1_800_000_000.0


def asked(left_s, rows=8, now=NOW):
    """A request whose deadline is in ``left_s`` seconds by a clock that shows ``now``."""
    return json.dumps({"deadline_unix_us": round((now + left_s) * 1e6)}), rows


def deadlines(seconds_by_rows=(), ahead=0.0):
    """With a server's clock that is ``ahead`` of the clients', and batches that took so long each of ten times."""
    made = Deadlines(clock=lambda: NOW + ahead)
    for rows, seconds in dict(seconds_by_rows).items():
        for _ in range(10):
            made.times.add(rows, seconds)
    return made


def reasons(made, *requests):
    return {i: why.reason for i, why in made.refuse(dict(enumerate(requests))).items()}


def test_only_what_would_be_late_is_refused():
    made = deadlines({8: 0.020})
    assert reasons(made, asked(0.1), asked(0.023), ("", 8)) == {}
    assert reasons(made, asked(0.0215)) == {0: LATE}, "the way back takes its margin"
    assert reasons(made, asked(-0.001), asked(0.1)) == {0: EXPIRED}


def test_requests_without_a_deadline_are_never_refused():
    made = deadlines({8: 100.0})
    assert reasons(made, ("", 8), ("{}", 8), ('{"other": "deadline"}', 8), ('{"x": "deadline_unix_us"}', 8)) == {}


def test_the_most_pressing_make_room_for_the_rest():
    # 16 rows take 40 ms, 8 take 20: one of the two is in time, if the other is left out.
    made = deadlines({8: 0.020, 16: 0.040})
    assert reasons(made, asked(0.035), asked(0.030)) == {1: LATE}
    assert reasons(made, asked(0.030), asked(0.050)) == {0: LATE}, "though it alone would have been in time"
    assert reasons(made, asked(0.050), asked(0.050)) == {}
    # A request without a deadline counts, as it is scored along with them.
    assert reasons(made, ("", 8), asked(0.030)) == {1: LATE}


def test_nothing_is_refused_by_an_estimate_before_one_was_measured():
    made = deadlines()
    assert reasons(made, asked(MARGIN_S + 0.001)) == {}
    assert reasons(made, asked(-0.001)) == {0: EXPIRED}


def test_one_slow_forward_does_not_shut_the_model_for_good():
    made = Deadlines(clock=lambda: NOW)
    made.times.add(8, 5.0)
    refusals = 0
    while reasons(made, asked(0.1)):
        refusals += 1
        assert refusals < 100
    assert refusals > 10, "it was refused before"
    for _ in range(30):
        made.times.add(8, 0.02)
    assert made.times.estimate(8) < 0.03


def test_estimates_by_rows():
    times = ForwardTimes()
    assert times.estimate(8) == 0.0
    for seconds in (0.018, 0.022) * 20:
        times.add(8, seconds)
    assert 0.022 < times.estimate(8) < 0.027, "mean and twice the mean deviation"
    times.add(256, 0.5)
    assert times.estimate(100) == 0.5, "a size that was never measured is taken for the next larger one"
    assert times.estimate(1024) == 0.5, "and beyond the largest for that"


@pytest.mark.parametrize("ahead, refused", [(0.0, {}), (0.05, {}), (0.09, {0: LATE}), (0.2, {0: EXPIRED})])
def test_a_server_whose_clock_is_ahead_refuses_earlier(ahead, refused):
    assert reasons(deadlines({8: 0.02}, ahead), asked(0.1)) == refused


def test_a_server_whose_clock_is_behind_scores_what_ends_late_by_that_much():
    made = deadlines({8: 0.02}, ahead=-0.05)
    assert reasons(made, asked(-0.02)) == {}, "passed 20 ms ago, which this server cannot know"
    assert reasons(made, asked(-0.049)) == {0: LATE}


@pytest.mark.parametrize(
    "given",
    [1, -1, 0, 1_800_000_000, 1_800_000_000_000, 1_800_000_000_000_000_000, 1.8e15, "1800000000000000", True, []],
)
def test_malformed_deadlines_are_named(given):
    text = json.dumps({"deadline_unix_us": given})
    with pytest.raises(ValueError, match=r"parameter 'deadline_unix_us' is .*microseconds"):
        read_deadline(text)
    refused = deadlines().refuse({0: (text, 1), 1: ("", 1)})
    assert {i: why.reason for i, why in refused.items()} == {0: MALFORMED}


def test_a_malformed_deadline_is_not_echoed_at_length():
    assert len(deadlines().refuse({0: (json.dumps({"deadline_unix_us": "x" * 9999}), 1)})[0].text) < 250


def test_refusals_are_counted_by_reason():
    counted = []
    made = Deadlines(clock=lambda: NOW, count=counted.append)
    made.times.add(8, 0.02)
    made.refuse({0: asked(0.01), 1: asked(-1), 2: ('{"deadline_unix_us": 3}', 1), 3: asked(0.1)})
    assert sorted(counted) == sorted([LATE, EXPIRED, MALFORMED])
