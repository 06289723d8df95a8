"""Tests of hotset.convert with bad input: one clear error and nothing left behind; and of its surroundings."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import types
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

REPO = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("hotset") is None:  # not installed: converting needs no native module
    sys.path.insert(0, str(REPO / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hf_checkpoint import (  # noqa: E402
    ARCEE,
    BAMBOO,
    BASE,
    FALCON,
    GEMMA2,
    GEMMA3,
    LLAMA3_SCALING,
    NEMOTRON,
    OPT,
    QWEN2,
    random_weights,
    safetensors_bytes,
    shaped,
    stored,
    with_header,
    write_checkpoint,
)

from hotset.convert import add_arguments, convert, main  # noqa: E402
from hotset.errors import Error, ModelFormatError, UnsupportedModelError  # noqa: E402


def refuse(source: Path | str, out: Path, kind: type[Exception], match: str, **options: Any) -> None:
    """Expects an error of this kind that leaves the output's folder as it was."""
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(kind, match=match) as caught:
        convert(source, out, **options)
    text = str(caught.value)
    assert text.startswith("[") and ": expected " in text and ", got " in text and "; " in text and "\n" not in text
    assert sorted(path.name for path in out.parent.iterdir()) == before


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "hf", BASE, random_weights(BASE, seed=17))


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


BROKEN_SAFETENSORS = {
    "empty": (b"", "file size"),
    "seven bytes": (b"\0" * 7, "file size"),
    "no header": (struct.pack("<Q", 50) + b"{}", "header length"),
    "huge header": (struct.pack("<Q", 1 << 62) + b"{}", "header length"),
    "truncated header": (struct.pack("<Q", 4) + b'{"a"', "valid JSON"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), "valid JSON"),
    "deep nesting": (with_header(b"[" * 100000), "valid JSON"),
    "not an object": (with_header([1]), "JSON object"),
    "name twice": (with_header(b'{"a": 1, "a": 2}'), "twice"),
    "entry is no object": (with_header({"a": 3}), "data_offsets"),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "data_offsets"),
    "offsets beyond the end": (with_header({"a": entry(shape=[4], data_offsets=[0, 16])}, b"\0" * 8), "bytes of data"),
    "offsets reversed": (with_header({"a": entry(data_offsets=[8, 0])}, b"\0" * 8), "begin, end"),
    "offsets negative": (with_header({"a": entry(data_offsets=[-8, 0])}, b"\0" * 8), "begin, end"),
    "offsets true": (with_header({"a": entry(shape=[], data_offsets=[True, 5])}, b"\0" * 8), "begin, end"),
    "offsets as float": (with_header({"a": entry(data_offsets=[0, 8.0])}, b"\0" * 8), "begin, end"),
    "size differs": (with_header({"a": entry(shape=[3])}, b"\0" * 8), "12 bytes"),
    "shape overflows": (with_header({"a": entry(shape=[1 << 40, 1 << 40])}, b"\0" * 8), "size"),
    "shape negative": (with_header({"a": entry(shape=[-2])}, b"\0" * 8), "shape"),
    "too many dimensions": (with_header({"a": entry(shape=[1] * 999)}, b"\0" * 8), "shape"),
    "overlap": (with_header({"a": entry(), "b": entry(data_offsets=[4, 12])}, b"\0" * 12), "overlap"),
    "hole": (with_header({"a": entry(data_offsets=[4, 12])}, b"\0" * 12), "hole"),
    "bytes after the end": (with_header({"a": entry()}, b"\0" * 12), "end of data"),
    "unknown dtype": (with_header({"a": entry(dtype="Q9")}, b"\0" * 8), "dtype"),
    "dtype is a list": (with_header({"a": entry(dtype=[])}, b"\0" * 8), "dtype"),
}


