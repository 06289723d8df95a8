"""Tests of hotset.offline.figures against figures worked out by hand, and by NumPy from activations."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

if importlib.util.find_spec("hotset") is None:  # not installed: a report needs no native module
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from statistics_file import FINGERPRINT, layer_of, write_statistics  # noqa: E402

from hotset.errors import Error  # noqa: E402
from hotset.offline.figures import compute_report, concentration  # noqa: E402
from hotset.offline.sidecar_reader import Placement  # noqa: E402
from hotset.offline.statistics import Statistics  # noqa: E402


def one(tmp_path, layers, n_tokens, **more):
    """The report on one file."""
    return compute_report([Statistics.load(write_statistics(tmp_path / "s.npz", layers, n_tokens, **more))], ["s"])


def several(tmp_path, parts, n_tokens):
    """Statistics of one-layer files with these counts."""
    return [
        Statistics.load(write_statistics(tmp_path / f"{n}.npz", [{"counts": counts}], n_tokens))
        for n, counts in enumerate(parts)
    ]


@pytest.mark.parametrize(
    ("values", "units_for_80", "hottest_fifth"),
    [
        ([1, 4, 2, 3], 3 / 4, 0.8 * 0.4),  # 4 + 3 + 2 of 10; 20 % is 0.8 of the first unit
        ([1, 8, 1], 1 / 3, 0.6 * 0.8),  # exactly 80 %
        ([7, 1, 1, 1], 2 / 4, 0.8 * 0.7),  # one step below 80 % needs the next unit
        ([3] * 10, 0.8, 0.2),
        ([5], 1.0, 0.2),
        ([0, 0, 9], 1 / 3, 0.6),
        ([0.1] * 5, 0.8, 0.2),  # 0.4 / 0.5 is not 0.8 in every order of summation
    ],
)
def test_concentration(values, units_for_80, hottest_fifth):
    found = concentration(np.array(values))
    assert found.units_for_80 == pytest.approx(units_for_80, abs=1e-12)
    assert found.hottest_fifth == pytest.approx(hottest_fifth, abs=1e-12)
    assert len(found.curve) == 101 and found.curve[0] == 0 and found.curve[100] == pytest.approx(1)
    assert np.all(np.diff(found.curve) >= 0) and np.all(np.diff(found.curve, 2) < 1e-12)


def test_concentration_of_nothing_is_unknown():
    assert dataclasses.astuple(concentration(np.zeros(4, np.uint64))) == (None, None, None)


def test_figures_by_hand(tmp_path):
    layer = one(tmp_path, [{"counts": [4, 0, 2, 2], "mass": [1, 0, 0, 9], "overlap": 5}], 4).layers[0]
    assert (layer.n_units, layer.active, layer.sparsity, layer.n_dead, layer.n_always_on) == (4, 2.0, 0.5, 1, 1)
    assert layer.activations.units_for_80 == 3 / 4 and layer.mass.units_for_80 == 1 / 4
    assert layer.persistence == 5 / 8
    assert layer.persistence_by_chance == pytest.approx((4 * 3 + 2 * 1 + 2 * 1) / (3 * 8))


def test_figures_equal_a_count_over_the_activations(tmp_path):
    active = np.random.default_rng(5).random((40, 19)) < np.linspace(0, 1, 19)
    report = one(tmp_path, [layer_of(active), layer_of(~active)], 40)
    for layer, rows in zip(report.layers, (active, ~active)):
        pairs = [(rows[t] & rows[u]).sum() for t in range(40) for u in range(40) if t != u]
        assert layer.active == pytest.approx(rows.sum(axis=1).mean())
        assert layer.sparsity == pytest.approx(1 - rows.mean())
        assert layer.persistence == pytest.approx((rows[1:] & rows[:-1]).sum() / rows.sum())
        assert layer.persistence_by_chance == pytest.approx(sum(pairs) / 39 / rows.sum())
        assert (layer.n_dead, layer.n_always_on) == ((~rows).all(axis=0).sum(), rows.all(axis=0).sum())
    assert report.model.n_units == 38 and report.model.active == pytest.approx(19) and report.model.sparsity == 0.5


def test_the_whole_model_pools_its_units(tmp_path):
    model = one(tmp_path, [{"counts": [8, 0], "overlap": 6}, {"counts": [1, 1], "overlap": 0}], 8).model
    assert model.activations.units_for_80 == 1 / 4  # 8 of 10, though layer 1 alone needs both units
    assert model.persistence == 6 / 10 and (model.n_dead, model.n_always_on) == (1, 1)


def test_every_unit_active_for_every_token(tmp_path):
    layer = one(tmp_path, [layer_of(np.ones((5, 9), bool))], 5).layers[0]
    assert (layer.sparsity, layer.n_always_on, layer.n_dead, layer.persistence_by_chance) == (0, 9, 0, 1)
    assert layer.persistence == 4 / 5  # the first token has none before it


def test_no_unit_and_one_token(tmp_path):
    dead = one(tmp_path, [layer_of(np.zeros((5, 9), bool))], 5).layers[0]
    assert (dead.sparsity, dead.n_dead, dead.persistence, dead.activations.curve) == (1, 9, None, None)
    single = one(tmp_path, [layer_of(np.ones((1, 1), bool))], 1).layers[0]
    assert (single.sparsity, single.persistence, single.persistence_by_chance) == (0, None, None)
    assert single.activations.units_for_80 == 1


def test_layers_are_ordered_by_number(tmp_path):
    layers = [{"counts": [number, 0, 0], "threshold": number / 8} for number in range(13)]
    report = one(tmp_path, layers, 13)
    assert [layer.layer for layer in report.layers] == list(range(13))
    assert [round(3 * layer.active) for layer in report.layers] == [round(3 * n / 13) for n in range(13)]
    assert [layer.threshold for layer in report.layers] == [n / 8 for n in range(13)]


def test_stability_by_hand(tmp_path):
    a = [9, 8, 1, 1, 1, 1, 1, 1, 1, 1]  # hottest fifth: units 0 and 1
    b = [9, 1, 1, 1, 1, 1, 1, 1, 1, 8]  # 0 and 9
    pairs = compute_report(several(tmp_path, [a, a, b], 9), ["a", "a", "b"]).stability
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [pair.overlap for pair in pairs] == [1, 0.5, 0.5] and pairs[1].layers == [0.5]
    assert [pair.kept for pair in pairs] == pytest.approx([1, 10 / 17, 10 / 17])


def test_units_that_never_fired_make_no_hot_set_stable(tmp_path):
    parts = several(tmp_path, [[0] * 9 + [3], [3] + [0] * 9, [0] * 10], 3)
    pairs = compute_report(parts, "abc").stability
    assert (pairs[0].overlap, pairs[0].kept) == (0, 0)  # both sets would be filled up with unit 0 or 1 by number
    assert (pairs[1].overlap, pairs[1].kept) == (0, None)
    parts = several(tmp_path, [[0] * 10, [0] * 10], 3)
    assert compute_report(parts, "ab").stability[0].overlap is None


def test_sums_of_several_files(tmp_path):
    parts = several(tmp_path, [[4, 0, 1], [0, 0, 3]], 4)
    report = compute_report(parts, ["a", "b"])
    assert report.n_tokens == 8 and report.layers[0].sparsity == 1 - 8 / 24 and report.layers[0].n_dead == 1
    assert [(source.name, source.n_tokens, source.sparsity) for source in report.sources] == [
        ("a", 4, 1 - 5 / 12),
        ("b", 4, 1 - 3 / 12),
    ]
    assert len(report.corpora) == 2


def test_coactivation_by_hand(tmp_path):
    rows = np.zeros((4, 11), bool)  # 11 units: the packed rows end inside a byte
    rows[:, 10] = True
    rows[:2, 3] = True
    rows[1:3, 9] = True
    layer = {**layer_of(rows), "samples": rows}
    (found,) = one(tmp_path, [layer], 4).coactivation
    assert (found.layer, found.n_rows, found.units) == (0, 4, [10, 3, 9])
    assert found.lift == pytest.approx((2 + 2 + 1) * 4 / (4 * 2 + 4 * 2 + 2 * 2))
    assert found.correlation == [[None] * 3, [None, 1, 0], [None, 0, 1]]


def test_coactivation_equals_numpy_and_takes_64_units(tmp_path):
    rng = np.random.default_rng(11)
    rows = rng.random((300, 100)) < np.linspace(0.1, 0.9, 100) * rng.random((300, 1))
    layers = [{**layer_of(rows), "samples": rows[:200]}, {**layer_of(~rows), "samples": ~rows[100:]}]
    part = Statistics.load(write_statistics(tmp_path / "s.npz", layers, 300))
    report = compute_report([part, part], ["s", "t"], heatmap_layer=0)
    assert [(each.layer, each.n_rows) for each in report.coactivation] == [(0, 400), (1, 400)]
    first, last = report.coactivation
    assert first.units == part.order(0).tolist()[:64] and last.correlation is None
    np.testing.assert_allclose(first.correlation, np.corrcoef(rows[:200, first.units].T), atol=5.1e-5)
    assert first.lift > 1.1  # some tokens wake many units


def test_the_middle_layer_has_the_heatmap(tmp_path):
    rows = np.ones((2, 8), bool)
    path = write_statistics(tmp_path / "s.npz", [{**layer_of(rows), "samples": rows}] * 12, 2)
    found = compute_report([Statistics.load(path)], ["s"]).coactivation
    assert [each.layer for each in found if each.correlation is not None] == [6]
    assert {each.lift for each in found} == {1}


@pytest.mark.parametrize(("samples", "match"), [({"samples": np.ones((2, 8), bool)}, "0 to 1, got 2"), ({}, "none")])
def test_a_layer_without_samples_has_no_heatmap(tmp_path, samples, match):
    path = write_statistics(tmp_path / "s.npz", [{**layer_of(np.ones((2, 8), bool)), **samples}] * 2, 2)
    with pytest.raises(ValueError, match=f"heatmap: expected {match}"):
        compute_report([Statistics.load(path)], ["s"], heatmap_layer=2)


def test_placement_by_hand(tmp_path):
    layers = [{"counts": [1, 6, 3, 0]}, {"counts": [5, 0, 0, 5]}]
    orders = [np.array([1, 2, 0, 3]), np.array([2, 0, 1, 3])]  # layer 1 was ordered by another text
    placement = Placement(FINGERPRINT, [1, 2], orders, ["device", "split"], [None, None], gap=0.01)
    part = Statistics.load(write_statistics(tmp_path / "s.npz", layers, 6))
    found = compute_report([part], ["s"], placement).placement
    assert [(each.n_hot, each.units, each.activations) for each in found.layers] == [(1, 0.25, 0.6), (2, 0.5, 0.5)]
    assert (found.units, found.activations, found.gap, found.machine) == (3 / 8, 11 / 20, 0.01, None)
    other = dataclasses.replace(placement, model_fingerprint="ff" * 16)
    with pytest.raises(Error, match="fingerprint"):
        compute_report([part], ["s"], other)
    with pytest.raises(Error, match="layers and units"):
        compute_report([part], ["s"], dataclasses.replace(placement, unit_of_slot=orders[:1]))


def test_json_is_the_dataclass(tmp_path):
    rows = np.random.default_rng(2).random((9, 16)) < 0.3
    report = one(tmp_path, [{**layer_of(rows), "samples": rows}], 9)
    assert json.loads(report.to_json()) == dataclasses.asdict(report)
    assert json.loads(report.to_json())["format"] == "hotset-report"


def test_bad_statistics_are_refused(tmp_path):
    with pytest.raises(Error, match="at least one file"):
        compute_report([], [])
    part = Statistics.load(write_statistics(tmp_path / "a.npz", [{"counts": [1, 0]}], 1))
    other = Statistics.load(write_statistics(tmp_path / "b.npz", [{"counts": [1, 0]}], 1, model_fingerprint="ff" * 16))
    with pytest.raises(Error, match=r"report b.*fingerprint: expected 0011.* as a, got ffff.*one model"):
        compute_report([part, other], ["a", "b"])
    wider = Statistics.load(write_statistics(tmp_path / "c.npz", [{"counts": [1, 0, 0]}], 1))
    with pytest.raises(Error, match="layers and units"):
        compute_report([part, wider], ["a", "c"])
    other = Statistics.load(write_statistics(tmp_path / "d.npz", [{"counts": [1, 0], "threshold": 0.5}], 1))
    with pytest.raises(Error, match="threshold"):  # their counts mean different things
        compute_report([part, other], ["a", "d"])
