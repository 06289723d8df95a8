"""Predictors: thresholds and ranks by hand, factors in closed form, and whole ones on the packaged model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hotset import Model
from hotset.errors import Error
from hotset.offline import PredictorOptions, Sidecar, token_sequences, train_predictor
from hotset.offline.calibration import HIGH, LOW, Slacks, Totals, choose_threshold, largest_missed_mass
from hotset.offline.sizing import best_size, first_rank
from hotset.offline.two_layer import Factors, LayerSamples, TrainOptions, TwoLayer, select, train, with_relu

from conftest import assert_one_error_line

SMALL = PredictorOptions(n_ctx=64, n_train=3072, n_calibrate=3072, n_test=2048, train=TrainOptions(n_epochs=3))


@pytest.fixture
def hotset_python():
    """Runs `hotset` as the wheel's command does."""

    def call(*words):
        code = "import sys; from hotset.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, timeout=240, check=False)

    return call


@pytest.fixture(scope="module")
def story(demo_model):
    with Model(demo_model, n_threads=2) as model:
        return "".join(str(model.generate("Once upon a time", max_tokens=480, seed=seed)) for seed in range(24))


def samples_of(n=400, n_embd=32, n_ff=96, density=0.1, seed=3):
    """Inputs, the units that a random detect matrix makes active for them, and the matrix."""
    random = np.random.default_rng(seed)
    detect = random.standard_normal((n_ff, n_embd)).astype(np.float32)
    inputs = random.standard_normal((n, n_embd)).astype(np.float32)
    values = inputs @ detect.T
    values -= np.quantile(values, 1 - density)
    active = values > 0
    return LayerSamples(inputs, active, np.where(active, values, 0).astype(np.float32)), detect


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_threshold_is_the_lowest_that_misses_no_more_than_asked():
    slacks = Slacks(np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 1, 1]), np.array([80.0, 15, 4, 1]))
    width = (HIGH - LOW) / 4
    for missed, last in [(1.0, 0), (0.2, 0), (0.199, 1), (0.05, 1), (0.049, 2), (0.01, 2), (0.0099, 3), (0, 3)]:
        found = choose_threshold(slacks, missed)
        assert found.z == (LOW + (last + 1) * width if last < 3 else np.inf), missed
        assert found.n_candidates == [1, 3, 6, 10][last] and found.n_found == last + 1
        assert found.missed == pytest.approx([20, 5, 1, 0][last])
    nothing = choose_threshold(Slacks(np.ones(4), np.zeros(4), np.zeros(4)), 0.01)
    assert (nothing.n_candidates, nothing.missed) == (1, 0)
    totals = Totals.of([choose_threshold(slacks, 0.05), None])
    assert (totals.recall, totals.over_selection, totals.missed_mass) == (0.5, 0.75, 0.05)
    assert totals.candidate_share == 0.3
    assert np.isnan(Totals.of([None]).over_selection)


def test_search_for_the_missed_mass():
    asked = []

    def up_to(limit):
        return lambda missed: asked.append(missed) or missed <= limit

    assert largest_missed_mass(up_to(1.0)) == 0.1
    assert largest_missed_mass(up_to(1e-6)) is None
    asked.clear()
    assert 0.003 * 0.8 < largest_missed_mass(up_to(0.003)) <= 0.003
    assert len(asked) == 8


# --- factors and networks -------------------------------------------------------------------------------------------


def test_factor_of_full_rank_gives_the_products_up_to_a_scale():
    samples, detect = samples_of()
    margins = Factors(detect, samples.inputs).at(32).margins(samples.inputs)
    exact = samples.inputs @ detect.T
    np.testing.assert_array_equal(np.sign(margins), np.sign(exact))


def test_factor_is_the_best_of_its_rank_for_these_inputs():
    samples, detect = samples_of(seed=5)
    skewed = LayerSamples(samples.inputs * np.linspace(0.1, 3, 32, dtype=np.float32), samples.active, samples.mass)
    exact = skewed.inputs @ detect.T

    def error(factor: TwoLayer) -> float:
        hidden = skewed.inputs @ factor.fc1.T
        return float(np.square(exact - hidden @ np.linalg.lstsq(hidden, exact, rcond=None)[0]).sum())

    plain = np.linalg.svd(detect, full_matrices=False)[2][:8].astype(np.float32)
    ours = Factors(detect, skewed.inputs).at(8)
    assert error(ours) < error(TwoLayer(plain, ours.fc2, ours.bias, True))
    for seed in range(5):
        other = ours.fc1 + 0.05 * np.random.default_rng(seed).standard_normal(ours.fc1.shape).astype(np.float32)
        assert error(ours) <= error(TwoLayer(other, ours.fc2, ours.bias, True)) * (1 + 1e-6)


def test_relu_in_between_can_compute_the_same():
    samples, detect = samples_of()
    linear = Factors(detect, samples.inputs).at(8)
    doubled = with_relu(linear)
    assert doubled.rank == 16 and not doubled.is_linear
    np.testing.assert_allclose(doubled.margins(samples.inputs), linear.margins(samples.inputs), rtol=1e-4, atol=1e-4)


def test_training_improves_what_it_starts_from_and_repeats():
    pytest.importorskip("torch")
    samples, detect = samples_of(n=2000, density=0.2)
    learn, judge = samples.split(1600)
    start = with_relu(Factors(detect, learn.inputs).at(8))
    options = TrainOptions(n_epochs=20)
    trained = train(learn, start, options)
    assert trained.rank == start.rank
    before, after = (select(p.margins(judge.inputs), judge, 0.02).candidates for p in (start, trained))
    assert after < before
    np.testing.assert_array_equal(trained.fc1, train(learn, start, options).fc1)


