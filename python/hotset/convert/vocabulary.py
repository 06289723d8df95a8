"""The tokenizer of a checkpoint folder, as GGUF keys: from `tokenizer.model`, `tokenizer.json`, or GPT-2's files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from . import sentencepiece as sp
from . import tokenizer_json as tj
from .json_file import kMaxTokenizerBytes, read_limited, read_object, read_optional_object

kAddedScore = -1000.0
kMaxTemplateBytes = 4 << 20
kSpecialRoles = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


@dataclass
class Vocabulary:
    """Tokens by id, with GGUF's token types. `scores` go with model `llama`, `merges` with `gpt2`."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def keys(self) -> dict[str, Any]:
        """Returns the GGUF keys."""
        values: dict[str, Any] = {"model": self.model, "pre": self.pre, "tokens": self.tokens}
        if self.scores:
            values["scores"] = self.scores
        values["token_type"] = self.types
        if self.merges:
            values["merges"] = self.merges
        values.update(self.special_ids)
        values.update(self.flags)
        keys = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
        if self.chat_template is not None:
            keys["tokenizer.chat_template"] = self.chat_template
        return keys


@dataclass(frozen=True)
class AddedToken:
    """A token beside the trained vocabulary; special ones never come from plain text."""

    text: str
    special: bool


@dataclass
class _Files:
    """The small files of a checkpoint folder that say something about its tokenizer."""

    folder: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    special_tokens: dict[str, Any]
    added: dict[str, Any]
    generation: dict[str, Any]


def _read_files(folder: Path, config: dict[str, Any]) -> _Files:
    tokenizer = read_optional_object(folder / "tokenizer.json", kMaxTokenizerBytes)
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
    files = _Files(folder, config, tokenizer, *(read_optional_object(folder / name) for name in names))
    if not tokenizer and _has_gpt2_files(files):
        files.tokenizer = _from_gpt2_files(files)
    return files


def _has_gpt2_files(files: _Files) -> bool:
    """Tells whether the folder has the two files of GPT-2's tokenizer, and not those of one that splits otherwise."""
    kind = files.tokenizer_config.get("tokenizer_class")
    is_gpt2 = kind in ("GPT2Tokenizer", "GPT2TokenizerFast") if kind else files.config.get("model_type") == "opt"
    return is_gpt2 and all((files.folder / name).exists() for name in ("vocab.json", "merges.txt"))


