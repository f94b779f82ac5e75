import gzip

import numpy as np
import pytest
import torch

from recpress.data import sequences
from recpress.data.sequences import Sequences, histories, leave_out
from recpress.errors import DataError

TEXT = "2 5\n1 3\n1 4\n2 300\n1 3\n7 6\n2 1\n1 9\n"


@pytest.mark.parametrize("name", ["Video.txt", "sasrec_Video.txt", "Video.txt.gz", "sasrec_Video.txt.gz"])
def test_load(tmp_path, name):
    content = TEXT.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data = sequences.load(tmp_path)
    assert [items.tolist() for items in data.events] == [[3, 4, 3, 9], [5, 300, 1], [6]]
    assert data.num_items == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n1\n", "each line must be a user and an item"),
        ("1 2 3\n", "each line must be a user and an item"),
        ("1 a\n", "each line must be a user and an item"),
        ("1 0\n", "at least 1"),
        ("", "each line must be a user and an item"),
    ],
)
def test_files_of_another_form(tmp_path, text, message):
    (tmp_path / "Video.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        sequences.load(tmp_path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"holds no Video.txt or sasrec_Video.txt"):
        sequences.load(tmp_path)


def test_histories_end_at_the_right():
    made = histories([np.array([1, 2, 3, 4]), np.array([5]), np.array([], dtype=np.int64)], 3)
    assert made.tolist() == [[2, 3, 4], [0, 0, 5], [0, 0, 0]]


def test_leave_out():
    """Each user's rivals are 100 different items that it has none of, whatever it has more than once."""
    data = Sequences((np.array([3, 4, 3, 9, 8]), np.array([7, 6]), np.array([5, 110, 1])), 112)
    for last, histories_, targets in ((1, [[4, 3, 9], [0, 5, 110]], [8, 1]), (2, [[3, 4, 3], [0, 0, 5]], [9, 110])):
        users = leave_out(data, length=3, last=last, seed=0)
        assert len(users) == 2, "who has two events is left out"
        assert users.histories.tolist() == histories_ and users.candidates[:, 0].tolist() == targets
        for row, own in zip(users.candidates[:, 1:].tolist(), ({3, 4, 9, 8}, {5, 110, 1}), strict=True):
            assert len(set(row)) == 100 and not set(row) & own and min(row) >= 1 and max(row) <= 112
    again, other = (leave_out(data, length=3, last=2, seed=seed) for seed in (0, 1))
    assert torch.equal(users.candidates, again.candidates) and not torch.equal(users.candidates, other.candidates)


def test_what_cannot_be_left_out():
    with pytest.raises(DataError, match="no user has the 3 events"):
        leave_out(Sequences((np.array([1, 2]),), 300), length=3, last=1, seed=0)
    with pytest.raises(DataError, match="fewer than 100 of the 102 items"):
        leave_out(Sequences((np.array([1, 2, 3]),), 102), length=3, last=1, seed=0)