def test_selection_misses_no_more_mass_than_asked():
    samples, detect = samples_of()
    margins = Factors(detect, samples.inputs).at(8).margins(samples.inputs)
    last = 1.0
    for missed in (0.1, 0.03, 0.01, 0.001, 0.0):
        found = select(margins, samples, missed)
        named = margins > -found.offset
        lost = samples.mass[~named].sum() / samples.mass.sum()
        assert lost <= missed + 1e-6 and found.missed_mass == pytest.approx(lost, abs=1e-6)
        assert found.candidates == named.mean() and found.recall <= 1 and found.missed_mass <= last
        last = found.missed_mass
    assert select(margins, samples, 0.0).recall == 1
    dead = LayerSamples(samples.inputs, np.zeros_like(samples.active), np.zeros_like(samples.mass))
    assert select(margins, dead, 0.01).candidates == 0


def test_rank_that_reads_the_fewest_bytes_is_chosen():
    samples, _ = samples_of(n_embd=256, n_ff=64)
    calls = []

    def maker(costs):
        def make(rank):
            calls.append(rank)
            named = costs[rank]
            margins = np.where(np.arange(64) < named * 64, 1.0, -1.0).astype(np.float32)
            return TwoLayer(np.zeros((rank, 256), np.float32), np.zeros((64, rank), np.float32), margins, True)

        return make

    everything = LayerSamples(samples.inputs, np.zeros((400, 64), bool), np.zeros((400, 64), np.float32))
    everything.active[:, 0], everything.mass[:, 0] = True, 1.0
    costs = {32: 1.0, 64: 0.5, 128: 0.1, 256: 0.05}
    chosen = best_size(maker(costs), everything, 0.0, 1000.0, 1e-6, 64, 256)
    assert chosen.predictor.rank == 256  # rows are dear, the predictor is almost free
    chosen = best_size(maker(costs), everything, 0.0, 1e-6, 1.0, 128, 256)
    assert chosen.predictor.rank == 32
    assert first_rank(everything, 256) % 32 == 0 and first_rank(everything, 40) == 32


# --- whole predictors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bit_planes", "low_rank", "mlp"])
def test_predictor_of_the_packaged_model_reaches_the_asked_quality(kind, demo_model, story, tmp_path):
    if kind == "mlp":
        pytest.importorskip("torch")
    options = PredictorOptions(kind, n_ctx=64, n_train=3072, n_calibrate=3072, n_test=2048, max_share=0.07,
                               train=TrainOptions(n_epochs=3))  # fmt: skip
    with Model(demo_model, mode="exact", n_threads=2) as model:
        sidecar, report = train_predictor(model, token_sequences(model, [story], 64), options)
        fingerprint = model.fingerprint
    assert report.is_good and report.kld <= 0.0014 and report.same_top > 0.95
    if kind == "bit_planes":
        assert report.bits == 3 and report.totals.over_selection <= 1.6
    else:
        assert report.share < 0.0709 and any(layer.rank for layer in report.layers)
    path = tmp_path / "m.hotset.gguf"
    sidecar.save(path)
    assert Sidecar.load(path, fingerprint).keys == sidecar.keys
    with Model(demo_model, mode="predict", sidecar=path, n_threads=2) as model:
        assert model.stats().mode == "predict"
        assert model.kld(story, n_ctx=64).mean_kld <= 0.0028  # other text of the kind: allow twice
        assert model.generate("Once upon a time", max_tokens=8, temperature=0)


def test_command_writes_a_sidecar_that_is_found_beside_the_model(hotset_python, demo_model, story, tmp_path):
    model, text = tmp_path / "m.gguf", tmp_path / "t.txt"
    model.symlink_to(demo_model)
    text.write_text(story)
    words = ["train-predictor", "-m", str(model), "-f", str(text), "-c", "64", "-t", "2", "--json"]
    done = hotset_python(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["is_good"] and report["kind"] == "bit_planes" and len(report["layers"]) == 6
    beside = tmp_path / "m.hotset.gguf"
    first = beside.read_bytes()
    refused = hotset_python(*words, "--max-kld", "1e-12")
    assert refused.returncode == 1 and b"nothing was written" in refused.stderr
    assert beside.read_bytes() == first
    out = hotset_python("kld", "-m", str(model), "-f", str(text), "-c", "64", "--chunks", "4", "--mode", "predict", "--json")
    assert out.returncode == 0 and json.loads(out.stdout)["mean_kld"] < 0.01


def test_wrong_use_is_refused(demo_model, story, tmp_path):
    with Model(demo_model, mode="exact", n_threads=1) as model:
        for wrong in ({"kind": "magic"}, {"bits": 4}, {"max_kld": 0.0}, {"max_kld": float("nan")}, {"dtype": "f32"},
                      {"max_share": 0.0}, {"n_ctx": 1}):  # fmt: skip
            with pytest.raises(ValueError, match="train-predictor"):
                train_predictor(model, [[1, 2]], PredictorOptions(**wrong))
        with pytest.raises(Error, match="at least"):
            train_predictor(model, [], SMALL)
        with pytest.raises(Error, match="at least"):
            train_predictor(model, token_sequences(model, ["Once"], 64), SMALL)
        with pytest.raises(Error, match="another|fingerprint|model"):
            train_predictor(model, token_sequences(model, [story], 64), SMALL, Sidecar("0" * 32, 6))


def test_command_needs_texts(hotset_python):
    assert_one_error_line(hotset_python("train-predictor"), 2)
