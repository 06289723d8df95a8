"""Reader of Hugging Face `tokenizer.json` files: byte-level BPE, and SentencePiece-like BPE with byte fallback."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import ModelFormatError, UnsupportedModelError, error_text
from .pre_tokenizers import kIgnoreMerges, pre_tokenizer_names

kWhere = "tokenizer.json"
kRemedy = "convert a checkpoint with a LLaMA-like tokenizer"
kBlank = "\u2581"
kBlankPatterns = ({"String": " "}, {"Regex": " "})
kMaxDepth = 8
kMaxPieceLength = 1024  # characters; the work on a piece grows with the square
kBytePiece = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _damaged(what: str, expected: object, got: object) -> ModelFormatError:
    return ModelFormatError(error_text(kWhere, what, expected, got, "download the tokenizer again"))


def _unsupported(what: str, expected: object, got: object) -> UnsupportedModelError:
    return UnsupportedModelError(error_text(kWhere, what, expected, got, kRemedy))


def steps(node: Any, list_key: str, depth: int = 0) -> list[dict[str, Any]]:
    """Returns the components of a normalizer, pre-tokenizer or post-processor, a Sequence taken apart."""
    if node is None:
        return []
    if depth > kMaxDepth:
        raise _damaged(list_key, f"at most {kMaxDepth} sequences inside each other", "more")
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        raise _damaged(list_key, "an object with a type, or null", type(node).__name__)
    if node["type"] != "Sequence":
        return [node]
    children = node.get(list_key)
    if not isinstance(children, list):
        raise _damaged(list_key, "a list", type(children).__name__)
    return [step for child in children for step in steps(child, list_key, depth + 1)]


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Tells whether the vocabulary is written in GPT-2's byte alphabet."""
    return any(step["type"] == "ByteLevel" for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))


