"""Tests of the tokenizers that hotset.convert reads: SentencePiece, tokenizer.json, added tokens, special ids."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")

REPO = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("hotset") is None:  # not installed: converting needs no native module
    sys.path.insert(0, str(REPO / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hf_checkpoint import message, sentencepiece_bytes  # noqa: E402

from hotset.convert.pre_tokenizers import as_components, kChains, kIgnoreMerges  # noqa: E402
from hotset.convert.sentencepiece import parse_sentencepiece  # noqa: E402
from hotset.convert.vocabulary import Vocabulary, read_vocabulary  # noqa: E402
from hotset.errors import ModelFormatError, UnsupportedModelError  # noqa: E402

SHARED = Path(os.environ.get("HOTSET_SHARED", REPO.parent / "shared")) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared test data")
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
N_SPM = 3 + 256 + 4  # pieces of sentencepiece_bytes()
kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte = range(1, 7)


def splitter(regex: str, behavior: str = "Isolated") -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}]}


def bpe(vocab: list[str], merges: list[Any], **changes: Any) -> dict[str, Any]:
    """Returns a tokenizer.json of byte-level BPE; `changes` replace its top-level keys."""
    model = {"type": "BPE", "vocab": {text: i for i, text in enumerate(vocab)}, "merges": merges}
    return {"added_tokens": [], "normalizer": None, "pre_tokenizer": BYTE_LEVEL, "model": model, **changes}


def spm_like(vocab: list[str], merges: list[Any], **changes: Any) -> dict[str, Any]:
    """Returns a tokenizer.json as converted from a SentencePiece model, without its tokenizer.model."""
    prepend, replace = {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}}
    normalizer = {"type": "Sequence", "normalizers": [prepend, {**replace, "content": "\u2581"}]}
    tokenizer = bpe(vocab, merges, pre_tokenizer=None, normalizer=normalizer)
    tokenizer["model"].update(byte_fallback=True, unk_token="<unk>")
    return {**tokenizer, **changes}


def read(folder: Path, n_vocab: int, config: dict[str, Any] | None = None, notes: list[str] | None = None,
         **files: Any) -> Vocabulary:  # fmt: skip
    """Writes files (name without ending -> object) and reads the folder's vocabulary."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    log = notes.append if notes is not None else lambda line: None
    return read_vocabulary(folder, config or {}, n_vocab, log)


