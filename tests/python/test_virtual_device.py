"""A model split over the host and a pretend card through every way in: same tokens, memory as planned, errors in time."""

import json

import numpy as np
import pytest

from hotset import Model, OutOfMemoryError

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


def test_what_does_not_fit_is_refused(hotset, demo_model):
    with pytest.raises(ValueError, match="vram budget"):
        Model(device="virtual", vram_budget=1000)
    with pytest.raises(OutOfMemoryError, match="kv_place"):
        Model(device="virtual", vram_budget="4MiB", n_ctx=256, n_batch=16, kv_place="device")
    out = hotset("run", "-m", demo_model, "--device", "virtual", "-ngl", "all", "--vram-budget", "4MiB", "-b", "16", "-c",
                 "256", "-p", "x")  # fmt: skip
    assert out.returncode == 1 and b"-ngl all" in out.stderr and not out.stdout
    out = hotset("run", "-m", demo_model, "--device", "virtual", "--mode", "predict", "--predictor", "bit_planes:2", "-p", "x")
    assert out.returncode == 1 and b"mode predict" in out.stderr