def pre_tokenizer_name(
    tokenizer: dict[str, Any], vocab: dict[str, int], merges: list[tuple[str, str]], log: Callable[[str], None]
) -> str:
    """Returns GGUF's name (`llama-bpe`, `gpt-2`) of a byte-level pre-tokenizer.

    Args:
        tokenizer: the object of a tokenizer.json.
        vocab: its vocabulary.
        merges: its merges.
        log: takes notes on what a GGUF file cannot say.

    Raises:
        UnsupportedModelError: hotset does not know this splitter; the message shows it.
    """
    normalizers = [step["type"] for step in steps(tokenizer.get("normalizer"), "normalizers")]
    if normalizers == ["NFC"]:
        log("note: the tokenizer composes characters (NFC) and hotset takes texts as they are; most are composed")
    elif normalizers:
        raise _unsupported("normalizer", "none, or NFC", " + ".join(normalizers)[:200])
    names = pre_tokenizer_names(steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    wanted = tokenizer["model"].get("ignore_merges") is True
    fitting = [name for name in names if (name in kIgnoreMerges) == wanted]
    if fitting:
        return fitting[0]
    stray = first_unmerged(vocab, merges, _added_texts(tokenizer))
    if stray is not None:
        expected = f"{not wanted} for {names[0]}, or merges that make every token"
        raise _unsupported("ignore_merges", expected, f"{wanted}, and none for {stray!r:.80}")
    return names[0]


def _added_texts(tokenizer: dict[str, Any]) -> set[str]:
    added = tokenizer.get("added_tokens")
    texts = [token.get("content") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return {text for text in texts if isinstance(text, str)}


def first_unmerged(vocab: dict[str, int], merges: list[tuple[str, str]], special: set[str]) -> str | None:
    """Returns the first token that its own characters do not merge to; None: ignoring merges changes nothing."""
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    for token in vocab:
        if token in special:
            continue
        if len(token) > kMaxPieceLength:
            return token
        parts = list(token)
        while len(parts) > 1:
            ranks = [rank_of.get(pair, len(merges)) for pair in zip(parts, parts[1:], strict=False)]
            best = min(ranks)
            if best == len(merges):
                return token
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None


def read_vocab(model: dict[str, Any]) -> dict[str, int]:
    """Returns text -> id of the BPE model, each id at most once."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise _damaged("vocab", "an object of texts and ids", type(vocab).__name__)
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in vocab.values()):
        raise _damaged("vocab", "ids from 0", "another value")
    if len(set(vocab.values())) != len(vocab):
        raise _damaged("vocab", "every id once", "an id twice")
    return vocab


def read_merges(model: dict[str, Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the merges in order of rank, from strings "a b" or pairs ["a", "b"]; their parts are in `vocab`."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise _damaged("merges", "a list", type(merges).__name__)
    pairs = []
    for rank, item in enumerate(merges):
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise _damaged(f"merge {rank}", "two texts", repr(item)[:80])
        left, right = parts
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise _damaged(f"merge {rank}", "texts of the vocabulary", repr(item)[:80])
        pairs.append((left, right))
    return pairs


def read_bpe(tokenizer: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the vocabulary and the merges of a BPE model.

    Raises:
        ModelFormatError: damaged.
        UnsupportedModelError: a model of another kind, or BPE with affixes or dropout.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise _damaged("model", "an object", type(model).__name__)
    # Files of early releases leave the type out; only BPE has merges.
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _unsupported("model type", "BPE", repr(kind)[:80])
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _unsupported(f"model {key}", "none", repr(model[key])[:80])
    vocab = read_vocab(model)
    return vocab, read_merges(model, vocab)


def has_blank_prefix(tokenizer: dict[str, Any]) -> bool:
    """Checks that blanks become U+2581 as in SentencePiece and tells whether one is put before the text."""
    normalizers = steps(tokenizer.get("normalizer"), "normalizers")
    chain = steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in normalizers]
    # Gemma's pre-tokenizer splits behind blanks, of which the normalizer leaves none.
    behind_blanks = [step["type"] for step in chain] == ["Split"] and chain[0].get("pattern") in kBlankPatterns
    if normalizers and behind_blanks:
        chain = []
    if not chain and kinds in (["Prepend", "Replace"], ["Replace"]):
        replace = normalizers[-1]
        prefix_fits = kinds == ["Replace"] or normalizers[0].get("prepend") == kBlank
        if prefix_fits and replace.get("pattern") == {"String": " "} and replace.get("content") == kBlank:
            return kinds[0] == "Prepend"
    if not normalizers and [step["type"] for step in chain] == ["Metaspace"]:
        space = chain[0]
        scheme = space.get("prepend_scheme", "always" if space.get("add_prefix_space", True) else "never")
        # Pieces with blanks inside or at their end exist only where the text is not split at blanks.
        whole = not space.get("split", True)
        if space.get("replacement") == kBlank and whole and scheme in ("always", "first", "never"):
            return scheme != "never"
    got = " + ".join(kinds + [step["type"] for step in chain]) or "none"
    raise _unsupported("normalizer and pre_tokenizer", "blanks replaced as by SentencePiece", got[:200])


def scores_from_merges(vocab: dict[str, int], merges: list[tuple[str, str]], special: set[str]) -> dict[str, float]:
    """Returns SentencePiece scores (minus the first rank) that make the same choices as the merges.

    SentencePiece merges any two neighbours whose join is a piece, best score first; BPE merges listed pairs, lowest
    rank first. Both agree where each piece's merges list every split into pieces and follow each other without gaps.

    Raises:
        UnsupportedModelError: the merges have no such scores.
    """
    scores: dict[str, float] = {}
    listed: set[tuple[str, str]] = set()
    previous = None
    for rank, (left, right) in enumerate(merges):
        piece = left + right
        if piece != previous and piece in scores:
            raise _unsupported("merges", "an order given by one score per piece", f"another one at rank {rank}")
        scores.setdefault(piece, -float(rank))
        listed.add((left, right))
        previous = piece
    for piece in vocab:
        if piece in special or kBytePiece.fullmatch(piece):
            continue
        if len(piece) > kMaxPieceLength:
            raise _unsupported("vocab", f"pieces of at most {kMaxPieceLength} characters", len(piece))
        for i in range(1, len(piece)):
            split = (piece[:i], piece[i:])
            if split[0] in vocab and split[1] in vocab and split not in listed:
                raise _unsupported("merges", "every split of a piece into pieces", f"none for {split!r:.80}")
    return scores


def template_adds(tokenizer: dict[str, Any]) -> tuple[bool, bool]:
    """Tells whether the post-processor puts a special token (before, after) a single text."""
    for step in steps(tokenizer.get("post_processor"), "processors"):
        single = step.get("single")
        if step["type"] == "TemplateProcessing" and isinstance(single, list) and single:
            ends = (single[0], single[-1])
            before, after = (isinstance(end, dict) and "SpecialToken" in end for end in ends)
            return before, after and len(single) > 1
    return False, False
