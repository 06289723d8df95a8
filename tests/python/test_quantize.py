"""`hotset quantize`: bytes and values against the package `gguf`, types against what llama.cpp chose, wrong input."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_error_line
from test_cli_pty import Terminal

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

EXACT = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"]
K_TYPES = ["q4_k_m", "q5_k_m", "q6_k"]
HIGH_BYTES = {  # of the 16-bit floats in a block
    "F16": [1], "BF16": [1], "Q8_0": [1], "Q4_0": [1], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209],
    "Q2_K": [81, 83], "Q3_K": [109], "IQ4_XS": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "IQ4_NL": [1],
    "MXFP4": [],
}  # fmt: skip
MATRICES = {
    "attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256),
    "ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512),
}  # fmt: skip
N_VOCAB = 300

# What llama-quantize (llama.cpp of July 2026) chose for the model of `model_file` with 16 layers: type of most
# matrices, of the head and of attn_v and ffn_down by layer, and general.file_type.
SENSITIVE = {0, 1, 4, 7, 10, 13, 14, 15}
CHOICES = {
    "q8_0": ("Q8_0", "Q8_0", "Q8_0", set(), set(), 7),
    "q4_0": ("Q4_0", "Q6_K", "Q4_0", set(), set(), 2),
    "q4_k_s": ("Q4_K", "Q6_K", "Q5_K", {0, 1, 2, 3}, {0, 1}, 14),
    "q4_k_m": ("Q4_K", "Q6_K", "Q6_K", SENSITIVE, SENSITIVE, 15),
    "q5_k_s": ("Q5_K", "Q6_K", "Q5_K", set(), set(), 16),
    "q5_k_m": ("Q5_K", "Q6_K", "Q6_K", SENSITIVE, SENSITIVE, 17),
    "q6_k": ("Q6_K", "Q6_K", "Q6_K", set(), set(), 18),
    "q2_k": ("Q2_K", "Q6_K", "Q2_K", set(), set(), 10),
    "q3_k_s": ("Q3_K", "Q6_K", "Q3_K", set(), set(), 11),
    "q3_k_m": ("Q3_K", "Q6_K", "Q5_K", {0, 1}, {0}, 12),
    "q3_k_l": ("Q3_K", "Q6_K", "Q3_K", set(), set(), 13),
    "q4_1": ("Q4_1", "Q6_K", "Q4_1", set(), set(), 3),
    "q5_0": ("Q5_0", "Q6_K", "Q5_0", set(), set(), 8),
    "q5_1": ("Q5_1", "Q6_K", "Q5_1", set(), set(), 9),
    "iq4_nl": ("IQ4_NL", "Q6_K", "Q5_K", set(), {0, 1}, 25),
    "iq4_xs": ("IQ4_XS", "Q6_K", "Q5_K", set(), {0, 1}, 30),
    "mxfp4": ("MXFP4", "Q8_0", "MXFP4", set(), set(), 38),  # ours: it stores all of a dense model as Q8_0
    "f16": ("F16", "F16", "F16", set(), set(), 1),
    "bf16": ("BF16", "BF16", "BF16", set(), set(), 32),
    "f32": ("F32", "F32", "F32", set(), set(), 0),
}


# Matrices that have another type than most in all other layers.
OTHERS = {
    "q2_k": {"attn_v": "Q3_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"},
    "q3_k_m": {"attn_v": "Q4_K", "attn_output": "Q4_K", "ffn_down": "Q4_K"},
    "q3_k_l": {"attn_v": "Q5_K", "attn_output": "Q5_K", "ffn_down": "Q5_K"},
}


def model_file(path: Path, n_layer: int = 2, tied: bool = False, extra: dict[str, np.ndarray] | None = None) -> Path:
    """Writes a random llama in float32, n_embd 256, n_ff 512, with byte tokens."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_block_count(n_layer)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(256)
    writer.add_rope_dimension_count(64)
    writer.add_string("llama.hidden_activation", "relu")
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    writer.add_token_list(tokens + [b"t%d" % i for i in range(N_VOCAB - len(tokens))])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns, dtype=np.float32)
        writer.add_tensor(name + ".weight", values.astype(np.float32))

    matrix("token_embd", N_VOCAB, 256)
    for layer in range(n_layer):
        for name, (rows, columns) in MATRICES.items():
            matrix(f"blk.{layer}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(256, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    if not tied:
        matrix("output", N_VOCAB, 256)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_file(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> Path:
    """Writes a file of nothing but tensors: name → (float32 values, or the bytes of rows, and their type)."""
    writer = gguf.GGUFWriter(path, "test")
    for name, (data, dtype) in tensors.items():
        raw = None if data.dtype == np.float32 else gguf.GGMLQuantizationType[dtype]
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sparse_file(path: Path, n_bytes: int) -> None:
    """Writes a file of two F16 matrices of n_bytes / 2 each, all zeros, which takes no room on the disk."""
    writer = gguf.GGUFWriter(path, "test")
    for name in ("blk.0.ffn_down.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor_info(name, (8192, n_bytes // 4 // 8192), np.dtype(np.float16), n_bytes // 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + n_bytes)  # the data begins at a multiple of 32


def read(path: Path) -> dict:
    """Tensors of a file by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values_of(tensor) -> np.ndarray:
    """The values of a tensor in float32, row by row."""
    return quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, int(tensor.shape[0]))


def field(path: Path, key: str):
    """A key's value, None when it is absent."""
    found = gguf.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A model of 16 layers in float32."""
    return model_file(tmp_path_factory.mktemp("quantize") / "f32.gguf", n_layer=16)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A model of 2 layers in float32."""
    return model_file(tmp_path_factory.mktemp("quantize") / "small.gguf")


@pytest.fixture
def quantize(hotset):
    """Runs the command and checks that it succeeds."""

    def call(source: Path, out: Path, dtype: str, *words: str) -> Path:
        result = hotset("quantize", str(source), str(out), dtype, *words)
        assert result.returncode == 0, result.stderr
        assert result.stdout == b""
        assert re.search(rb"bits per weight, [0-9.]+ s\n$", result.stderr)
        return out

    return call


def awkward_rows() -> np.ndarray:
    """Rows (n, 256) of many sizes, with ties, zeros, halves between steps, subnormal and large values."""
    random = np.random.default_rng(7)
    rows = [random.standard_normal((64, 256)) * 10.0 ** random.integers(-6, 3, (64, 1))]
    rows.append(random.integers(-254, 255, (32, 256)) / 2)  # ties in Q8_0 when the largest is 127
    rows.append(random.choice([-1.0, 1.0], (8, 256)))
    rows.append(np.zeros((2, 256)))
    rows.append(-np.zeros((2, 256)))
    rows.append(random.standard_normal((16, 256)) * 1e-7)
    rows.append(random.uniform(-65000, 65000, (16, 256)))
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("dtype", EXACT)
def test_encodes_as_the_gguf_package(quantize, tmp_path, dtype):
    rows = awkward_rows()
    source = tensors_file(tmp_path / "in.gguf", {"a.weight": (rows, "F32")})
    out = read(quantize(source, tmp_path / "out.gguf", dtype))["a.weight"]
    qtype = gguf.GGMLQuantizationType[dtype.upper()]
    assert out.tensor_type == qtype
    np.testing.assert_array_equal(out.data.view(np.uint8).reshape(len(rows), -1),
                                  quants.quantize(rows, qtype).view(np.uint8).reshape(len(rows), -1))  # fmt: skip


@pytest.mark.parametrize("dtype", HIGH_BYTES)
def test_decodes_as_the_gguf_package(quantize, tmp_path, dtype):
    """Random bytes; only the 16-bit floats are kept finite."""
    random = np.random.default_rng(8)
    qtype = gguf.GGMLQuantizationType[dtype]
    block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    data = random.integers(0, 256, (40, 512 // block * block_bytes), dtype=np.uint8)
    blocks = data.reshape(-1, block_bytes)
    for high_byte in HIGH_BYTES[dtype]:
        blocks[:, high_byte] &= 0xBB  # bit 2 of the exponent of either 16-bit format
    if dtype == "MXFP4":
        blocks[:, 0] &= 0x7F
    source = tensors_file(tmp_path / "in.gguf", {"a.weight": (data, dtype)})
    out = read(quantize(source, tmp_path / "out.gguf", "f32"))["a.weight"]
    expected = quants.dequantize(data, qtype)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(out.data.reshape(expected.shape).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", CHOICES)
def test_types_are_those_that_llama_cpp_chooses(quantize, source, tmp_path, dtype):
    base, head, special, v_layers, down_layers, file_type = CHOICES[dtype]
    other = OTHERS.get(dtype, {})
    out = quantize(source, tmp_path / "out.gguf", dtype.upper())
    expected = {"token_embd.weight": base, "output.weight": head, "output_norm.weight": "F32"}
    for layer in range(16):
        for name in MATRICES:
            stored = "ffn_down_t" if name == "ffn_down" else name
            layers = {"attn_v": v_layers, "ffn_down": down_layers}.get(name, set())
            expected[f"blk.{layer}.{stored}.weight"] = special if layer in layers else other.get(name, base)
        expected |= {f"blk.{layer}.{name}.weight": "F32" for name in ("attn_norm", "ffn_norm")}
    assert {name: tensor.tensor_type.name for name, tensor in read(out).items()} == expected
    assert field(out, "general.file_type") == file_type
    assert field(out, "hotset.layout") == "neuron"


def test_a_tied_head_takes_the_type_of_the_output(quantize, tmp_path):
    source = model_file(tmp_path / "in.gguf", tied=True)
    tensors = read(quantize(source, tmp_path / "out.gguf", "q4_0"))
    assert tensors["token_embd.weight"].tensor_type.name == "Q6_K"
    tensors = read(quantize(source, tmp_path / "pure.gguf", "q4_0", "--pure"))
    assert tensors["token_embd.weight"].tensor_type.name == "Q4_0"


@pytest.mark.parametrize("dtype", ["q4_0", "q4_k_m", "q8_0"])
def test_pure_is_one_type_throughout(quantize, small, tmp_path, dtype):
    tensors = read(quantize(small, tmp_path / "out.gguf", dtype, "--pure"))
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 2} == {dtype.upper()[:4]}


def test_the_down_projection_is_transposed_before_it_is_quantised(quantize, small, tmp_path):
    down = values_of(read(small)["blk.1.ffn_down.weight"])
    for dtype in ("q4_0", "q8_0"):
        tensor = read(quantize(small, tmp_path / "out.gguf", dtype))["blk.1.ffn_down_t.weight"]
        assert tuple(tensor.shape) == (256, 512)
        expected = quants.quantize(np.ascontiguousarray(down.T), gguf.GGMLQuantizationType[dtype.upper()])
        np.testing.assert_array_equal(tensor.data, expected)


def test_layouts_there_and_back_give_the_same_file(quantize, small, tmp_path):
    neuron = quantize(small, tmp_path / "neuron.gguf", "f32")
    assert "blk.0.ffn_down.weight" not in read(neuron)
    again = quantize(neuron, tmp_path / "again.gguf", "f32")
    assert again.read_bytes() == neuron.read_bytes()
    back = quantize(neuron, tmp_path / "back.gguf", "f32", "--layout", "gguf")
    direct = quantize(small, tmp_path / "direct.gguf", "f32", "--layout=gguf")
    assert back.read_bytes() == direct.read_bytes()
    assert field(back, "hotset.layout") is None
    for name, tensor in read(small).items():
        np.testing.assert_array_equal(read(back)[name].data, tensor.data)


def test_a_block_type_is_turned_in_columns_of_blocks(quantize, small, tmp_path):
    for dtype in ("q4_k_m", "q4_0", "bf16"):
        standard = quantize(small, tmp_path / "standard.gguf", dtype, "--layout", "gguf")
        expected = values_of(read(standard)["blk.0.ffn_down.weight"]).T
        turned = quantize(standard, tmp_path / "turned.gguf", "f32")
        np.testing.assert_array_equal(values_of(read(turned)["blk.0.ffn_down_t.weight"]), expected)


def test_metadata_is_copied(quantize, small, tmp_path):
    out = quantize(small, tmp_path / "out.gguf", "q4_k_m")
    before, after = gguf.GGUFReader(small), gguf.GGUFReader(out)
    changed = {"general.file_type", "hotset.layout", "general.quantization_version"}
    for key, value in before.fields.items():
        if not key.startswith("GGUF.") and key not in changed:
            assert after.fields[key].contents() == value.contents()
            assert after.fields[key].types == value.types
    assert set(after.fields) - set(before.fields) == {"hotset.layout", "general.quantization_version"}
    assert after.alignment == 64


@pytest.mark.parametrize("dtype", ["q4_k_m", "q2_k", "q3_k_m", "iq4_xs", "q4_0", "f32"])
def test_any_number_of_threads_gives_the_same_file(quantize, small, tmp_path, dtype):
    expected = quantize(small, tmp_path / "1.gguf", dtype, "-t", "1").read_bytes()
    for n_threads in ("2", "3", "8"):
        assert quantize(small, tmp_path / "n.gguf", dtype, "-t", n_threads).read_bytes() == expected


@pytest.mark.parametrize("dtype", K_TYPES)
def test_error_is_bounded(quantize, small, tmp_path, dtype):
    """Weights are gaussian; limits as in tests/cpp/test_quantize.cpp."""
    limit = {"q4_k_m": 0.07172, "q5_k_m": 0.03629, "q6_k": 0.01787}[dtype] * 1.01  # fewer values, more scatter
    before, after = read(small), read(quantize(small, tmp_path / "out.gguf", dtype, "--layout", "gguf", "--pure"))
    for name, tensor in before.items():
        x = values_of(tensor).astype(np.float64)
        y = values_of(after[name]).astype(np.float64)
        assert np.sqrt(((x - y) ** 2).sum() / (x**2).sum()) <= limit, name


def test_rows_that_are_no_whole_blocks_fall_back(hotset, tmp_path):
    random = np.random.default_rng(3)
    shapes = {"a.weight": (8, 256), "b.weight": (8, 96), "c.weight": (8, 40), "d.weight": (3, 2, 64)}
    source = tensors_file(
        tmp_path / "in.gguf",
        {name: (random.standard_normal(shape).astype(np.float32), "F32") for name, shape in shapes.items()},
    )
    result = hotset("quantize", str(source), str(tmp_path / "out.gguf"), "q4_k_m")
    assert result.returncode == 0
    types = {name: tensor.tensor_type.name for name, tensor in read(tmp_path / "out.gguf").items()}
    assert types == {"a.weight": "Q4_K", "b.weight": "Q8_0", "c.weight": "F16", "d.weight": "Q8_0"}
    for name in (b"b.weight", b"c.weight", b"d.weight"):
        assert len([line for line in result.stderr.splitlines() if name in line]) == 1


def test_what_is_no_matrix_of_weights_is_kept(quantize, tmp_path):
    extra = {
        "position_embd.weight": np.ones((4, 256), np.float32),
        "blk.0.attn_q.bias": np.arange(256, dtype=np.float32),
        "blk.0.ffn_gate_inp.weight": np.ones((4, 256), np.float32),
        "half.bias": np.arange(32, dtype=np.float16),
        "numbers": np.arange(7, dtype=np.int32),
    }
    source = model_file(tmp_path / "in.gguf", extra=extra)
    tensors = read(quantize(source, tmp_path / "out.gguf", "q4_0"))
    for name, values in extra.items():
        assert tensors[name].tensor_type.name == ("I32" if name == "numbers" else "F32")
        np.testing.assert_array_equal(tensors[name].data, values)


@pytest.mark.parametrize("layout", ["neuron", "gguf"])
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "f16"])
def test_the_file_runs(quantize, hotset, small, tmp_path, dtype, layout):
    words = ["--pure"] if dtype == "q4_0" else []
    out = quantize(small, tmp_path / "out.gguf", dtype, "--layout", layout, *words)
    result = hotset("run", "-m", str(out), "-p", "a", "-n", "4", "--temp", "0", "-t", "2")
    assert result.returncode == 0, result.stderr


def test_a_quantised_source_is_warned_about(hotset, demo_model, tmp_path):
    result = hotset("quantize", str(demo_model), str(tmp_path / "out.gguf"), "q4_0")
    assert result.returncode == 0
    assert result.stderr.count(b"warning: [quantize] tensor") == 1
    result = hotset("quantize", str(demo_model), str(tmp_path / "out.gguf"), "f32")
    assert b"warning" not in result.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_do_not_fit_are_refused(hotset, tmp_path, value):
    rows = np.ones((4, 256), np.float32)
    rows[2, 77] = value
    source = tensors_file(tmp_path / "in.gguf", {"a.weight": (rows, "F32")})
    result = hotset("quantize", str(source), str(tmp_path / "out.gguf"), "f16")
    assert_one_error_line(result, 1)
    assert b"a.weight" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["in.gguf"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], b"no IN"),
        (["IN"], b"no OUT"),
        (["IN", "OUT"], b"no TYPE"),
        (["IN", "OUT", "q3_k_x"], b"q4_k_m"),
        (["IN", "OUT", ""], b"TYPE"),
        (["IN", "", "q8_0"], b"OUT"),
        (["IN", "OUT", "q8_0", "more"], b"unexpected argument"),
        (["IN", "OUT", "q8_0", "--layout", "wide"], b"neuron|gguf"),
        (["IN", "OUT", "q8_0", "--order", "stats.npz"], b"pip install hotset"),
        (["IN", "OUT", "q8_0", "-t", "-1"], b"0 to 1024"),
        (["IN", "IN", "q8_0"], b"another file"),
    ],
)
def test_wrong_usage_is_refused(hotset, small, tmp_path, words, part):
    names = {"IN": str(small), "OUT": str(tmp_path / "out.gguf")}
    result = hotset("quantize", *[names.get(word, word) for word in words])
    assert_one_error_line(result, 2)
    assert part in result.stderr
    assert os.listdir(tmp_path) == []