@pytest.mark.parametrize("case", BROKEN_SAFETENSORS)
def test_broken_safetensors(good: Path, tmp_path: Path, case: str) -> None:
    data, match = BROKEN_SAFETENSORS[case]
    (good / "model.safetensors").write_bytes(data)
    refuse(good, tmp_path / "m.gguf", ModelFormatError, match)


def test_truncated_safetensors(good: Path, tmp_path: Path) -> None:
    data = (good / "model.safetensors").read_bytes()
    seed = 18
    print("seed", seed)
    for length in np.random.default_rng(seed).integers(0, len(data), 40):
        (good / "model.safetensors").write_bytes(data[:length])
        refuse(good, tmp_path / "m.gguf", ModelFormatError, "expected")


def change_weights(folder: Path, **changes: Any) -> None:
    """Rewrites the checkpoint: name -> (dtype, shape, data), or None to drop a tensor."""
    weights = random_weights(BASE, seed=19)
    tensors = {name: stored(value, "F32") for name, value in weights.items()}
    tensors.update(changes)
    kept = {name: value for name, value in tensors.items() if value is not None}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(kept))


@pytest.mark.parametrize(
    "name, value, kind, match",
    [
        ("model.norm.weight", None, ModelFormatError, "no such tensor"),
        ("lm_head.weight", None, ModelFormatError, "no such tensor"),
        ("model.norm.weight", ("F32", (63,), b"\0" * 252), ModelFormatError, r"\(64,\), got \(63,\)"),
        ("model.norm.weight", ("I64", (64,), b"\0" * 512), UnsupportedModelError, "I64"),
        ("model.norm.weight", ("F8_E4M3", (64,), b"\0" * 64), UnsupportedModelError, "F8_E4M3"),
        ("model.norm.weight", ("F32", (64,), b"\xff" * 256), ModelFormatError, "NaN"),
        ("model.layers.0.self_attn.q_proj.bias", ("F32", (64,), b"\0" * 256), UnsupportedModelError, "q_proj.bias"),
        ("model.layers.7.mlp.up_proj.weight", ("F32", (1,), b"\0" * 4), UnsupportedModelError, "layers.7"),
    ],
)
def test_wrong_tensors(good: Path, tmp_path: Path, name: str, value: Any, kind: type[Exception], match: str) -> None:
    change_weights(good, **{name: value})
    refuse(good, tmp_path / "m.gguf", kind, match)


def test_value_too_large_for_f16(good: Path, tmp_path: Path) -> None:
    large = np.full((64, 96), 1e6, dtype="f4")
    change_weights(good, **{"model.layers.1.mlp.down_proj.weight": stored(large, "F32")})
    refuse(good, tmp_path / "m.gguf", ModelFormatError, "bf16 or f32", dtype="f16")
    convert(good, tmp_path / "m.gguf", dtype="bf16")


