"""PowerInfer's files from outside: every command takes one, `hotset convert` makes a GGUF file and a sidecar of it.

None can be had here, so one is written byte by byte (docs/FORMATS.md, "PowerInfer files") from the packaged model,
with a predictor that is known to be right: fc2 max(fc1 x, 0) with fc1 = (W, -W) and fc2 = (G, -G) is G W x. With W the
weights of the FFN's norm as a diagonal and G the gate, that is the gate's products, but for the norm's positive factor.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from conftest import assert_one_error_line
from hotset import Model, UnsupportedModelError
from hotset.convert import convert
from hotset.convert import main as convert_main
from hotset.offline.gguf_parts import F32, STRING, U32, RawTensor, raw_value, read_parts
from hotset.offline.sidecar import Sidecar

TEXT = "Once upon a time there was a little girl who lived near the sea. " * 12
IDS = "1,5,9,40,80,3,200,17"
Q8_0, F32_VALUE = 8, 6


def write_powerinfer(path, keys: dict, tensors: dict[str, RawTensor]) -> None:
    out = bytearray(b"PWRI" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for name, value in keys.items():
        out += struct.pack("<Q", len(name.encode())) + name.encode() + struct.pack("<I", value.kind) + value.data
    offset = 0
    for name, tensor in tensors.items():
        out += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.kind, offset)
        offset += -(-len(tensor.data) // 32) * 32
    for tensor in tensors.values():
        out += b"\0" * (-len(out) % 32) + tensor.data
    path.write_bytes(out)


def dequantized(tensor: RawTensor) -> np.ndarray:
    assert tensor.kind == Q8_0
    blocks = np.frombuffer(tensor.data, np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    return (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).reshape(tensor.shape[1], tensor.shape[0])


def matrix(values: np.ndarray) -> RawTensor:
    return RawTensor(values.shape[::-1], F32, values.astype("<f4").tobytes())


@pytest.fixture(scope="module")
def powerinfer(demo_model, tmp_path_factory):
    keys, tensors = read_parts(demo_model)
    left_out = ("llama.hidden_activation", "hotset.layout", "general.alignment")
    keys = {name: value for name, value in keys.items() if name not in left_out}
    keys["powerinfer.sparse_threshold"] = raw_value(F32_VALUE, 0.0)
    for layer in range(keys["llama.block_count"].decoded()):
        norm = np.diag(tensors[f"blk.{layer}.ffn_norm.weight"].vector())
        gate = dequantized(tensors[f"blk.{layer}.ffn_gate.weight"])
        tensors[f"blk.{layer}.fc1.weight"] = matrix(np.vstack([norm, -norm]))
        tensors[f"blk.{layer}.fc2.weight"] = matrix(np.hstack([gate, -gate]))
    path = tmp_path_factory.mktemp("powerinfer") / "relu.powerinfer.gguf"
    write_powerinfer(path, keys, tensors)
    return path


def test_every_command_takes_the_file(hotset, powerinfer, demo_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def output(model, *words) -> bytes:
        result = hotset(*words, "-m", str(model))
        assert result.returncode == 0, result.stderr
        return result.stdout

    run = ("run", "-p", "Once upon", "-n", "12", "--temp", "0")
    assert output(powerinfer, *run) == output(demo_model, *run)
    for model in (powerinfer, demo_model):
        output(model, "logits", "--tokens", IDS, "-o", str(tmp_path / f"{model.stem}.npy"))
    assert np.array_equal(np.load(tmp_path / f"{powerinfer.stem}.npy"), np.load(tmp_path / f"{demo_model.stem}.npy"))
    perplexity = ("perplexity", "-f", str(text), "-c", "64")
    assert output(powerinfer, *perplexity).splitlines()[-1] == output(demo_model, *perplexity).splitlines()[-1]
    inspected = output(powerinfer, "inspect")
    assert b"a PowerInfer file with a predictor" in inspected and b"activation relu" in inspected
    assert json.loads(output(powerinfer, "plan", "--json"))["layers"]
    assert json.loads(output(powerinfer, "bench", "-p", "8", "-n", "4", "-r", "1", "-o", "json"))[0]["mode"] == "exact"


def test_its_predictor_proposes_the_active_units(hotset, powerinfer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    result = hotset("kld", "-m", str(powerinfer), "-f", str(text), "-c", "64", "--mode", "predict", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["mean_kld"] < 1e-3 and figures["same_top"] > 0.98
    with Model(powerinfer, mode="predict") as model, Model(powerinfer, mode="exact") as exact:
        assert model.stats().predictor == "residual_mlp"
        tokens = exact.tokenize(TEXT)[:64]
        predicted, full = model.logits(tokens), exact.logits(tokens)
        assert np.abs(predicted - full).max() < 0.3  # a unit near 0 may be on the other side of it
        assert 0 < np.mean(predicted.argmax(1) == full.argmax(1))


def test_convert_gives_a_model_and_a_sidecar_that_places_may_join(powerinfer, demo_model, tmp_path, capsys):
    out = tmp_path / "model.gguf"
    report = convert(powerinfer, out, log=print)
    sidecar = tmp_path / "model.hotset.gguf"
    assert report.n_bytes == out.stat().st_size and str(sidecar) in capsys.readouterr().out
    with Model(powerinfer, mode="predict") as before, Model(out, mode="predict") as after, Model(demo_model) as plain:
        assert before.fingerprint == after.fingerprint == plain.fingerprint
        tokens = plain.tokenize(TEXT)[:40]
        expected = before.logits(tokens)
        assert np.array_equal(after.logits(tokens), expected)
        fingerprint = plain.fingerprint
    with Model(out) as exact, Model(demo_model) as plain:
        assert np.array_equal(exact.logits(tokens), plain.logits(tokens))
    stored = Sidecar.load(sidecar, fingerprint)  # an order of units comes in, as `hotset place` does it
    random = np.random.default_rng(5)
    stored.set_frequencies([random.random(len(units)) for units in stored.unit_of_slot])
    stored.save(sidecar)
    with Model(out, mode="predict") as reordered:
        assert np.array_equal(reordered.logits(tokens), expected)


def test_what_convert_refuses(powerinfer, demo_model, tmp_path, capsys):
    def fails(*words: str, code: int = 1) -> str:
        from argparse import ArgumentParser

        from hotset.convert import add_arguments

        parser = ArgumentParser()
        add_arguments(parser)
        assert convert_main(parser.parse_args([*words])) == code
        return capsys.readouterr().err

    out = tmp_path / "out.gguf"
    assert "hotset quantize" in fails(str(powerinfer), "-o", str(out), "--type", "q4_0", code=2)
    assert "a PowerInfer file" in fails(str(demo_model), "-o", str(out))
    (tmp_path / "out.hotset.gguf").write_bytes(b"someone's")
    assert "--force" in fails(str(powerinfer), "-o", str(out))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(powerinfer.read_bytes()[:-1])
    assert "truncated" in fails(str(cut), "-o", str(out), "--force")
    assert not out.exists() and (tmp_path / "out.hotset.gguf").read_bytes() == b"someone's"
    (tmp_path / "x.gguf").write_bytes(powerinfer.read_bytes())
    assert "another file" in fails(str(tmp_path / "x.gguf"), "-o", str(tmp_path / "x.gguf"), "--force", code=2)


def test_a_split_file_is_a_note_beside_the_model_and_no_model(hotset, powerinfer, tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(powerinfer.read_bytes())
    split = tmp_path / "m.gguf.generated.gpuidx"
    keys = {
        "general.architecture": raw_value(STRING, "generic.gpu_index"),
        "generic.gpu_index.block_count": raw_value(U32, 1),
    }
    vectors = (("gpu_idx", np.zeros(64, np.int32)), ("gpu_bucket", np.arange(4, dtype=np.int32)))
    indices = {f"blk.0.{name}": RawTensor.of(values) for name, values in vectors}
    write_powerinfer(split, keys, indices)
    for content in (split.read_bytes(), split.read_bytes()[:40], b""):
        split.write_bytes(content)
        result = hotset("run", "-m", str(model), "-p", "Once", "-n", "1", "--temp", "0")
        assert result.returncode == 0 and b'gpuidx" is not read' in result.stderr
    write_powerinfer(split, keys, indices)
    refused = hotset("run", "-m", str(split), "-p", "Once")
    assert_one_error_line(refused, 1)
    assert b"name the model, beside which it may lie" in refused.stderr
    with pytest.raises(UnsupportedModelError, match="gpuidx"):
        Model(split)