def added(number: int, text: str, special: bool) -> dict[str, Any]:
    return {"id": number, "content": text, "special": special, "normalized": False}


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def test_sentencepiece_flags_and_pieces(tmp_path: Path) -> None:
    model = sentencepiece_bytes(add_dummy_prefix=0, remove_extra_whitespaces=1)
    (tmp_path / "tokenizer.model").write_bytes(model)
    vocabulary = read(tmp_path, N_SPM + 2)
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert vocabulary.tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert vocabulary.tokens[-6:] == ["\u2581", "a", "b", "ab", f"[PAD{N_SPM}]", f"[PAD{N_SPM + 1}]"]
    assert vocabulary.types == [kUnknown, kControl, kControl, *[kByte] * 256, *[kNormal] * 4, kUnused, kUnused]
    assert vocabulary.scores[259:263] == [-0.0, -1.0, -2.0, -3.0]
    assert vocabulary.special_ids == {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    assert vocabulary.flags == {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False,
                                "remove_extra_whitespaces": True}  # fmt: skip


@needs_shared
@pytest.mark.parametrize("name", ["demo-relu/tokenizer.model", "stories260K/tok512.model"])
def test_sentencepiece_reads_what_its_library_reads(name: str) -> None:
    library = pytest.importorskip("sentencepiece").SentencePieceProcessor(str(SHARED / "models" / name))
    model = parse_sentencepiece((SHARED / "models" / name).read_bytes())
    numbers = range(library.get_piece_size())
    assert model.pieces == [library.id_to_piece(i) for i in numbers]
    assert model.scores == [library.get_score(i) for i in numbers]
    assert [kind == kByte for kind in model.types] == [library.is_byte(i) for i in numbers]
    assert [kind == kControl for kind in model.types] == [library.is_control(i) for i in numbers]
    ids = (library.unk_id(), library.bos_id(), library.eos_id(), library.pad_id())
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == ids


def test_damaged_sentencepiece() -> None:
    good = sentencepiece_bytes()
    seed = 21
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n_refused = 0
    for _ in range(300):
        data = bytearray(good[: rng.integers(1, len(good))])
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        try:
            parse_sentencepiece(bytes(data))
        except (ModelFormatError, UnsupportedModelError):
            n_refused += 1
    assert n_refused >= 200


@pytest.mark.parametrize(
    "data, kind, match",
    [
        (b"", ModelFormatError, "pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", ModelFormatError, "field 1"),
        (b"\xff" * 11, ModelFormatError, "varint"),
        (b"\x0b", ModelFormatError, "wire type"),
        (b"\x02\x00", ModelFormatError, "field 0"),
        (message((1, 5)), ModelFormatError, "wire type 2"),
        (message((1, message((1, b"\xff")))), ModelFormatError, "UTF-8"),
        (message((1, message((1, "a"), (2, float("nan"))))), ModelFormatError, "finite"),
        (message((1, message((1, "a"), (3, 9)))), ModelFormatError, "type from 1 to 6"),
        (message((1, message((2, 1.0)))), ModelFormatError, "a text"),
        (sentencepiece_bytes(model_type=1), UnsupportedModelError, "unigram"),
        (sentencepiece_bytes(escape_whitespaces=0), UnsupportedModelError, "unescaped"),
    ],
)
def test_refused_sentencepiece(data: bytes, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        parse_sentencepiece(data)


def test_added_tokens_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes())
    notes: list[str] = []
    vocabulary = read(
        tmp_path, N_SPM + 4, notes=notes,
        added_tokens={"<pad>": N_SPM, "<word>": N_SPM + 1, "<late>": N_SPM + 9},
        special_tokens_map={"pad_token": {"content": "<pad>"}},
        tokenizer_config={"added_tokens_decoder": {"0": {"content": "<unk>", "special": True},
                                                   str(N_SPM + 2): {"content": "<end>", "special": True}},
                          "eos_token": {"content": "<end>"}, "add_eos_token": True, "add_prefix_space": False},
    )  # fmt: skip
    assert vocabulary.tokens[N_SPM:] == ["<pad>", "<word>", "<end>", f"[PAD{N_SPM + 3}]"]
    assert vocabulary.types[N_SPM:] == [kControl, kUserDefined, kControl, kUnused]
    assert vocabulary.types[0] == kUnknown
    assert len(vocabulary.scores) == N_SPM + 4
    assert vocabulary.special_ids["padding_token_id"] == N_SPM
    assert vocabulary.special_ids["eos_token_id"] == N_SPM + 2
    assert vocabulary.flags["add_eos_token"] and not vocabulary.flags["add_space_prefix"]
    assert len(notes) == 1 and "<late>" in notes[0]


def test_more_pieces_than_rows(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes())
    with pytest.raises(ModelFormatError, match="tokenizer: expected at most"):
        read(tmp_path, N_SPM - 1)


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merges", [["a b", "ab c"], [["a", "b"], ["ab", "c"]]])
def test_byte_level_bpe(tmp_path: Path, merges: list[Any]) -> None:
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}]}
    tokenizer = bpe(["a", "b", "c", "ab", "abc"], merges, pre_tokenizer=splitter(LLAMA3_REGEX),
                    added_tokens=[added(5, "<bos>", True), added(7, "<word>", False)],
                    post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]})  # fmt: skip
    tokenizer["model"]["ignore_merges"] = True
    vocabulary = read(tmp_path, 8, tokenizer=tokenizer, tokenizer_config={"bos_token": "<bos>"})
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "llama-bpe")
    assert vocabulary.merges == ["a b", "ab c"] and not vocabulary.scores
    assert vocabulary.tokens == ["a", "b", "c", "ab", "abc", "<bos>", "[PAD6]", "<word>"]
    assert vocabulary.types == [*[kNormal] * 5, kControl, kUnused, kUserDefined]
    assert vocabulary.special_ids == {"bos_token_id": 5}
    assert vocabulary.flags == {"add_bos_token": True, "add_eos_token": False}


