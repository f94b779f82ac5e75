import threading

import pytest

from recpress.serving.backend.aside import Aside


@pytest.fixture
def failures():
    return []


@pytest.fixture
def aside(failures):
    made = Aside(failures.append)
    yield made
    made.close()


def test_calls_are_made_in_order_and_on_another_thread(aside):
    made, done = [], threading.Event()
    for i in range(50):
        aside(lambda i=i: made.append((i, threading.get_ident())))
    aside(done.set)
    assert done.wait(20)
    assert [i for i, _ in made] == list(range(50)) and threading.get_ident() not in {thread for _, thread in made}


def test_a_call_that_takes_long_holds_nobody_up(aside):
    go, done = threading.Event(), threading.Event()
    aside(go.wait, 20)
    aside(done.set)  # returns though the call before has not
    assert not done.is_set()
    go.set()
    assert done.wait(20)


def test_a_call_that_fails_is_told_and_the_next_is_made(aside, failures):
    done = threading.Event()
    aside(lambda: 1 / 0)
    aside(done.set)
    assert done.wait(20)
    assert [type(error) for error in failures] == [ZeroDivisionError]


def test_closing_makes_the_calls_that_wait_and_ends_the_thread():
    made = []
    aside = Aside(made.append)
    for i in range(100):
        aside(made.append, i)
    aside.close()
    assert made == list(range(100)) and "recpress-aside" not in {t.name for t in threading.enumerate() if t.is_alive()}
