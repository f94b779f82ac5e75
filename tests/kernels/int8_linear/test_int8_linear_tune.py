import pytest

from recpress_kernels.errors import KernelInputError
from recpress_kernels.int8_linear import launch, tuned
from recpress_kernels.int8_linear.launch import Device
from recpress_kernels.int8_linear.tune import candidates, tune
from recpress_kernels.int8_linear.tuned import Table, file_name, read, table_of, write

A100 = Device("cuda", 80, 108, (3, 9))


def slowest_first(shape, config):
    """A GPU on which one configuration is best, and the widest tile does not fit."""
    if config.block_m == 128:
        raise RuntimeError("out of resource: shared memory")
    return abs(config.block_n - 64) + abs(config.splits - 2) + abs(config.num_stages - 3) + config.halves * 0.1 + 1e-3


def test_the_fastest_that_runs_is_kept():
    seen = []
    entries = tune([(64, 512, 4096), (1, 256, 1024)], A100, slowest_first, on_shape=seen.append)
    assert seen == entries and [(e.m, e.n, e.k) for e in entries] == [(64, 512, 4096), (1, 256, 1024)]
    best = entries[0].config
    assert (best.block_n, best.splits, best.num_stages, best.halves) == (64, 2, 3, 1) and best.block_m < 128
    assert entries[0].seconds == slowest_first(None, best)


def test_nothing_that_runs_leaves_no_entry():
    def never(shape, config):
        raise RuntimeError("no")

    assert tune([(64, 512, 4096)], A100, never) == []


@pytest.mark.parametrize("shape", [(1, 8, 13), (16, 64, 64), (4096, 1024, 1024)])
@pytest.mark.parametrize("aligned", [True, False])
def test_every_candidate_can_run(shape, aligned):
    found = list(candidates(shape, A100, quantized=False, aligned=aligned))
    assert len(found) == len(set(found)) > 4
    assert all(launch.supports(c, quantized=False, aligned=aligned) for c in found)
    assert any(c.route == "fused" for c in found) == (shape[0] <= launch.SMALL_M)
    assert any(c.route == "tma" for c in found) == aligned


def test_a_table_is_found_by_shape_and_the_next_batch(tmp_path, monkeypatch):
    entries = tune([(16, 512, 256), (256, 512, 256)], A100, lambda shape, config: config.block_m / shape[0])
    table = Table("NVIDIA A100-SXM4-40GB", tuple(entries))
    write(table, tmp_path / file_name(table.gpu))
    assert [p.name for p in tmp_path.iterdir()] == ["nvidia-a100-sxm4-40gb.json"]
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path))
    table_of.cache_clear()
    try:
        found = table_of("NVIDIA A100-SXM4-40GB")
        assert found == table
        assert found.find(3, 512, 256, quantized=False, aligned=True) == entries[0].config
        assert found.find(17, 512, 256, quantized=False, aligned=True) == entries[1].config
        assert found.find(257, 512, 256, quantized=False, aligned=True) is None
        assert found.find(3, 512, 256, quantized=True, aligned=True) is None
        assert found.find(3, 512, 255, quantized=False, aligned=True) is None
        assert table_of("another GPU").entries == ()
    finally:
        table_of.cache_clear()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "gpu": "x", "entries": [{"m": 1}]}'])
def test_a_file_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(KernelInputError, match="no table of tuned configurations"):
        read(tmp_path / "x.json")