def _from_gpt2_files(files: _Files) -> dict[str, Any]:
    """Returns the tokenizer.json that transformers would make of `vocab.json` and `merges.txt`, as far as it counts."""
    vocab = read_object(files.folder / "vocab.json", kMaxTokenizerBytes)
    lines = _read_text(files.folder / "merges.txt", kMaxTokenizerBytes).replace("\r\n", "\n").split("\n")
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    special = {_special_text(files, role) for role in kSpecialRoles}
    added = [{"id": vocab[text], "content": text, "special": True} for text in sorted(special & vocab.keys())]
    space = files.tokenizer_config.get("add_prefix_space", False)
    return {"added_tokens": added, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": space},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges}}  # fmt: skip


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        return read_limited(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError:
        raise ModelFormatError(error_text(path.name, "content", "UTF-8 text", "invalid bytes",
                                          "download the tokenizer again")) from None  # fmt: skip


def _text_of(value: Any) -> str | None:
    """Returns the text of a token written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _special_text(files: _Files, role: str) -> str | None:
    key = f"{role}_token"
    return _text_of(files.tokenizer_config.get(key)) or _text_of(files.special_tokens.get(key))


def _added_tokens(files: _Files) -> dict[int, AddedToken]:
    """Returns the added tokens by id, from the three files that may list them."""
    found: dict[int, AddedToken] = {}

    def add(number: Any, text: Any, special: Any, where: str) -> None:
        if isinstance(number, str) and re.fullmatch(r"[0-9]{1,9}", number):
            number = int(number)
        if type(number) is not int or not 0 <= number < 1 << 31 or not isinstance(text, str) or not text:
            raise ModelFormatError(error_text(where, "added token", "an id and a text", repr((number, text))[:80],
                                              "download the tokenizer again"))  # fmt: skip
        found.setdefault(number, AddedToken(text, special is True))

    decoder = files.tokenizer_config.get("added_tokens_decoder")
    for number, value in decoder.items() if isinstance(decoder, dict) else ():
        value = value if isinstance(value, dict) else {}
        add(number, value.get("content"), value.get("special"), "tokenizer_config.json")
    listed = files.tokenizer.get("added_tokens")
    for value in listed if isinstance(listed, list) else ():
        value = value if isinstance(value, dict) else {}
        add(value.get("id"), value.get("content"), value.get("special"), "tokenizer.json")
    extra = [files.tokenizer_config.get("additional_special_tokens"),
             files.special_tokens.get("additional_special_tokens")]  # fmt: skip
    special = {_text_of(item) for items in extra if isinstance(items, list) for item in items}
    special |= {_special_text(files, role) for role in kSpecialRoles}
    for text, number in files.added.items():
        add(number, text, text in special, "added_tokens.json")
    return found


def _from_sentencepiece(model: sp.SentencePieceModel, log: Callable[[str], None]) -> Vocabulary:
    if model.has_charsmap:
        log("note: the tokenizer's Unicode normalisation has no place in GGUF and is left out")
    ids = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id}
    special_ids = {kSpecialRoles[role]: number for role, number in ids.items() if 0 <= number < len(model.pieces)}
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": model.add_dummy_prefix,
             "remove_extra_whitespaces": model.remove_extra_whitespaces}  # fmt: skip
    return Vocabulary("llama", "default", model.pieces, model.types, model.scores, special_ids=special_ids, flags=flags)


def _by_id(vocab: dict[str, int], n_vocab: int) -> dict[int, str]:
    largest = max(vocab.values())
    if largest >= n_vocab:
        raise ModelFormatError(error_text("tokenizer.json", "largest id", f"below the {n_vocab} rows of the embedding",
                                          largest, "check that the tokenizer belongs to the model"))  # fmt: skip
    return {number: text for text, number in vocab.items()}


def _from_tokenizer_json(
    files: _Files, n_vocab: int, added: dict[int, AddedToken], log: Callable[[str], None]
) -> Vocabulary:
    tokenizer = files.tokenizer
    byte_level = tj.is_byte_level(tokenizer)
    vocab, merges = tj.read_bpe(tokenizer)
    pre = tj.pre_tokenizer_name(tokenizer, vocab, merges, log) if byte_level else "default"
    texts = _by_id(vocab, n_vocab)
    n_tokens = max(texts) + 1
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(n_tokens)]
    types = [sp.kNormal if number in texts else sp.kUnused for number in range(n_tokens)]
    before, after = tj.template_adds(tokenizer)
    flags = {"add_bos_token": before, "add_eos_token": after}
    if byte_level:
        merged = [f"{left} {right}" for left, right in merges]
        return Vocabulary("gpt2", pre, tokens, types, merges=merged, flags=flags)
    if tokenizer["model"].get("byte_fallback") is not True:
        raise UnsupportedModelError(error_text("tokenizer.json", "model", "byte-level, or byte_fallback true",
                                               "neither", tj.kRemedy))  # fmt: skip
    flags["add_space_prefix"] = tj.has_blank_prefix(tokenizer)
    flags["remove_extra_whitespaces"] = False
    unknown = _text_of(tokenizer["model"].get("unk_token"))
    special = {token.text for token in added.values()} | {unknown}
    scores = tj.scores_from_merges(vocab, merges, special)
    types = [sp.kByte if tj.kBytePiece.fullmatch(text) else kind for text, kind in zip(tokens, types, strict=True)]
    vocabulary = Vocabulary("llama", pre, tokens, types, [scores.get(text, 0.0) for text in tokens], flags=flags)
    if unknown in vocab:
        vocabulary.types[vocab[unknown]] = sp.kUnknown
        vocabulary.special_ids["unknown_token_id"] = vocab[unknown]
    return vocabulary


def _place_added(
    vocabulary: Vocabulary, added: dict[int, AddedToken], n_vocab: int, log: Callable[[str], None]
) -> None:
    """Puts the added tokens in place and fills up to one token per row of the embedding."""
    n_missing = n_vocab - len(vocabulary.tokens)
    if n_missing < 0:
        raise ModelFormatError(error_text("convert", "tokenizer", f"at most the embedding's {n_vocab} tokens",
                                          len(vocabulary.tokens), "check that the tokenizer belongs to the model"))
    vocabulary.tokens += [f"[PAD{number}]" for number in range(len(vocabulary.tokens), n_vocab)]
    vocabulary.types += [sp.kUnused] * n_missing
    if vocabulary.scores:
        vocabulary.scores += [kAddedScore] * n_missing
    for number, token in sorted(added.items()):
        if number >= n_vocab:
            log(f"note: added token {number} {token.text!r} has no row in the embedding and is left out")
            continue
        kept = vocabulary.types[number] in (sp.kUnknown, sp.kByte)
        if vocabulary.tokens[number] != token.text and vocabulary.types[number] != sp.kUnused:
            log(f"note: token {number} {vocabulary.tokens[number]!r} is replaced by the added token {token.text!r}")
            kept = False
        vocabulary.tokens[number] = token.text
        if not kept:
            vocabulary.types[number] = sp.kControl if token.special else sp.kUserDefined


def _ids(value: Any, n_vocab: int) -> list[int]:
    """Returns the usable ids of an `eos_token_id`-like value: an id or a list of ids."""
    numbers = value if isinstance(value, list) else [value]
    return [number for number in numbers if type(number) is int and 0 <= number < n_vocab]


def _set_special_ids(vocabulary: Vocabulary, files: _Files) -> None:
    n_vocab = len(vocabulary.tokens)
    id_of = {text: number for number, text in reversed(list(enumerate(vocabulary.tokens)))}
    for role, key in kSpecialRoles.items():
        text = _special_text(files, role)
        candidates = [id_of[text]] if text in id_of else []
        for source in (files.generation, files.config):
            candidates += _ids(source.get(f"{role}_token_id"), n_vocab)
        if candidates:
            vocabulary.special_ids[key] = candidates[0]
    # A list of ends says more than one token's name: the first is the end, the others end a turn or a message.
    for source in (files.generation, files.config):
        value = source.get("eos_token_id")
        if isinstance(value, list) and _ids(value, n_vocab):
            _set_ends(vocabulary, _ids(value, n_vocab))
            return


def _set_ends(vocabulary: Vocabulary, ends: list[int]) -> None:
    vocabulary.special_ids["eos_token_id"] = ends[0]
    others = [end for end in ends[1:] if vocabulary.types[end] in (sp.kControl, sp.kUserDefined) and end != ends[0]]
    messages = [end for end in others if "eom" in vocabulary.tokens[end]]
    turns = [end for end in others if end not in messages]
    if turns:
        vocabulary.special_ids["eot_token_id"] = turns[0]
    if messages:
        vocabulary.special_ids["eom_token_id"] = messages[0]


def _set_flags(vocabulary: Vocabulary, files: _Files) -> None:
    if files.tokenizer and vocabulary.model == "llama":
        before, after = tj.template_adds(files.tokenizer)
        vocabulary.flags["add_bos_token"], vocabulary.flags["add_eos_token"] = before, after
    names = {"add_bos_token": "add_bos_token", "add_eos_token": "add_eos_token"}
    if vocabulary.model == "llama":
        names["add_prefix_space"] = "add_space_prefix"
    for name, key in names.items():
        if isinstance(files.tokenizer_config.get(name), bool):
            vocabulary.flags[key] = files.tokenizer_config[name]


def _chat_template(files: _Files) -> str | None:
    path = files.folder / "chat_template.jinja"
    if path.exists():
        return _read_text(path, kMaxTemplateBytes)
    template = files.tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [item for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _check_text(vocabulary: Vocabulary) -> None:
    """Refuses lone surrogates, which JSON can spell but UTF-8 cannot."""
    try:
        for text in (*vocabulary.tokens, *vocabulary.merges, vocabulary.chat_template or ""):
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelFormatError(error_text("convert", "tokenizer text", "valid Unicode", ascii(text)[:80],
                                          "download the tokenizer again")) from None  # fmt: skip


def read_vocabulary(folder: Path, config: dict[str, Any], n_vocab: int, log: Callable[[str], None]) -> Vocabulary:
    """Reads the tokenizer of a checkpoint folder.

    Args:
        folder: the checkpoint.
        config: the object of `config.json`, for the special ids.
        n_vocab: rows of the embedding; missing tokens are filled up as unused ones.
        log: takes notes on what is left out.

    Raises:
        ModelFormatError: a file is damaged, or has more tokens than the embedding has rows.
        UnsupportedModelError: the tokenizer is of a kind that GGUF or hotset does not know; the message names it.
    """
    files = _read_files(folder, config)
    added = _added_tokens(files)
    model_path = folder / "tokenizer.model"
    if model_path.exists() and not (files.tokenizer and tj.is_byte_level(files.tokenizer)):
        vocabulary = _from_sentencepiece(
            sp.parse_sentencepiece(read_limited(model_path, kMaxTokenizerBytes)), log)  # fmt: skip
    elif files.tokenizer:
        vocabulary = _from_tokenizer_json(files, n_vocab, added, log)
    else:
        got = "vocab.json of another tokenizer than GPT-2's" if (folder / "vocab.json").exists() else "neither"
        remedy = "save the tokenizer with save_pretrained into this folder"
        raise ModelFormatError(error_text("convert", "tokenizer", "tokenizer.model or tokenizer.json", got, remedy))
    _place_added(vocabulary, added, n_vocab, log)
    _set_flags(vocabulary, files)
    _set_special_ids(vocabulary, files)
    vocabulary.chat_template = _chat_template(files)
    _check_text(vocabulary)
    return vocabulary
