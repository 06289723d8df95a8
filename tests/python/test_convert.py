"""Tests of hotset.convert: whole conversions of tiny checkpoints against an independent forward pass.

The checkpoints are written byte by byte here. The oracle computes in Hugging Face's layout (half-split rotation,
down_proj as it is), so permutation, transposition, names and keys are all checked by the logits of the result.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

REPO = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("hotset") is None:  # not installed: converting needs no native module
    sys.path.insert(0, str(REPO / "python"))
sys.path[:0] = [str(Path(__file__).resolve().parent), str(REPO / "tools")]

from hf_checkpoint import (  # noqa: E402
    ARCEE,
    BASE,
    LLAMA3_SCALING,
    NEMOTRON,
    OPT,
    hugging_face_logits,
    nmse,
    random_weights,
    sentencepiece_bytes,
    shaped,
    write_checkpoint,
)
from reference_model import ReferenceModel, token_nll  # noqa: E402

from hotset.convert import convert  # noqa: E402

SHARED = Path(os.environ.get("HOTSET_SHARED", REPO.parent / "shared")) / "data"
PACKAGED = REPO / "python" / "hotset" / "data" / "demo-relu-q8_0.gguf"
TOKENS = [1, 5, 9, 3, 44, 2, 17, 9, 260, 31, 8, 8, 7]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared test data")


def convert_quietly(source: Path | str, out: Path, **options: Any) -> ReferenceModel:
    convert(source, out, **options)
    return ReferenceModel(out)


# --- whole conversions ------------------------------------------------------------------------------------------------

SHAPES = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "tied by silence": {"tie_word_embeddings": None},
    "all heads": {"num_key_value_heads": 4},
    "no kv key": {"num_key_value_heads": None},
    "one kv head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 24},
    "odd n_ff": {"intermediate_size": 77},
    "odd n_embd": {"hidden_size": 60, "head_dim": 10, "num_attention_heads": 6, "num_key_value_heads": 3},
    "relu": {"hidden_act": "relu"},
    "llama3": {"rope_scaling": LLAMA3_SCALING, "head_dim": 32, "rope_theta": 500000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "12 layers": {"num_hidden_layers": 12},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "relu2": {"hidden_act": "relu2"},
    "arcee": {**ARCEE, "tie_word_embeddings": True, "intermediate_size": 77},
    "arcee llama3 biases": {**ARCEE, "attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3_SCALING},
    "nemotron": NEMOTRON,
    "nemotron, share by default": {**NEMOTRON, "partial_rotary_factor": None},
    "nemotron biases": {**NEMOTRON, "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 1.0},
    "nemotron odd": {**NEMOTRON, "hidden_size": 60, "head_dim": 14, "num_attention_heads": 6, "num_key_value_heads": 3,
                     "partial_rotary_factor": 0.44, "tie_word_embeddings": True},
    "nemotron llama3": {**NEMOTRON, "rope_scaling": LLAMA3_SCALING, "head_dim": 32},
    "nemotron linear": {**NEMOTRON, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "opt": OPT,
    "opt untied without biases": {**OPT, "enable_bias": False, "tie_word_embeddings": False, "ffn_dim": 77},
    "opt odd heads": {**OPT, "hidden_size": 60, "word_embed_proj_dim": None},
}  # fmt: skip


@pytest.mark.parametrize("layout", ["neuron", "gguf"])
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_logits_equal_the_checkpoint(tmp_path: Path, shape: str, layout: str) -> None:
    config = shaped(**SHAPES[shape])
    weights = random_weights(config, seed=11)
    source = write_checkpoint(tmp_path / "hf", config, weights)
    model = convert_quietly(source, tmp_path / "m.gguf", dtype="f32", layout=layout)
    # Weights are stored unchanged; eps and rope_freqs are rounded to float32: (2^-24)^2, grown by position and layers.
    assert nmse(model.logits(TOKENS), hugging_face_logits(config, weights, TOKENS)) <= 1e-12
    assert ("output.weight" in model.tensors) == ("lm_head.weight" in weights)
    assert ("rope_freqs.weight" in model.tensors) == ("llama3" in shape)
    assert ("blk.0.ffn_down_t.weight" in model.tensors) == (layout == "neuron")
    assert ("blk.0.ffn_down.weight" in model.tensors) == (layout == "gguf")
    assert model.keys.get("hotset.layout") == ("neuron" if layout == "neuron" else None)


@pytest.mark.parametrize("source_dtype", ["F64", "F32", "F16", "BF16"])
def test_source_dtypes_and_shards(tmp_path: Path, source_dtype: str) -> None:
    weights = random_weights(BASE, seed=12)
    weights = {name: (value.view("u4") & 0xFFFF0000).view("f4") for name, value in weights.items()}  # exact in BF16
    source = write_checkpoint(tmp_path / "hf", BASE, weights, source_dtype, n_files=3)
    model = convert_quietly(source, tmp_path / "m.gguf", dtype="f32")
    assert nmse(model.logits(TOKENS), hugging_face_logits(BASE, weights, TOKENS)) <= 1e-12


@pytest.mark.parametrize("layout", ["neuron", "gguf"])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_types_store_each_weight_within_their_rounding(tmp_path: Path, dtype: str, layout: str) -> None:
    config = shaped(hidden_size=64, intermediate_size=96)
    weights = random_weights(config, seed=13)
    source = write_checkpoint(tmp_path / "hf", config, weights)
    report = convert(source, tmp_path / "m.gguf", dtype=dtype, layout=layout)
    model = ReferenceModel(tmp_path / "m.gguf")
    assert report.fallbacks == []
    assert report.n_bytes == (tmp_path / "m.gguf").stat().st_size
    assert report.n_params == sum(value.size for value in weights.values())
    down = weights["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    name, expected = ("down_t", down.T) if layout == "neuron" else ("down", down)
    got = model.tensors[f"blk.1.ffn_{name}.weight"]
    blocks = np.abs(expected).reshape(expected.shape[0], -1, 32).max(axis=-1).repeat(32, axis=-1)
    # Half a step of the type: relative 2^-11 and 2^-8; of the block's largest 0.5/127, 1/8 (one end is cut), plus the
    # f16 rounding of the scale.
    step = {"f16": np.abs(expected) * 2.0**-11, "bf16": np.abs(expected) * 2.0**-8,
            "q8_0": blocks * (0.5 / 127 + 2.0**-10), "q4_0": blocks * (1.0 / 8 + 2.0**-10)}[dtype]  # fmt: skip
    assert np.all(np.abs(got - expected) <= step + 1e-9)
    assert dtype == "f16" or np.any(got != expected)
    assert model.types[f"blk.1.ffn_{name}.weight"] == dtype.upper()
    assert {kind for tensor, kind in model.types.items() if "norm" in tensor} == {"F32"}
    assert model.keys["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[dtype]


def test_rows_without_whole_blocks_fall_back_to_f16(tmp_path: Path) -> None:
    config = shaped(intermediate_size=72)
    source = write_checkpoint(tmp_path / "hf", config, random_weights(config, seed=14))
    lines: list[str] = []
    report = convert(source, tmp_path / "m.gguf", dtype="q8_0", layout="gguf", log=lines.append)
    assert report.fallbacks == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert sum("do not fill blocks of 32" in line for line in lines) == 2
    types = ReferenceModel(tmp_path / "m.gguf").types
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"
    assert convert(source, tmp_path / "n.gguf", dtype="q8_0", layout="neuron").fallbacks == []


def test_keys(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", shaped(head_dim=24), random_weights(shaped(head_dim=24), seed=15))
    keys = convert_quietly(source, tmp_path / "m.gguf", metadata={"general.license": "MIT"}).keys
    expected = {
        "general.name": "tiny", "general.license": "MIT", "general.quantization_version": 2, "general.alignment": 64,
        "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 24, "llama.attention.value_length": 24, "llama.rope.dimension_count": 24,
        "llama.rope.freq_base": 10000.0, "llama.vocab_size": 280, "llama.hidden_activation": "silu",
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }  # fmt: skip
    assert {name: keys.get(name) for name in expected} == expected
    assert keys["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    offsets = [tensor.data_offset for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors]
    assert all(offset % 64 == 0 for offset in offsets)


def test_keys_and_types_of_other_families(tmp_path: Path) -> None:
    expected = {
        "arcee": {"attention.layer_norm_rms_epsilon": np.float32(1e-5), "rope.dimension_count": 16,
                  "rope.freq_base": 10000.0, "hidden_activation": "relu2"},
        "nemotron": {"attention.layer_norm_epsilon": np.float32(1e-5), "rope.dimension_count": 8,
                     "rope.freq_base": 10000.0, "hidden_activation": "relu2"},
        "opt": {"attention.layer_norm_epsilon": np.float32(1e-5), "context_length": 128, "feed_forward_length": 96,
                "attention.head_count_kv": 4, "hidden_activation": "relu"},
    }  # fmt: skip
    for changes in ARCEE, NEMOTRON, OPT:
        config, arch = shaped(**changes), changes["model_type"]
        source = write_checkpoint(tmp_path / arch, config, random_weights(config, seed=25))
        model = convert_quietly(source, tmp_path / f"{arch}.gguf", dtype="q8_0")
        assert model.keys["general.architecture"] == arch
        got = {
            name.removeprefix(arch + "."): value for name, value in model.keys.items() if name.startswith(arch + ".")
        }
        assert {name: got.get(name) for name in expected[arch]} == expected[arch]
        rms, layer, rope = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"
        assert (rms in got, layer in got, rope in got) == (arch == "arcee", arch != "arcee", arch != "opt")
        assert "blk.0.ffn_gate.weight" not in model.tensors
        vectors = ("norm.weight", ".bias", "position_embd.weight")
        assert all(kind == ("F32" if name.endswith(vectors) else "Q8_0") for name, kind in model.types.items())
    table = random_weights(shaped(**OPT), seed=25)["model.decoder.embed_positions.weight"]
    assert np.array_equal(model.tensors["position_embd.weight"], table[2:].astype(np.float64))


def test_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "hf", BASE, random_weights(BASE, seed=16))
    convert(source, tmp_path / "a.gguf")
    monkeypatch.setattr("hotset.convert.gguf_file.kChunkElements", 1000)  # 15 rows at a time, or one
    convert(source, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# --- against other programs -------------------------------------------------------------------------------------------


def test_credits_travel_with_the_packaged_model() -> None:
    card = (REPO / "docs" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name in ("CREDITS-pratham-books.txt", "CREDITS-african-storybook.txt"):
        assert name in card
        assert len((PACKAGED.parent / name).read_text(encoding="utf-8").splitlines()) > 100


@pytest.mark.parametrize(
    "shape",
    ["relu", "llama3", "linear", "tied", "head_dim", "arcee llama3 biases", "nemotron odd", "nemotron llama3", "opt",
     "opt untied without biases"],
)  # fmt: skip
def test_transformers_computes_the_same(tmp_path: Path, shape: str) -> None:
    """Checkpoints as transformers saves them, with its spelling of config.json."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from make_goldens import make_network

    torch.manual_seed(20)
    network = make_network(shaped(**SHAPES[shape]))
    network.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(sentencepiece_bytes())
    model = convert_quietly(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    with torch.no_grad():
        expected = network(torch.tensor([TOKENS])).logits[0].double().numpy()
    # transformers computes in float32: relative errors of about 1e-6, squared.
    assert nmse(model.logits(TOKENS), expected) <= 1e-11


@needs_shared
def test_reference_agrees_with_golden_stories() -> None:
    folder = SHARED / "models" / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())
    model = ReferenceModel(folder / "stories260K-f32.gguf")
    greedy = golden["greedy_ids_from_bos"]
    logits = model.logits([1, *greedy])
    assert np.argmax(logits[:-1], axis=-1).tolist() == greedy
    assert nmse(logits[0], np.array(golden["logits_pos0"])) <= 1e-11  # printed with five decimals
    story = golden["story_nll"][0]
    assert token_nll(model.logits(story["ids"]), story["ids"]).sum() == pytest.approx(story["nll_sum"], rel=1e-6)