ODD_VALUES = [None, True, 0, -1, 1, 3, 7.5, 1e-300, 1e300, 1 << 31, 1 << 70, "x", "silu", [], [1], {}, {"type": "x"}]
CONFIG_ERRORS = [
    *(({name: None}, ModelFormatError, f"{name}: .*no such key") for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "rms_norm_eps")),
    ({"hidden_size": "64"}, ModelFormatError, "hidden_size"),
    ({"hidden_size": -64}, ModelFormatError, "hidden_size"),
    ({"hidden_size": 1 << 40}, ModelFormatError, "hidden_size"),
    ({"num_attention_heads": True}, ModelFormatError, "num_attention_heads"),
    ({"num_attention_heads": 5}, ModelFormatError, "num_key_value_heads|divisor"),
    ({"num_key_value_heads": 3}, ModelFormatError, "divisor"),
    ({"num_hidden_layers": 2000000000}, ModelFormatError, "layers.2"),
    ({"head_dim": 17}, ModelFormatError, "head_dim"),
    ({"rms_norm_eps": float("nan")}, ModelFormatError, "rms_norm_eps"),
    ({"rope_theta": 0}, ModelFormatError, "rope_theta"),
    ({"rope_theta": 10**400}, ModelFormatError, "rope_theta"),
    ({"vocab_size": 281}, ModelFormatError, "embed_tokens"),
    ({"tie_word_embeddings": "yes"}, ModelFormatError, "tie_word"),
    ({"hidden_act": "gelu_fast"}, UnsupportedModelError, "gelu_fast"),
    ({"hidden_act": "fatrelu"}, ModelFormatError, "hidden_act_param"),
    ({"hidden_act": "fatrelu", "hidden_act_param": -0.1}, ModelFormatError, "hidden_act_param"),
    ({"attention_bias": True}, ModelFormatError, "q_proj.bias"),
    ({"mlp_bias": True}, ModelFormatError, "gate_proj.bias"),
    ({"mlp_bias": "no"}, ModelFormatError, "mlp_bias"),
    ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, UnsupportedModelError,
     "partial_rotary_factor"),
    ({"architectures": ["Qwen2MoeForCausalLM"]}, UnsupportedModelError, "Qwen2MoeForCausalLM"),
    ({"architectures": None, "model_type": "gpt2"}, UnsupportedModelError, "gpt2"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, ModelFormatError, "sliding_window"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": "64"}, ModelFormatError, "sliding_window"),
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "gptq"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, UnsupportedModelError, "longrope"),
    ({"rope_scaling": {"type": "yarn"}}, ModelFormatError, "factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, ModelFormatError, "factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, UnsupportedModelError, "mscale"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, UnsupportedModelError, "truncate"),
    ({"rope_scaling": {"type": "linear"}}, ModelFormatError, "factor"),
    ({"rope_scaling": {**LLAMA3_SCALING, "high_freq_factor": 1.0}}, ModelFormatError, "high_freq_factor"),
    ({"rope_scaling": 3}, ModelFormatError, "rope_scaling"),
]  # fmt: skip


