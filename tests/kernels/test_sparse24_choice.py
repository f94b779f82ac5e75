"""Dense or 2:4 for each layer: a pure function of a table of measurements."""

import json

import pytest
import torch
from int8_cases import layer, rows, same_bits
from support.sparse24_oracle import canonical

import recpress_kernels as rk
from recpress_kernels import native
from recpress_kernels.formats.sparse24 import Sparse24, decompress
from recpress_kernels.int8_linear import tuned
from recpress_kernels.int8_mlp import choice
from recpress_kernels.int8_mlp import tune as tuning
from recpress_kernels.int8_mlp.choice import Entry, Table, choose_stack, read, write


def times(n: int, k: int, *shares: float, isa: str = "avx2") -> list[Entry]:
    """Entries at batches 1, 16, 256 whose 2:4 time is such a share of the dense one."""
    return [Entry(isa, n, k, b, b * 1e-6, b * 1e-6 * share) for b, share in zip((1, 16, 256), shares, strict=True)]


TABLE = Table(
    {"avx2": "here"},
    (
        *times(1024, 1024, 0.95, 0.75, 0.7),
        *times(1024, 16, 1.2, 0.9, 0.7),
        *times(16, 1024, 0.99, 1.0, 0.99),
        *times(1024, 1024, 2.0, 2.0, 2.0, isa="portable"),
    ),
)


@pytest.mark.parametrize(
    ("n", "k", "batches", "wanted"),
    [
        (1024, 1024, (1, 1024), True),
        (700, 2000, (1, 1024), True),  # the nearest measured
        (1024, 13, (1, 256), False),  # on average it gains, but not at batch 1
        (1024, 13, (16, 256), True),
        (1024, 13, (2, 8), False),  # by batch 1, which is nearer to 2 than 16 is
        (16, 900, (1, 256), False),  # within the noise
        (1, 1, (1, 1), False),
    ],
)
def test_the_rule(n, k, batches, wanted):
    assert TABLE.judge(n, k, "avx2", batches).sparse24 is wanted


def test_each_instruction_set_has_its_own_and_none_means_dense():
    assert not TABLE.judge(1024, 1024, "portable", (1, 1024)).sparse24
    assert not TABLE.judge(1024, 1024, "avx512_vnni", (1, 1024)).sparse24


def stack() -> list[torch.Tensor | Sparse24]:
    return [Sparse24(*canonical(64, 48), 48), layer(32, 64)[0], Sparse24(*canonical(1, 32), 32)]


def test_a_stack_is_chosen_layer_by_layer_and_means_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path))
    write(Table({"avx2": "here"}, (*times(64, 48, 0.8, 0.8, 0.8), *times(1, 32, 1, 1, 1))), choice.path())
    weights = stack()
    chosen, choices = choose_stack(weights, (1, 256), "avx2")
    assert [(c.n, c.k, c.sparse24, c.measured) for c in choices] == [
        (64, 48, True, (64, 48)),
        (1, 32, False, (1, 32)),
    ]
    assert choices[0].ratios == pytest.approx({1: 1.25, 16: 1.25, 256: 1.25})
    assert chosen[0] is weights[0] and chosen[1] is weights[1] and torch.equal(chosen[2], decompress(weights[2]))
    scales = [torch.ones(n) * 0.01 for n in (64, 32, 1)]
    both = [rk.pack_stack(w, scales, [None] * 3, ["relu"] * 3) for w in (weights, chosen)]
    assert both[0].numel() != both[1].numel()
    assert same_bits(*(rk.int8_mlp_packed(rows(5, 48), packed, 1) for packed in both))


def test_without_a_table_all_is_dense(tmp_path, monkeypatch):
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path))
    assert not any(isinstance(w, Sparse24) for w in choose_stack(stack())[0])


def test_the_table_of_the_package():
    """2:4 where gathers are an instruction, dense where they are not or the layer is too small."""
    table = read(choice.path())
    for isa in ("avx2", "avx512_vnni"):
        for n, k in ((1024, 479), (1024, 1024), (512, 1024), (256, 512)):
            assert table.judge(n, k, isa, (1, 1024)).sparse24, (isa, n, k)
        assert not table.judge(1, 13, isa, (1, 1024)).sparse24
    assert not any(table.judge(n, 1024, "portable", (1, 1024)).sparse24 for n in (1, 64, 1024))
    assert set(table.machine) == {e.isa for e in table.entries} == set(native.ISAS[1:])


@pytest.mark.parametrize("batches", [(0, 4), (8, 4)])
def test_other_ranges_are_refused(batches):
    with pytest.raises(rk.KernelInputError, match="batches is"):
        choose_stack(stack(), batches)


def test_what_is_measured_is_read_back(tmp_path):
    def medians(variants, x):
        m = x.shape[0]
        assert {name: call(x).shape[0] for name, call in variants.items()} == {"dense": m, "2:4": m}
        return {"dense": 2e-6 * m, "2:4": 1e-6 * m}

    entries = list(tuning.tune(["portable"], lambda variants, x: medians(variants, x[:1])))
    assert len(entries) == len(tuning.OUTPUTS) * len(tuning.INPUTS) * len(tuning.BATCHES)
    table = tuning.merged(TABLE, entries, "there")
    assert table.machine == {"avx2": "here", "portable": "there"}
    assert table.judge(1024, 1024, "portable", (1, 1024)).sparse24  # what was there is replaced
    assert table.judge(1024, 1024, "avx2", (1, 1024)).sparse24  # of other instruction sets it stays
    write(table, tmp_path / choice.FILE_NAME)
    assert read(tmp_path / choice.FILE_NAME) == table
    assert [file.name for file in tmp_path.iterdir()] == [choice.FILE_NAME]


def test_one_pass_of_three_may_be_wrong():
    passes = [times(64, 64, share, 0.8, 0.8) for share in (0.9, 1.3, 0.95)]
    assert [e.sparse24_s / e.dense_s for e in tuning.middle(passes)] == pytest.approx([0.95, 0.8, 0.8])


BROKEN = ["", "[]", {"format": 2}, {"entries": [["avx2", 1, 1]]}, {"entries": [["avx2", 1, 1, 1, 0.0, 1.0]]}]


@pytest.mark.parametrize("text", BROKEN, ids=str)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text if isinstance(text, str) else json.dumps({"format": 1, "machine": {}, "entries": []} | text))
    with pytest.raises(rk.KernelInputError, match="no table of dense and 2:4 layers"):
        read(file)