def test_plain_byte_level_is_gpt2(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, 2, tokenizer=bpe(["a", "b"], []))
    assert vocabulary.pre == "gpt-2" and not vocabulary.flags["add_bos_token"]


@pytest.mark.parametrize("name", kChains)
def test_pre_tokenizers_by_their_steps(tmp_path: Path, name: str) -> None:
    chain = {"type": "Sequence", "pretokenizers": as_components(name)}
    tokenizer = bpe(["a", "b", "ab"], ["a b"], pre_tokenizer=chain)
    tokenizer["model"]["ignore_merges"] = name in kIgnoreMerges
    assert read(tmp_path, 3, tokenizer=tokenizer).pre == name


def test_spellings_of_one_pattern(tmp_path: Path) -> None:
    newlines = LLAMA3_REGEX.replace(r"\r", "\r").replace(r"\n", "\n")
    assert read(tmp_path, 2, tokenizer=bpe(["a", "b"], [], pre_tokenizer=splitter(newlines))).pre == "dbrx"
    removed = splitter(LLAMA3_REGEX, "Removed")
    removed["pretokenizers"][0]["invert"] = True
    assert read(tmp_path, 2, tokenizer=bpe(["a", "b"], [], pre_tokenizer=removed)).pre == "dbrx"


def test_merges_that_make_every_token_may_be_ignored(tmp_path: Path) -> None:
    chain = {"type": "Sequence", "pretokenizers": as_components("gpt-4o")}
    tokenizer = bpe(["a", "b", "ab", "abab", "<x>"], ["a b", "ab ab"], pre_tokenizer=chain)
    tokenizer["model"]["ignore_merges"] = True
    tokenizer["added_tokens"] = [added(4, "<x>", True)]
    assert read(tmp_path, 5, tokenizer=tokenizer).pre == "gpt-4o"
    tokenizer["model"]["merges"].pop()
    with pytest.raises(UnsupportedModelError, match="ignore_merges.*none for 'abab'"):
        read(tmp_path, 5, tokenizer=tokenizer)


def test_composed_characters_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(tmp_path, 1, notes=notes, tokenizer=bpe(["a"], [], normalizer={"type": "NFC"})).pre == "gpt-2"
    assert len(notes) == 1 and "NFC" in notes[0]


