"""Ids out of vocabulary and rows that are dropped: what is asked for is done, exactly, and told."""

import pytest
import torch
from support.small import small_inputs, small_model
from torch import nn

import recpress
from recpress.errors import CalibrationError, IndexBoundsError, RecipeError, UnsupportedLayerError
from recpress.layers import MappedTable
from recpress.recipe import PruneRows, Recipe
from recpress.report.tables import what_was_done

SCHEMES = ["int8", "int4", "keep"]
ANY = [-1, 40, 2**31, 2**32 + 3, -(2**31) - 1, 2**63 - 1, -(2**63)]


def rows_of(report):
    return {row.names[0]: row for row in report.rows}


def nbytes(model):
    return sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())


class Table(nn.Module):
    """One table under two names, and a bag with a padding index."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.items = self.again = nn.Embedding(300, 24, padding_idx=7)
        self.bag = nn.EmbeddingBag(300, 24, mode="sum", padding_idx=7)
        self.held = [self.items]

    def forward(self, ids):
        return self.items(ids).sum(1) + self.held[0](ids[:, 0]) + self.bag(ids)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_id_outside_is_answered_by_the_row(scheme):
    model, policy = small_model(), {"tables.0": 3, "bag": 299}
    plain = recpress.compress(model, Recipe(embedding=scheme)).model
    result = recpress.compress(model, Recipe(embedding=scheme, oov=policy))
    dense, sparse = small_inputs(len(ANY))
    known = sparse.clone()
    sparse[:, 0], known[:, 0] = torch.tensor(ANY), 3
    sparse[:, 2], known[:, 2] = torch.tensor(ANY[::-1]), 299
    sparse[ANY[::-1].index(40), 2] = known[ANY[::-1].index(40), 2] = 40  # inside this table
    assert torch.equal(result.model(dense, sparse), plain(dense, known))
    assert {name: row.oov_row for name, row in rows_of(result.report).items() if "tab" in name or name == "bag"} == {
        "tables.0": 3,
        "tables.1": None,
        "bag": 299,
    }
    assert result.report.bytes_after == nbytes(result.model) == nbytes(plain)
    sparse[0, 1] = -1
    with pytest.raises(IndexError):
        result.model(dense, sparse)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"oov": {"tables.*": 7}},
            "oov 'tables.*' answers with row 7 and matches table 'tables.1', which has 7 rows; .* 0 to 6",
        ),
        ({"oov": {"tab": 0}}, "oov 'tab' matches no table; the model's tables are: 'tables.0', 'tables.1', 'bag'"),
        ({"oov": {"top.0": 0}}, "oov 'top.0' matches no table"),
        (
            {"oov": {"tables.*": 0, "*.1": 1}},
            "oov 'tables.*' and '.*1' both match table 'tables.1' and ask for 0 and 1",
        ),
        ({"prune_rows": {"x": {"min_count": 1}}}, "prune_rows 'x' matches no table"),
        ({"prune_rows": {"bag": {"min_norm": 1e9}}}, "would drop all 300 rows of table 'bag'; ask for less"),
    ],
)
def test_recipes_that_do_not_fit_the_tables(given, message):
    with pytest.raises(RecipeError, match=message):
        recpress.compress(small_model(), Recipe(**given))


def counts_of(size, touched):
    counts = torch.zeros(size, dtype=torch.int64)
    counts[touched] = 1
    return counts


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dropped", ["mean", "zero"])
def test_rows_that_stay_keep_their_bits_and_others_answer_one_row(scheme, dropped):
    model, touched = small_model(), torch.arange(0, 300, 7)
    recipe = Recipe(embedding=scheme, prune_rows={"bag": PruneRows(min_count=1, dropped=dropped)})
    plain = recpress.compress(model, recipe.model_copy(update={"prune_rows": {}}))
    result = recpress.compress(model, recipe, counts={"bag": counts_of(300, touched)})
    one = torch.arange(300)[:, None]
    whole, fewer = plain.model.bag(one), result.model.bag(one)
    assert torch.equal(fewer[touched], whole[touched])
    gone = torch.ones(300, dtype=torch.bool)
    gone[touched] = False
    want = whole[gone].mean(0) if dropped == "mean" else torch.zeros(8)
    assert torch.equal(fewer[gone], fewer[gone][:1].expand(257, 8))
    torch.testing.assert_close(fewer[gone][0], want, rtol=0, atol={"int8": 1e-3, "int4": 1e-2, "keep": 1e-6}[scheme])
    row = rows_of(result.report)["bag"]
    assert (row.status, row.rows_dropped, row.dropped_answer) == ("compressed", 257, dropped)
    row_bytes = {"int8": 12, "int4": 8, "keep": 32}[scheme]
    assert row.bytes_after == 44 * row_bytes + 4 * 300 == nbytes(result.model.bag)
    assert result.report.bytes_after == nbytes(result.model)
    assert result.report.parameters == plain.report.parameters
    answer = "their mean" if dropped == "mean" else "zeros"
    assert f"257 rows dropped, which answer {answer}; bytes with the map from ids to rows" in what_was_done(row)


def test_bounds_of_norm_and_count_both_hold_and_the_ends_of_ids_are_still_checked():
    model = small_model()
    with torch.no_grad():
        model.bag.weight[:200] *= 1e-3
    counts = counts_of(300, torch.arange(150, 250)) * 5
    recipe = Recipe(embedding="keep", prune_rows={"bag": {"min_count": 5, "min_norm": 0.05}})
    new = recpress.compress(model, recipe, counts={"bag": counts}).model
    assert len(new.bag.table.weight) == 51 and new.bag.num_embeddings == 300
    kept = torch.arange(200, 250)[:, None]
    assert torch.equal(new.bag(kept), model.bag(kept))
    for bad in (-1, 300, 2**40):
        with pytest.raises(IndexBoundsError, match=f"id {bad} at .* is outside the table; allowed are 0 to 299"):
            new.bag(torch.tensor([[0, bad]]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_row_for_ids_outside_and_the_padding_row_stay(scheme):
    model, counts = Table(), counts_of(300, torch.arange(100, 130))
    recipe = Recipe(embedding=scheme, oov={"*": 299}, prune_rows={"*": {"min_count": 1}})
    plain = recpress.compress(model, Recipe(embedding=scheme)).model
    result = recpress.compress(model, recipe, counts={"again": counts, "bag": counts})
    new, row = result.model, rows_of(result.report)["items"]
    assert new.items is new.again is new.held[0] and isinstance(new.items, MappedTable)
    assert row.names == ("items", "again") and row.rows_dropped == 300 - 32 and row.oov_row == 299
    ids, known = torch.tensor([[7, 101], [-5, 129], [300, 7]]), torch.tensor([[7, 101], [299, 129], [299, 7]])
    assert torch.equal(new(ids), plain(known))
    assert not new.items(torch.tensor(7)).any()


def test_what_cannot_be_pruned_is_left_with_its_reason():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.items, self.out = nn.Embedding(300, 24), nn.Linear(24, 300, bias=False)
            self.out.weight = self.items.weight
            self.normed = nn.Embedding(300, 24, max_norm=1.0)
            self.hooked = nn.Embedding(300, 24)
            self.hooked.register_forward_hook(lambda *_: None)
            self.few, self.none = nn.Embedding(300, 24), nn.Embedding(300, 24)

        def forward(self, ids):
            return self.out(self.items(ids)) + sum(
                t(ids).sum() for t in (self.normed, self.hooked, self.few, self.none)
            )

    counts = dict.fromkeys(("items", "normed", "hooked"), counts_of(300, [1]))
    counts |= {"few": counts_of(300, torch.arange(295)), "none": counts_of(300, torch.arange(300))}
    model = Tied()
    recipe = Recipe(linear="keep", oov={"*": 2}, prune_rows={"*": {"min_count": 1}})
    result = recpress.compress(model, recipe, counts=counts)
    rows = rows_of(result.report)
    for name, reason in {
        "items": "not pruned: its weights are shared with out",
        "normed": "not pruned: max_norm",
        "hooked": "not pruned: it has forward hooks",
        "few": "not pruned: 5 of its 300 rows would go, which saves less than the map",
        "none": "not pruned: 0 of its 300 rows would go",
    }.items():
        assert reason in rows[name].reason and reason in what_was_done(rows[name])
        assert rows[name].rows_dropped == 0 and "ids out of vocabulary: row 2" in what_was_done(rows[name])
    assert result.model.out.weight is result.model.items.table.weight, "the tie holds"
    assert result.model.out.weight.data_ptr() != model.out.weight.data_ptr()
    assert result.report.bytes_after == nbytes(result.model)
    result.model(torch.tensor([1, 300]))


@pytest.mark.parametrize(
    "counts, message",
    [
        (None, r"prune_rows 'bag' .* and counts do not tell; give counts=recpress.count_ids\(model, inputs\)"),
        ({"tables.0": torch.zeros(40)}, "counts do not tell"),
        ({"bag": torch.zeros(299, dtype=torch.int64)}, r"torch.int64 of shape \(299,\); give whole numbers.* \[300\]"),
        ({"bag": torch.zeros(300)}, "are torch.float32"),
        ({"bag": -torch.ones(300, dtype=torch.int64)}, "at least 0"),
    ],
)
def test_counts_that_are_missing_or_of_another_table(counts, message):
    with pytest.raises(CalibrationError, match=message):
        recpress.compress(small_model(), Recipe(prune_rows={"bag": {"min_count": 1}}), counts=counts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [{"min_count": 1}, {"min_norm": 0.1}])
def test_a_table_with_nan_is_not_pruned_quietly(bad, rule):
    model = small_model()
    with torch.no_grad():
        model.bag.weight[5, 1] = bad
    recipe = Recipe(embedding="keep", prune_rows={"bag": rule})
    with pytest.raises(
        UnsupportedLayerError, match="row 5 of table 'bag', which the recipe prunes, holds NaN or infinity"
    ):
        recpress.compress(model, recipe, counts={"bag": counts_of(300, [9])})


def test_a_rule_for_a_table_that_calibration_does_not_reach_is_refused():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Embedding(30, 4), nn.Embedding(30, 4)

        def forward(self, ids):
            return self.used(ids)

    for rule in ({"oov": {"*": 0}}, {"prune_rows": {"idle": {"min_norm": 0.1}}}):
        with pytest.raises(RecipeError, match="table 'idle', which no calibration input ran through"):
            recpress.compress(Half(), Recipe(**rule), calibration=[torch.tensor([1])])


def test_names_of_one_table_are_given_one_rule():
    with pytest.raises(RecipeError, match="items, again are names of one table"):
        recpress.compress(Table(), Recipe(oov={"items": 1, "again": 2}))
    assert rows_of(recpress.compress(Table(), Recipe(oov={"again": 2})).report)["items"].oov_row == 2


def test_ids_are_counted_as_they_are_looked_up():
    model = small_model()
    dense, sparse = small_inputs(50)
    counts = recpress.count_ids(model, [(dense[:20], sparse[:20]), {"dense": dense[20:], "sparse": sparse[20:]}])
    assert list(counts) == ["tables.0", "tables.1", "bag"]
    assert torch.equal(counts["tables.0"], torch.bincount(sparse[:, 0], minlength=40))
    assert torch.equal(counts["bag"], torch.bincount(sparse[:, 2:].reshape(-1), minlength=300))
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(recpress.count_ids(Table(), [torch.tensor([[1, 1]])])["again"][:3], torch.tensor([0, 3, 0]))


@pytest.mark.parametrize("inputs, message", [([], "no inputs to count"), ([torch.tensor([[300]])], "fails on input 0")])
def test_counting_needs_inputs_that_the_model_takes(inputs, message):
    model = Table()
    with pytest.raises(CalibrationError, match=message):
        recpress.count_ids(model, inputs)
    assert not any(m._forward_pre_hooks for m in model.modules())
