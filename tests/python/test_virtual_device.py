"""A model split over the host and a pretend card through every way in: same tokens, memory as planned, errors in time."""

import json

import numpy as np
import pytest

from hotset import Model, OutOfMemoryError
from hotset.cli import main
from hotset.offline import Statistics, profile

SMALL = {"device": "virtual", "n_ctx": 256, "n_batch": 16}


@pytest.mark.parametrize("budget", ["4MiB", "6MiB", "9MiB", None])
def test_tokens_and_logits_are_those_of_the_host(budget):
    with Model(n_ctx=256, n_batch=16) as host, Model(vram_budget=budget, **SMALL) as split:
        assert split.stats().device == "virtual"
        assert split.generate("Once upon a time", max_tokens=24, temperature=0.0) == host.generate(
            "Once upon a time", max_tokens=24, temperature=0.0
        )
        ids = host.tokenize("The little dog ran")
        assert np.array_equal(split.logits(ids), host.logits(ids))
        stats = split.stats()
        assert 0 <= stats.device_weight_bytes + stats.device_kv_bytes <= stats.device_bytes
        if budget:
            assert stats.device_bytes <= int(budget[:-3]) << 20
        assert stats.gpu_active_share is not None and 0 <= stats.gpu_active_share <= 1


def test_a_batch_gives_what_single_prompts_give():
    prompts = ["Once upon a time", "The sun was", "Tom had a red ball and"]
    with Model(vram_budget="7MiB", **SMALL) as model:
        together = model.generate(prompts, max_tokens=12, temperature=0.0)
        assert [str(text) for text in together] == [
            str(model.generate(prompt, max_tokens=12, temperature=0.0)) for prompt in prompts
        ]


def test_plan_and_bench_say_the_same(hotset, demo_model):
    flags = ["-m", demo_model, "--device", "virtual", "--vram-budget", "7MiB", "-b", "16"]
    plan = json.loads(hotset("plan", "-c", "64", "--json", *flags).stdout)
    assert 0 < plan["totals"]["vram"] <= 7 << 20
    assert any(0 < layer["n_hot"] <= layer["n_units"] for layer in plan["layers"])
    steps = hotset("plan", "-c", "64", "--dump", *flags).stdout.decode()
    assert "device  " in steps and "Signal(" in steps and "Wait(" in steps
    row = json.loads(hotset("bench", "-p", "16", "-n", "8", "-r", "1", "-o", "json", *flags).stdout)[0]
    assert row["device"] == "virtual" and 0 < row["vram_bytes"] <= 7 << 20 and row["gpu_active_share"] is not None


def test_units_that_change_places_change_no_text_and_are_counted(hotset, demo_model, tmp_path):
    prompt = "Once upon a time there was a little dog. " * 8
    texts, swaps = set(), {}
    for adapt in (True, False, None):
        with Model(vram_budget="7MiB", adapt=adapt, **SMALL) as model:
            texts.add(str(model.generate(prompt, max_tokens=40, temperature=0.0)))
            stats = model.stats()
            swaps[adapt] = stats.n_swaps
            assert stats.cold_share is not None and 0 < stats.cold_share < 1
    assert len(texts) == 1 and swaps[False] == 0 and swaps[True] > 0
    file = tmp_path / "live.npz"
    flags = ["-m", demo_model, "--device", "virtual", "--vram-budget", "7MiB", "-b", "16", "-c", "256", "--temp", "0",
             "-p", prompt]  # fmt: skip
    out = json.loads(hotset("run", "-n", "16", "--json", "--adapt", "on", "--save-stats", file, *flags).stdout)
    live = Statistics.load(file)
    assert out["n_swaps"] > 0 and 0 < out["cold_share"] < 1
    assert live.n_tokens == out["timings"]["n_prompt"] + out["timings"]["n_generated"] - 1
    counts = np.stack([layer.counts for layer in live.layers])
    assert counts.sum() / counts.size / live.n_tokens == pytest.approx(out["active_share"], abs=1e-9)
    refused = hotset("run", "-n", "1", "--adapt", "off", "--save-stats", file, *flags)
    assert refused.returncode == 2 and b"--save-stats" in refused.stderr


