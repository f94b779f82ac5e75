"""The benchmark of a whole DLRM measures what it says: ours answer as float32 does, and what does not is left out."""

import pytest
import torch

from recpress_kernels.bench import dlrm, dlrm_peers

ROWS = 50
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_variant_of_ours_gives_the_logits_of_its_float_model(monkeypatch, capsys):
    monkeypatch.setattr(dlrm_peers, "PEERS", {"torch float32": dlrm_peers.PEERS["torch float32"]})
    result = dlrm.run(seconds=0.0, batches=[1, 3], rows=ROWS)
    rows = {(row["batch"], row["variant"]): row for row in result["rows"]}
    assert set(rows) == {(b, name) for b in (1, 3) for name in (*dlrm.OURS, "torch float32")}
    assert all((row["ratio_to_best_peer"] is not None) == row["ours"] for row in rows.values())
    said = [line for line in capsys.readouterr().out.splitlines() if "correlation" in line]
    assert len(said) == 4 and all(float(line.split()[-1]) > 0.99 for line in said)


def test_a_peer_that_computes_another_model_is_left_out_by_name(monkeypatch, capsys):
    def other(model, dense, ids):
        return lambda dense, ids: model(dense, (ids + 1) % ROWS)

    monkeypatch.setattr(dlrm_peers, "PEERS", {"shifted": other})
    assert "shifted" not in dlrm.variants(ROWS)
    assert "shifted left out: ValueError: its logits correlate" in capsys.readouterr().out


def test_2_4_is_compared_with_the_pruned_model():
    model = dlrm.float_model(ROWS)
    pruned = dlrm.pruned(model)
    weights = [m.weight for m in (*pruned.bottom, *pruned.top) if isinstance(m, torch.nn.Linear)]
    for weight in weights:
        fours = torch.nn.functional.pad(weight.detach() != 0, (0, -weight.shape[1] % 4)).view(len(weight), -1, 4)
        assert fours.sum(dim=2).max() == 2
    assert not torch.equal(model.top[0].weight, pruned.top[0].weight)