@needs_shared
def test_demo_model_is_what_the_converter_makes(tmp_path: Path) -> None:
    """The packaged file has the checkpoint's weights within Q8_0 rounding, and continues as its notes say."""
    source = SHARED / "models" / "demo-relu"
    exact = convert_quietly(source, tmp_path / "f32.gguf", dtype="f32", layout="gguf")
    tokens = exact.keys["tokenizer.ggml.tokens"]
    prompt = [1, *(tokens.index("\u2581" + word) for word in ("Once", "upon", "a", "time"))]
    text = "".join(tokens[token] for token in exact.greedy(prompt, 12)).replace("\u2581", " ")
    assert text.startswith(", there was a little girl named Lily.")
    packaged = ReferenceModel(PACKAGED)
    assert packaged.keys["general.name"] == "hotset demo-relu"
    assert packaged.keys["llama.hidden_activation"] == "relu" and packaged.keys["hotset.layout"] == "neuron"
    assert PACKAGED.stat().st_size <= 9_000_000
    again = convert_quietly(source, tmp_path / "q8.gguf", dtype="q8_0")
    assert again.tensors.keys() == packaged.tensors.keys()
    assert all(np.array_equal(again.tensors[name], packaged.tensors[name]) for name in again.tensors)
    assert nmse(packaged.logits(prompt), exact.logits(prompt)) <= 1e-3