FAMILY_ERRORS = [
    ({**ARCEE, "rope_scaling": {"rope_type": "dynamic", "factor": 20.0}}, UnsupportedModelError, "dynamic"),
    ({**ARCEE, "hidden_act": "tanh"}, UnsupportedModelError, "hidden_act"),
    ({**QWEN2, "use_sliding_window": "yes"}, ModelFormatError, "use_sliding_window"),
    ({**QWEN2, "use_sliding_window": True, "max_window_layers": "all"}, ModelFormatError, "max_window_layers"),
    ({**QWEN2, "use_sliding_window": True, "layer_types": ["full_attention"]}, ModelFormatError, "layer_types"),
    ({**GEMMA2, "layer_types": ["full_attention", "linear_attention"]}, ModelFormatError, "layer_types"),
    ({**GEMMA2, "use_bidirectional_attention": True}, UnsupportedModelError, "use_bidirectional_attention"),
    ({**GEMMA2, "query_pre_attn_scalar": 0}, ModelFormatError, "query_pre_attn_scalar"),
    ({**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     UnsupportedModelError, "sliding_attention"),
    ({**GEMMA3, "rope_parameters": {"full_attention": 3}}, ModelFormatError, "rope_parameters"),
    ({**BAMBOO, "hidden_act": "silu"}, UnsupportedModelError, "hidden_act"),
    ({**FALCON, "alibi": True}, UnsupportedModelError, "alibi"),
    ({**FALCON, "parallel_attn": False}, UnsupportedModelError, "parallel_attn"),
    ({**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3}, ModelFormatError, "divisor"),
    ({**ARCEE, "partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor"),
    ({**NEMOTRON, "norm_eps": None, "rms_norm_eps": 1e-5}, ModelFormatError, "norm_eps: .*no such key"),
    ({**NEMOTRON, "partial_rotary_factor": 0.2}, ModelFormatError, "even number of elements of a head of 16"),
    ({**NEMOTRON, "partial_rotary_factor": 1.5}, ModelFormatError, "partial_rotary_factor"),
    ({**NEMOTRON, "rope_parameters": {"partial_rotary_factor": 1e-9}}, ModelFormatError, "rope_parameters] partial"),
    ({**OPT, "do_layer_norm_before": 0}, ModelFormatError, "do_layer_norm_before: expected true or false, got 0"),
    ({**OPT, "do_layer_norm_before": False}, UnsupportedModelError, r"those of opt only, got .*final_layer_norm"),
    ({**OPT, "_remove_final_layer_norm": True}, UnsupportedModelError, "_remove_final_layer_norm: expected false"),
    ({**OPT, "layer_norm_elementwise_affine": False}, UnsupportedModelError, "layer_norm_elementwise_affine"),
    ({**OPT, "word_embed_proj_dim": 32}, ModelFormatError, r"embed_tokens.weight: expected \(280, 32\)"),
    ({**ARCEE, "word_embed_proj_dim": 32}, UnsupportedModelError, r"word_embed_proj_dim: expected hidden_size \(64\)"),
    ({**OPT, "activation_function": "gelu_fast"}, UnsupportedModelError, "activation_function"),
    ({**OPT, "enable_bias": 1}, ModelFormatError, "enable_bias"),
    ({**OPT, "enable_bias": False}, UnsupportedModelError, r"those of opt only, got .*\.bias"),
    ({**OPT, "max_position_embeddings": 130}, ModelFormatError, r"embed_positions.weight: expected \(132, 64\)"),
    ({**OPT, "ffn_dim": None, "intermediate_size": 96}, ModelFormatError, "ffn_dim"),
]  # fmt: skip

kFamilies = (ARCEE, NEMOTRON, OPT, QWEN2, GEMMA2, GEMMA3, BAMBOO, FALCON)


@pytest.mark.parametrize("changes, kind, match", FAMILY_ERRORS)
def test_config_errors_of_other_families(
    tmp_path: Path, changes: dict[str, Any], kind: type[Exception], match: str
) -> None:
    right = next(family for family in kFamilies if family["model_type"] == changes["model_type"])
    source = write_checkpoint(tmp_path / "hf", shaped(**right), random_weights(shaped(**right), seed=24))
    (source / "config.json").write_text(json.dumps(shaped(**changes)))
    refuse(source, tmp_path / "m.gguf", kind, match)


@pytest.mark.parametrize("changes, kind, match", CONFIG_ERRORS)
def test_config_errors(good: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], match: str) -> None:
    (good / "config.json").write_text(json.dumps(shaped(**changes)))
    refuse(good, tmp_path / "m.gguf", kind, match)


def test_broken_or_missing_config(good: Path, tmp_path: Path) -> None:
    for text, match in (("{", "valid JSON"), ("[]", "JSON object"), ("", "valid JSON"), ("9" * 9999, "config.json")):
        (good / "config.json").write_text(text)
        refuse(good, tmp_path / "m.gguf", ModelFormatError, match)
    (good / "config.json").unlink()
    refuse(good, tmp_path / "m.gguf", ModelFormatError, "config.json")


def test_pickle_only_is_refused(good: Path, tmp_path: Path) -> None:
    (good / "model.safetensors").rename(good / "pytorch_model.bin")
    refuse(good, tmp_path / "m.gguf", UnsupportedModelError, "never read")
    (good / "pytorch_model.bin").unlink()
    refuse(good, tmp_path / "m.gguf", ModelFormatError, "got none")


@pytest.mark.parametrize(
    "weight_map, match",
    [
        ({"model.norm.weight": "../hf/model.safetensors"}, "same folder"),
        ({"model.norm.weight": "/etc/passwd"}, "same folder"),
        ({"model.norm.weight": 3}, "same folder"),
        ({"model.norm.weight": "absent.safetensors"}, "readable file"),
        ({"nonsense": "part.safetensors"}, "present as the index says"),
        ({}, "weight_map"),
        (None, "weight_map"),
    ],
)
def test_broken_index(good: Path, tmp_path: Path, weight_map: Any, match: str) -> None:
    (good / "model.safetensors").rename(good / "part.safetensors")
    (good / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuse(good, tmp_path / "m.gguf", ModelFormatError, match)


def test_output_is_never_half_written(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"old")
    refuse(good, out, Error, "exists")
    refuse(good, tmp_path, Error, "exists")

    def stop(line: str) -> None:
        if line.startswith("[9/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(good, out, force=True, log=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]
    assert out.read_bytes() == b"old"
    convert(good, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    with pytest.raises(Error, match="existing folder"):
        convert(good, tmp_path / "none" / "m.gguf")


def test_wrong_arguments(good: Path, tmp_path: Path) -> None:
    refuse(good, tmp_path / "m.gguf", ValueError, "dtype", dtype="q9")
    refuse(good, tmp_path / "m.gguf", ValueError, "layout", layout="sideways")
    refuse(good, tmp_path / "m.gguf", ValueError, "metadata", metadata={"general.architecture": "x"})
    refuse(tmp_path / "absent", tmp_path / "m.gguf", Error, "owner/name")
    refuse(good / "config.json", tmp_path / "m.gguf", ModelFormatError, "checkpoint folder")


LLAMA3_FULL = shaped(rope_scaling=LLAMA3_SCALING, head_dim=16, sliding_window=None, num_local_experts=None)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.1}
kFullConfigs = [
    LLAMA3_FULL, shaped(**NEMOTRON, rope_scaling=LLAMA3_SCALING), shaped(**OPT), shaped(**FALCON),
    shaped(**QWEN2, use_sliding_window=True, max_window_layers=1, sliding_window=7, rope_scaling=YARN),
    shaped(**GEMMA3, rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_theta": 10000.0}}),
]  # fmt: skip


@pytest.mark.parametrize("full", kFullConfigs)
def test_config_with_odd_values_ends_in_an_error_or_a_file(tmp_path: Path, full: dict[str, Any]) -> None:
    seed = 22
    print("seed", seed)
    rng = np.random.default_rng(seed)
    source = write_checkpoint(tmp_path / "hf", full, random_weights(full, seed))
    n_refused = 0
    for _ in range(120):
        changed = json.loads(json.dumps(full))
        place = changed["rope_scaling"] if "rope_scaling" in changed and rng.random() < 0.4 else changed
        place[list(place)[rng.integers(len(place))]] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        (source / "config.json").write_text(json.dumps(changed))
        try:
            convert(source, tmp_path / "m.gguf", force=True)
        except (ModelFormatError, UnsupportedModelError):
            n_refused += 1
    assert 60 <= n_refused < 120


def test_without_the_gguf_package(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    refuse(good, tmp_path / "m.gguf", Error, r'run: pip install "hotset\[convert\]"')


def test_hub_repositories(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, **patterns: Any) -> str:
        asked.append(repo)
        assert "*.safetensors" in patterns["allow_patterns"] and "*.bin" not in patterns["allow_patterns"]
        if repo == "some/missing":
            raise OSError("404 Not Found\nfor url")
        return str(good)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    assert convert("some/tiny-model", tmp_path / "m.gguf").n_tensors == 21
    refuse("hf:some/missing", tmp_path / "n.gguf", Error, "404 Not Found; check the name")
    refuse("../some/tiny", tmp_path / "n.gguf", Error, "owner/name")
    assert asked == ["some/tiny-model", "some/missing"]


def test_command(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    arguments = [str(good), "-o", str(tmp_path / "m.gguf"), "--type", "Q4_0", "--layout", "gguf"]
    assert main(parser.parse_args([*arguments, "--metadata", "general.name=a=b"])) == 0
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.name"].contents() == "a=b"
    assert main(parser.parse_args(arguments)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("hotset: error: [convert] output: expected ")
