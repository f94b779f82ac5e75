"""The formula of each schedule, when it fires, and what is refused."""

import pytest

from recpress.errors import PruningError
from recpress.pruning.schedules import Constant, Polynomial, Steps


def test_polynomial_is_zhu_and_guptas():
    schedule = Polynomial(final=0.8, begin=100, end=500, initial=0.2, frequency=50)
    assert schedule.at(100) == pytest.approx(0.2) and schedule.at(500) == 0.8
    assert schedule.at(300) == pytest.approx(0.8 + (0.2 - 0.8) * 0.5**3)
    assert Polynomial(final=0.8, begin=0, end=4, power=1).at(1) == pytest.approx(0.2)
    fired = [step for step in range(600) if schedule.latest(step) == step]
    assert fired == list(range(100, 501, 50))


def test_the_end_fires_whatever_the_frequency():
    schedule = Polynomial(final=0.5, begin=10, end=95, frequency=40)
    assert [step for step in range(120) if schedule.latest(step) == step] == [10, 50, 90, 95]
    assert schedule.latest(9) is None and schedule.latest(10_000) == 95 and schedule.at(95) == 0.5


def test_constant_and_table():
    assert Constant(0.5, begin=3).latest(2) is None and Constant(0.5, begin=3).latest(9) == 3
    table = Steps({10_000: 0.5, 100: 0.2})
    assert (table.first, table.final, table.latest(99), table.latest(9_999), table.at(100)) == (
        100,
        0.5,
        None,
        100,
        0.2,
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Constant(1.0), "sparsity is 1.0; give a share of over 0 and under 1"),
        (lambda: Constant(-0.1), "sparsity is -0.1"),
        (lambda: Constant(0.0), "sparsity is 0.0; give a share of over 0"),
        (lambda: Constant(float("nan")), "sparsity is nan"),
        (lambda: Constant(0.5, begin=-1), "begin is -1; give a whole number"),
        (lambda: Polynomial(final=1.2, begin=0, end=9), "final is 1.2"),
        (lambda: Polynomial(final=0.5, begin=9, end=3), "end is 3 and begin 9"),
        (lambda: Polynomial(final=0.5, begin=9, end=9), "give an end behind begin, or Constant"),
        (lambda: Polynomial(final=0.2, begin=0, end=9, initial=0.3), "final 0.2 is under initial 0.3"),
        (lambda: Polynomial(final=0.2, begin=0, end=9, frequency=0), "frequency is 0"),
        (lambda: Polynomial(final=0.2, begin=0, end=9, power=0), "power is 0"),
        (lambda: Steps({}), "the table of steps is empty, so that it never fires"),
        (lambda: Steps({5: 0.5, 9: 0.2}), "sparsity falls"),
        (lambda: Steps({5: 0.0}), "nothing is ever pruned"),
        (lambda: Steps({2.5: 0.5}), "a step of the table is 2.5"),
    ],
)
def test_what_can_never_be_meant_is_refused(make, says):
    with pytest.raises(PruningError, match=says):
        make()
