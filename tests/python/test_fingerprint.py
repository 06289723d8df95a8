"""The fingerprint of a model is what docs/FORMATS.md says, computed here anew from the file."""

from __future__ import annotations

import struct

import pytest

import hotset as package


def fnv1a_128(data: bytes) -> str:
    """The hash as its authors define it, on Python's integers."""
    value = 0x6C62272E07BB014262B821756295C58D
    for byte in data:
        value = (value ^ byte) * ((1 << 88) + 0x13B) % (1 << 128)
    return f"{value:032x}"


def described(path) -> bytes:
    """What is hashed of a model file."""
    from gguf import GGUFReader

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    reader = GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    arch = keys["general.architecture"]
    n_head = keys[f"{arch}.attention.head_count"]
    n_embd = keys[f"{arch}.embedding_length"]
    head_dim = keys.get(f"{arch}.attention.key_length", n_embd // n_head)
    sizes = [keys[f"{arch}.block_count"], n_embd, keys[f"{arch}.feed_forward_length"], n_head,
             keys.get(f"{arch}.attention.head_count_kv", n_head), head_dim,
             keys.get(f"{arch}.rope.dimension_count", head_dim), len(keys["tokenizer.ggml.tokens"])]  # fmt: skip
    out = text(arch) + text(keys[f"{arch}.hidden_activation"]) + struct.pack(f"<{len(sizes)}Q", *sizes)
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
        if tensor.tensor_type.name == "F32" and len(tensor.shape) == 1:
            data = tensor.data.tobytes()
            out += text(tensor.name) + struct.pack("<Q", len(data)) + data
    if "hotset.synth" in keys:
        out += text("hotset.synth") + text(keys["hotset.synth"])
    return out


def test_the_hash_is_the_published_one():
    assert fnv1a_128(b"") == "6c62272e07bb014262b821756295c58d"
    assert fnv1a_128(b"a") == "d228cb696f1a8caf78912b704e4a8964"


def test_of_the_packaged_model(demo_model, hotset):
    with package.Model() as model:
        assert model.fingerprint == fnv1a_128(described(demo_model))
    assert fnv1a_128(described(demo_model)).encode() in hotset("inspect").stdout


@pytest.mark.parametrize("arch", ["llama", "arcee", "nemotron"])
def test_of_made_up_models(hotset, tmp_path, arch):
    prints = set()
    shape = "n_layer=2,n_embd=64,n_ff=96,n_head=2,n_vocab=512,n_ctx=64"
    for seed, kind in (("1", "f32"), ("1", "q8_0"), ("2", "q8_0")):
        path = tmp_path / f"{seed}-{kind}.gguf"
        words = ["--arch", arch, "--shape", shape, "--seed", seed, "--type", kind, "-o", str(path)]
        assert hotset("synth", *words).returncode == 0
        with package.Model(path) as model:
            assert model.fingerprint == fnv1a_128(described(path))
            prints.add(model.fingerprint)
    assert len(prints) == 2
