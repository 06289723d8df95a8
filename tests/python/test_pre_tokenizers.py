"""Tokenizers against the libraries they imitate, where those are installed: `tokenizers` and `sentencepiece`."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest

_core = pytest.importorskip("hotset._core", exc_type=ImportError)
REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tools"))

from pre_token_texts import INVALID, random_text  # noqa: E402

from hotset.convert.pre_tokenizers import kChains  # noqa: E402
from hotset.convert.vocabulary import read_vocabulary  # noqa: E402
from hotset.errors import UnsupportedModelError  # noqa: E402

BLANK = "\u2581"


@pytest.mark.parametrize("name", kChains)
def test_pieces_are_those_of_tokenizers(name: str) -> None:
    """More texts: tools/check_tokenizers.py splits -n 100000."""
    pytest.importorskip("tokenizers")
    from check_tokenizers import check_splits

    seed = random.randrange(1 << 30)
    print("seed", seed)
    assert check_splits([name], 1000, seed) == 0


@pytest.mark.parametrize("name", [*kChains, "command-r", "starcoder", "deepseek-r1-qwen", "glm4", "llama4", "lfm2"])
def test_every_name_is_known(name: str) -> None:
    assert sum(_core.pre_token_lengths(name, b"a b\xff 12")) == 7


@pytest.mark.parametrize("name", ["", "default", "qwen3", "Llama-bpe"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="pre-tokenizer.*one of gpt-2, .*falcon"):
        _core.pre_token_lengths(name, b"a")


def _write_vocabulary(folder: Path, n_vocab: int) -> str:
    """Writes the tokenizer of a folder as a GGUF file without a model."""
    gguf = pytest.importorskip("gguf")
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in read_vocabulary(folder, {}, n_vocab, print).keys().items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("prefix", [False, True])
def test_ids_are_those_of_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    """Gemma's kind of vocabulary: byte fallback, runs of spaces and line breaks that are user-defined."""
    sentencepiece = pytest.importorskip("sentencepiece")
    runs = [character * count for character in ("\n", BLANK) for count in (2, 3, 4)] if not prefix else ["<sep>"]
    rng, model = random.Random(3), io.BytesIO()
    texts = [random_text(rng).replace(INVALID, "").replace("\n", " ") for _ in range(300)]
    texts += [path.read_text()[:3000].replace("\n", " ") for path in (REPO / "README.md", REPO / "CONVENTIONS.md")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=1000, character_coverage=0.98,
        byte_fallback=True, user_defined_symbols=runs, add_dummy_prefix=prefix, remove_extra_whitespaces=False,
        normalization_rule_name="identity", minloglevel=2, num_threads=1,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = _core.Tokenizer(_write_vocabulary(tmp_path, theirs.get_piece_size()))
    for _ in range(2000):
        text = random_text(rng).replace(INVALID, "\n\n\n").replace("=>", "     ").replace("\x00", "")
        got = ours.encode(text.encode(), False, False)
        assert got == theirs.encode(text), ascii(text)
        assert ours.decode(got, False).decode() == text


def test_unmerged_bytes_survive(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 come back from a byte-level vocabulary."""
    texts = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)]]
    model = {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts)}, "merges": []}
    pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer = {"added_tokens": [], "normalizer": None, "pre_tokenizer": pre, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    ours = _core.Tokenizer(_write_vocabulary(tmp_path, len(texts)))
    data = bytes(range(256)) + b"\xe2\x96 \xc3"
    assert len(ours.encode(data, False, False)) == len(data)
    assert ours.decode(ours.encode(data, False, False), False) == data
