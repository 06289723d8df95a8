"""Mode predict from outside: the command, the package, calibration, and the sidecar beside a model."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest

from conftest import assert_one_error_line
from hotset import Error, Model, ModelFormatError, _core

TEXT = "Once upon a time there was a little girl who lived near the sea. " * 40


def write_sidecar(path, fingerprint: str, n_layer: int, thresholds: list[float]) -> None:
    """Bit planes of 2 bits, as `hotset train-predictor` writes them."""
    writer = gguf.GGUFWriter(str(path), "hotset-sidecar")
    writer.add_uint32("hotset.version", 1)
    writer.add_string("hotset.model_fingerprint", fingerprint)
    writer.add_string("hotset.unit_kind", "ffn")
    writer.add_uint32("hotset.n_layer", n_layer)
    writer.add_string("hotset.predictor.kind", "bit_planes")
    writer.add_uint32("hotset.predictor.bits", 2)
    writer.add_array("hotset.predictor.thresholds", thresholds)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_predict_with_endless_slack_is_exact():
    with Model(mode="exact") as exact, Model(mode="predict", predictor="bit_planes:2:inf") as predict:
        tokens = exact.tokenize(TEXT)[:60]
        assert np.array_equal(exact.logits(tokens), predict.logits(tokens))
        stats = predict.stats()
        assert (stats.mode, stats.predictor) == ("predict", "bit_planes:2")
        assert stats.predictor_bytes > 0
        assert stats.over_selection == pytest.approx(1 / stats.active_share)
        assert exact.stats().over_selection is None


@pytest.mark.parametrize("options", [{"mode": "predict"}, {"mode": "predict", "sidecar": "none"}])
def test_predict_needs_a_predictor(options):
    with pytest.raises(Error, match="mode predict: expected a predictor"):
        Model(**options)


def test_bad_predictors_are_value_errors():
    for options in ({"mode": "predict", "predictor": "oracle"}, {"mode": "exact", "predictor": "bit_planes:2"}):
        with pytest.raises(ValueError):
            Model(**options)


def test_the_sidecar_beside_a_model_is_found(demo_model, tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copy(demo_model, path)
    with Model(path) as model:
        fingerprint = model._engine.fingerprint
        n_layer = int(model.metadata["llama.block_count"])
        tokens = model.tokenize(TEXT)[:40]
        exact = model.logits(tokens)
    write_sidecar(tmp_path / "m.hotset.gguf", fingerprint, n_layer, [float("inf")] * n_layer)
    with Model(path, mode="predict") as model:
        assert np.array_equal(model.logits(tokens), exact)
    write_sidecar(tmp_path / "m.hotset.gguf", "0" * 32, n_layer, [0.0] * n_layer)
    with pytest.raises(ModelFormatError, match="another model"):
        Model(path, mode="predict")
    write_sidecar(tmp_path / "other.gguf", fingerprint, n_layer, [0.5] * n_layer)
    with Model(path, mode="predict", sidecar=tmp_path / "other.gguf") as model:
        assert model.stats().predictor == "bit_planes:2"


def test_calibration_says_what_a_threshold_costs():
    with Model(mode="exact") as model:
        calibrator = _core.Calibrator(
            model._engine, predictor="bit_planes:2:0", sidecar="none", n_ctx=128, n_threads=2, n_batch=64, low=-8, high=8,
            n_bins=256,
        )  # fmt: skip
        tokens = model.tokenize(TEXT)[:100]
        calibrator.add([tokens[:60], tokens[60:]])
        layers = calibrator.layers()
    assert len(layers) > 1
    for layer in layers:
        units, active, mass = (layer[name].cumsum() for name in ("units", "active", "mass"))
        assert units[-1] % 100 == 0 and 0 < active[-1] < units[-1] and mass[-1] > 0
        end = int((mass < 0.99 * mass[-1]).sum())  # the threshold that misses at most 1 % of the mass
        assert active[end] <= units[end] < units[-1]


def test_kld_of_predict_mode(hotset, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    words = ["kld", "-f", str(path), "-c", "64", "--json", "--mode", "predict", "--predictor"]
    results = {}
    for predictor in ("bit_planes:2:inf", "bit_planes:2:1", "bit_planes:2:-1"):
        result = hotset(*words, predictor)
        assert result.returncode == 0, result.stderr
        results[predictor] = json.loads(result.stdout)
    assert results["bit_planes:2:inf"]["mean_kld"] == 0
    assert 0 <= results["bit_planes:2:1"]["mean_kld"] < results["bit_planes:2:-1"]["mean_kld"]
    assert 1 <= results["bit_planes:2:-1"]["over_selection"] < results["bit_planes:2:1"]["over_selection"]


def test_bench_reports_the_predictor(hotset):
    words = ["bench", "-p", "0", "-n", "8", "-r", "1", "-o", "json", "--mode", "predict"]
    result = hotset(*words, "--predictor", "bit_planes:1")
    assert b"not calibrated" in result.stderr
    row = json.loads(result.stdout)[0]
    assert (row["mode"], row["predictor"]) == ("predict", "bit_planes:1")
    assert row["predictor_bytes"] > 0 and row["over_selection"] >= 1
    assert_one_error_line(hotset(*words[:-2], "--mode", "exact", "--predictor", "bit_planes:2"), 2)
    assert_one_error_line(hotset(*words, "--predictor", "bit_planes:9"), 2)