REFUSED_TOKENIZERS = {
    "unknown regex": (bpe(["a"], [], pre_tokenizer=splitter(r"\p{N}|\w+")), UnsupportedModelError,
                      r"got Split \\p\{N\}\|"),
    "other behaviour": (bpe(["a"], [], pre_tokenizer=splitter(LLAMA3_REGEX, "Removed")),
                        UnsupportedModelError, "a Split that isolates"),
    "another step": (
        bpe(["a"], [], pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}),
        UnsupportedModelError, "Digits"),
    "prefix space": (bpe(["a"], [], pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), UnsupportedModelError,
                     "add_prefix_space"),
    "normalizer": (bpe(["a"], [], normalizer={"type": "NFD"}), UnsupportedModelError, "NFD"),
    "WordPiece": (bpe(["a"], [], model={"type": "WordPiece"}), UnsupportedModelError, "WordPiece"),
    "no byte fallback": (bpe(["a"], [], pre_tokenizer={"type": "Whitespace"}), UnsupportedModelError, "byte_fallback"),
    "no model": ({"version": "1.0"}, ModelFormatError, "model"),
    "pre_tokenizer is a list": (bpe(["a"], [], pre_tokenizer=[1]), ModelFormatError, "pretokenizers"),
    "vocab is a list": (bpe([], [], model={"type": "BPE", "vocab": [1], "merges": []}), ModelFormatError, "vocab"),
    "id twice": (bpe([], [], model={"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}),
                 ModelFormatError, "twice"),
    "id too large": (bpe([], [], model={"type": "BPE", "vocab": {"a": 1 << 30}, "merges": []}),
                     ModelFormatError, "largest id"),
    "merge of three": (bpe(["a", "b"], ["a b c"]), ModelFormatError, "merge 0"),
    "merge of strangers": (bpe(["a", "b"], ["a b"]), ModelFormatError, "merge 0"),
    "merge is a number": (bpe(["a", "b"], [3]), ModelFormatError, "merge 0"),
    "added token without id": (bpe(["a"], [], added_tokens=[{"content": "x"}]), ModelFormatError, "added token"),
    "lone surrogate": (bpe(["a", "\ud800"], []), ModelFormatError, "Unicode"),
    "merges out of order": (spm_like(["<unk>", "a", "b", "c", "ab", "abc", "bc"], ["a b", "ab c", "b c", "a bc"]),
                            UnsupportedModelError, "score"),
    "merge missing": (spm_like(["<unk>", "a", "b", "c", "ab", "bc", "abc"], ["a b", "b c", "a bc"]),
                      UnsupportedModelError, "every split"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_TOKENIZERS)
def test_refused_tokenizer_json(tmp_path: Path, case: str) -> None:
    tokenizer, kind, match = REFUSED_TOKENIZERS[case]
    with pytest.raises(kind, match=match):
        read(tmp_path, 16, tokenizer=tokenizer)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Returns every (container, key) inside a JSON value."""
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [(node, key) for key, _ in pairs] + [place for _, child in pairs for place in places(child)]


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "NFC"}


ODD_VALUES = [None, True, -1, 3, 1 << 40, 0.5, "", "x", "9" * 5000, [], ["x"], [[]], {}, {"type": "x"}, nested(9)]


def test_tokenizer_files_with_odd_values_end_in_an_error_or_a_vocabulary(tmp_path: Path) -> None:
    seed = 23
    print("seed", seed)
    rng = np.random.default_rng(seed)
    word = added(3, "<w>", True)
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<w>"}}, {"Sequence": {"id": "A"}}]}
    more = {"added_tokens": [word], "post_processor": {"type": "Sequence", "processors": [template]}}
    makes = [
        bpe(["a", "b", "ab"], ["a b"], pre_tokenizer=splitter(LLAMA3_REGEX), **more),
        spm_like(["<unk>", "a", "aa"], [["a", "a"]], **more),
    ]
    others = {
        "tokenizer_config": {"added_tokens_decoder": {"3": word}, "bos_token": {"content": "<w>"},
                             "add_bos_token": True, "chat_template": [{"name": "default", "template": "x"}]},
        "special_tokens_map": {"eos_token": "<w>", "additional_special_tokens": ["<w>"]},
        "added_tokens": {"<w>": 3}, "generation_config": {"eos_token_id": [1, 3]},
    }  # fmt: skip
    n_refused = n_read = 0
    for i in range(200):
        files = json.loads(json.dumps({"tokenizer": makes[i % 2], **others}))
        names = ["tokenizer"] if rng.random() < 0.7 else list(others)
        spots = [place for name in names for place in places(files[name])]
        place, key = spots[rng.integers(len(spots))]
        place[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        try:
            vocabulary = read(tmp_path, 5, **files)
            assert len(vocabulary.tokens) == len(vocabulary.types) == 5
            n_read += 1
        except (ModelFormatError, UnsupportedModelError):
            n_refused += 1
    assert n_refused > 30 and n_read > 30


def write_gpt2_files(folder: Path, merges: str = "#version: 0.2\na b\n\nab c\n") -> dict[str, Any]:
    """Writes a tokenizer as OPT publishes it; returns its tokenizer_config.json."""
    texts = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "ab", "abc", "#"]
    (folder / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(texts)}))
    (folder / "merges.txt").write_bytes(merges.encode("utf-8", "surrogateescape"))
    end = {"content": "</s>", "normalized": True, "__type": "AddedToken"}
    return {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, "bos_token": end,
            "eos_token": end, "unk_token": end, "pad_token": "<pad>"}  # fmt: skip


def test_gpt2_files(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, 12, {"model_type": "opt"}, tokenizer_config=write_gpt2_files(tmp_path))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "gpt-2")
    assert vocabulary.merges == ["a b", "ab c"] and vocabulary.tokens[2:10:7] == ["</s>", "#"]
    # transformers takes the text "<s>" apart: only the tokens that have a role are special.
    assert vocabulary.types == [kNormal, kControl, kControl, *[kNormal] * 7, kUnused, kUnused]
    assert vocabulary.special_ids == {
        "bos_token_id": 2, "eos_token_id": 2, "unknown_token_id": 2, "padding_token_id": 1}  # fmt: skip
    assert vocabulary.flags == {"add_bos_token": True, "add_eos_token": False}


@pytest.mark.parametrize(
    "merges, changes, kind, match",
    [
        ("a b c", {}, ModelFormatError, "merge 0"),
        ("a z", {}, ModelFormatError, "merge 0"),
        ("a b\udcff", {}, ModelFormatError, "merges.txt.*UTF-8"),
        ("a b", {"add_prefix_space": True}, UnsupportedModelError, "add_prefix_space"),
        ("a b", {"tokenizer_class": "Qwen2Tokenizer"}, ModelFormatError, "another tokenizer than GPT-2's"),
        ("a b", {"tokenizer_class": ["GPT2Tokenizer"]}, ModelFormatError, "another tokenizer than GPT-2's"),
    ],
)
def test_refused_gpt2_files(tmp_path: Path, merges: str, changes: Any, kind: type[Exception], match: str) -> None:
    config = {**write_gpt2_files(tmp_path, merges), **changes}
    with pytest.raises(kind, match=match):
        read(tmp_path, 12, {"model_type": "opt"}, tokenizer_config=config)


@pytest.mark.parametrize("number", [None, True, -1, 0.5, 1 << 40, "x", [], {}, 11])
def test_gpt2_files_with_odd_ids(tmp_path: Path, number: Any) -> None:
    config = write_gpt2_files(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    for text in ("</s>", "c"):
        (tmp_path / "vocab.json").write_text(json.dumps({**vocab, text: number}))
        with pytest.raises(ModelFormatError):
            read(tmp_path, 11, {"model_type": "opt"}, tokenizer_config=config)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="tokenizer.model or tokenizer.json, got neither"):
        read(tmp_path, 16)


def test_scores_from_merges(tmp_path: Path) -> None:
    vocab = ["<unk>", "<s>", "<0x0A>", "\u2581", "a", "b", "ab", "\u2581ab", "bb"]
    merges = ["a b", "b b", "\u2581 ab"]
    notes = read(tmp_path, 9, tokenizer=spm_like(vocab, merges, added_tokens=[added(1, "<s>", True)]))
    assert notes.model == "llama" and notes.flags["add_space_prefix"]
    assert notes.types == [kUnknown, kControl, kByte, *[kNormal] * 6]
    assert notes.scores == [0, 0, 0, 0, 0, 0, 0, -2, -1] and not notes.merges
    assert notes.special_ids["unknown_token_id"] == 0
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
    never = read(tmp_path, 9, tokenizer=spm_like(vocab, merges, normalizer=None, pre_tokenizer=space))
    assert not never.flags["add_space_prefix"]
    # Gemma's: blanks are replaced before the text is split behind blanks.
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    gemma = read(tmp_path, 9, tokenizer=spm_like(vocab, merges, normalizer=replace, pre_tokenizer=split))
    assert not gemma.flags["add_space_prefix"] and gemma.scores == never.scores
    with pytest.raises(UnsupportedModelError, match="got Split"):
        read(tmp_path, 9, tokenizer=spm_like(vocab, merges, normalizer=None, pre_tokenizer=split))


@needs_shared
@pytest.mark.parametrize("name, pre", [("llama-bpe", splitter(LLAMA3_REGEX)), ("gpt-2", BYTE_LEVEL)])
def test_real_byte_level_vocabularies(tmp_path: Path, name: str, pre: dict[str, Any]) -> None:
    """A tokenizer.json made of a published vocabulary gives that vocabulary back."""
    reader = pytest.importorskip("gguf").GGUFReader(SHARED / "vocabs" / f"ggml-vocab-{name}.gguf")
    keys = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in reader.fields.items()}
    tokens, types = keys["tokens"], keys["token_type"]
    special = [added(i, text, True) for i, text in enumerate(tokens) if types[i] == kControl]
    plain = [text for i, text in enumerate(tokens) if types[i] != kControl]
    merges = [merge.split(" ") for merge in keys["merges"]]
    tokenizer = bpe(plain, merges, pre_tokenizer=pre, added_tokens=special)
    tokenizer["model"]["ignore_merges"] = name == "llama-bpe"
    vocabulary = read(tmp_path, len(tokens), {"bos_token_id": keys["bos_token_id"]}, tokenizer=tokenizer)
    assert vocabulary.pre == name == keys["pre"]
    assert (vocabulary.tokens, vocabulary.types, vocabulary.merges) == (tokens, types, keys["merges"])
    assert vocabulary.special_ids["bos_token_id"] == keys["bos_token_id"]


@needs_shared
def test_real_sentencepiece_vocabulary_from_its_merges(tmp_path: Path) -> None:
    """Llama 2's vocabulary, turned into merges as transformers does, gives scores in the same order."""
    reader = pytest.importorskip("gguf").GGUFReader(SHARED / "vocabs" / "ggml-vocab-llama-spm.gguf")
    names = ("tokens", "scores", "token_type")
    tokens, scores, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    score_of = {text: score for text, score, kind in zip(tokens, scores, types, strict=True) if kind == kNormal}
    merges = []
    for piece in sorted(score_of, key=lambda text: -score_of[text]):
        splits = ([piece[:i], piece[i:]] for i in range(1, len(piece)))
        merges += [split for split in splits if split[0] in score_of and split[1] in score_of]
    special = [added(i, tokens[i], True) for i in range(3)]
    vocabulary = read(tmp_path, len(tokens), tokenizer=spm_like(tokens, merges, added_tokens=special))
    assert vocabulary.tokens == tokens and vocabulary.types == types
    merged = {left + right for left, right in merges}
    numbers = [i for i, text in enumerate(tokens) if text in merged]
    assert len(numbers) > 20000
    by_score = sorted(numbers, key=lambda i: -scores[i])
    assert sorted(numbers, key=lambda i: -vocabulary.scores[i]) == by_score


# --- special ids and templates ----------------------------------------------------------------------------------------


def test_lists_of_ends(tmp_path: Path) -> None:
    special = [added(i + 2, text, True) for i, text in enumerate(("<end>", "<|eom_id|>", "<|eot_id|>"))]
    tokenizer = bpe(["a", "b"], [], added_tokens=special)
    ends = {"eos_token_id": [2, 3, 4, 0, 99, "x"]}
    vocabulary = read(tmp_path, 5, {"eos_token_id": 1}, tokenizer=tokenizer, generation_config=ends,
                      tokenizer_config={"eos_token": "<|eot_id|>"})  # fmt: skip
    assert vocabulary.special_ids == {"eos_token_id": 2, "eom_token_id": 3, "eot_token_id": 4}
    assert read(tmp_path, 5, generation_config={}).special_ids == {"eos_token_id": 4}


def test_chat_templates(tmp_path: Path) -> None:
    tokenizer = bpe(["a"], [])
    assert read(tmp_path, 1, tokenizer=tokenizer).chat_template is None
    assert read(tmp_path, 1, tokenizer_config={"chat_template": "one"}).chat_template == "one"
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]
    assert read(tmp_path, 1, tokenizer_config={"chat_template": named}).chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    vocabulary = read(tmp_path, 1)
    assert vocabulary.keys()["tokenizer.chat_template"] == "three"