def test_what_does_not_fit_is_refused(hotset, demo_model):
    with pytest.raises(ValueError, match="vram budget"):
        Model(device="virtual", vram_budget=1000)
    with pytest.raises(OutOfMemoryError, match="kv_place"):
        Model(device="virtual", vram_budget="4MiB", n_ctx=256, n_batch=16, kv_place="device")
    out = hotset("run", "-m", demo_model, "--device", "virtual", "-ngl", "all", "--vram-budget", "4MiB", "-b", "16", "-c",
                 "256", "-p", "x")  # fmt: skip
    assert out.returncode == 1 and b"-ngl all" in out.stderr and not out.stdout


@pytest.mark.parametrize("predictor", ["bit_planes:2", "bit_planes:1:0"])
def test_predicted_tokens_are_those_of_the_host_and_memory_is_as_planned(hotset, demo_model, predictor):
    how = {"mode": "predict", "predictor": predictor}
    with Model(n_ctx=256, n_batch=16, **how) as host, Model(vram_budget="6MiB", **SMALL, **how) as split:
        ids = host.tokenize("The little dog ran")
        assert np.array_equal(split.logits(ids), host.logits(ids))
        assert split.stats().mode == "predict" and split.stats().device_bytes <= 6 << 20
        taken = split.stats().device_bytes
    flags = ["-m", demo_model, "--device", "virtual", "--vram-budget", "6MiB", "-b", "16", "--mode", "predict",
             "--predictor", predictor]  # fmt: skip
    plan = json.loads(hotset("plan", "-c", "256", "--json", *flags).stdout)
    assert plan["mode"] == "predict" and 0 < plan["totals"]["vram"] <= 6 << 20
    assert plan["totals"]["vram"] == pytest.approx(taken, rel=0.05)  # other threads and rates, another placement
    assert sum(part["bytes"] for part in plan["components"] if part["name"] == "predictor") > 0
    steps = hotset("plan", "-c", "256", "--dump", *flags).stdout.decode()
    assert "Predict(" in steps and "candidates" in steps
    text = json.loads(hotset("kld", "--json", "-f", __file__, "-c", "64", "--chunks", "2", *flags).stdout)
    assert text["device"] == "virtual" and 0 <= text["mean_kld"] < 0.5 and text["over_selection"] >= 1


@pytest.mark.parametrize("budget", ["3MiB", None])
def test_a_profile_counts_what_the_host_counts(hotset, demo_model, tmp_path, budget):
    neuron_major = tmp_path / "rows.gguf"
    assert hotset("quantize", str(demo_model), str(neuron_major), "q8_0").returncode == 0
    text = "Once upon a time there was a little girl who lived near the sea. " * 12
    with Model(neuron_major) as model:
        host = profile(model, [text, text[::-1]], n_ctx=64, n_batch=32, n_samples=10)
        split = profile(model, [text, text[::-1]], n_ctx=64, n_batch=32, n_samples=10, device="virtual",
                        vram_budget=budget)  # fmt: skip
    assert split.n_tokens == host.n_tokens > 300
    for got, expected in zip(split.layers, host.layers, strict=True):
        assert np.array_equal(got.counts, expected.counts) and np.array_equal(got.mass, expected.mass)
        assert got.overlap == expected.overlap and got.threshold == expected.threshold
        assert np.array_equal(got.input, expected.input) and np.array_equal(got.mask, expected.mask)
    (tmp_path / "t.txt").write_text(text)
    flags = ["-m", str(neuron_major), "-f", str(tmp_path / "t.txt"), "-c", "64"]
    for device in ("cpu", "virtual"):
        output = str(tmp_path / f"{device}.npz")
        assert main(["profile", *flags, "-o", output, "--device", device, "--vram-budget", "64MiB"]) == 0
    on_host, on_both = (Statistics.load(tmp_path / f"{device}.npz") for device in ("cpu", "virtual"))
    for got, expected in zip(on_both.layers, on_host.layers, strict=True):
        assert np.array_equal(got.counts, expected.counts) and np.array_equal(got.mass, expected.mass)