def test_the_input_is_not_overwritten_through_a_link(hotset, small, tmp_path):
    (tmp_path / "link.gguf").symlink_to(small)
    assert_one_error_line(hotset("quantize", str(small), str(tmp_path / "link.gguf"), "q8_0"), 2)


def test_a_full_disk_and_a_bad_path_are_errors(hotset, small, tmp_path):
    for out, part in [("/dev/full", b"No space left"), (str(tmp_path), b"Is a directory"),
                      (str(tmp_path / "none" / "out.gguf"), b"No such file")]:  # fmt: skip
        result = hotset("quantize", str(small), out, "q8_0")
        assert_one_error_line(result, 1)
        assert part in result.stderr
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert_one_error_line(hotset("quantize", str(tmp_path / "none.gguf"), str(tmp_path / "out.gguf"), "q8_0"), 1)
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_replaced_only_by_a_whole_one(hotset, quantize, small, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(small.read_bytes()[:-5000])
    assert_one_error_line(hotset("quantize", str(broken), str(out), "q8_0"), 1)
    assert out.read_bytes() == b"old"
    quantize(small, out, "q8_0")
    assert "output.weight" in read(out)


def test_files_that_are_no_models_are_refused(hotset, shared, tmp_path):
    out = tmp_path / "out.gguf"
    for path in sorted((shared / "bad-gguf").iterdir()):
        result = hotset("quantize", str(path), str(out), "q4_k_m", memory=1 << 31)
        if result.returncode != 0:
            assert_one_error_line(result, 1)
            assert not out.exists()
        out.unlink(missing_ok=True)


def test_types_without_a_codec_are_refused(hotset, tmp_path):
    block = np.zeros((4, 64), np.uint8)
    source = tensors_file(tmp_path / "in.gguf", {"a.weight": (block, "I8")})
    result = hotset("quantize", str(source), str(tmp_path / "out.gguf"), "q8_0")
    assert_one_error_line(result, 1)
    assert b"I8" in result.stderr


def test_both_layouts_at_once_are_refused(hotset, tmp_path):
    rows = np.zeros((32, 32), np.float32)
    names = ["blk.0.ffn_down.weight", "blk.0.ffn_down_t.weight"]
    source = tensors_file(tmp_path / "in.gguf", {name: (rows, "F32") for name in names})
    assert_one_error_line(hotset("quantize", str(source), str(tmp_path / "out.gguf"), "f16"), 1)


def test_memory_does_not_grow_with_the_model(hotset, tmp_path):
    """An address space that holds the input of 512 MiB, but not its floats in another type as well."""
    source = tmp_path / "in.gguf"
    sparse_file(source, 1 << 29)
    memory = (1 << 29) + (300 << 20)
    result = hotset("quantize", str(source), "/dev/null", "q4_0", "-t", "2", memory=memory)
    assert result.returncode == 0, result.stderr


def test_progress_is_shown_on_a_terminal_only(hotset_bin, hotset, small, tmp_path):
    words = ["quantize", str(small), str(tmp_path / "out.gguf"), "q8_0"]
    with Terminal([hotset_bin, *words]) as terminal:
        assert terminal.finish() == 0
    assert re.search(rb"\r\[#{40}\] 100 %\r?\n", terminal.seen)
    assert hotset(*words).stderr.count(b"\n") == 1


def test_control_c_leaves_nothing_behind(hotset_bin, tmp_path):
    source = tmp_path / "in.gguf"
    sparse_file(source, 1 << 32)
    with Terminal([hotset_bin, "quantize", str(source), str(tmp_path / "out.gguf"), "q6_k", "-t", "1"]) as terminal:
        terminal.read_until(lambda seen: b"%" in seen)
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert os.listdir(tmp_path) == ["in.gguf"]
