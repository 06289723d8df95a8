"""Checks of what callers pass: keywords, token ids, seeds, stop texts, sizes."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Mapping, Sequence

# How other libraries spell our keywords.
_FOREIGN = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "repetition_penalty": "repeat_penalty",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "streamer": "stream",
    "logits_processors": "logits_processor",
    "random_seed": "seed",
    "model_path": "path",
    "context_length": "n_ctx",
    "max_model_len": "n_ctx",
    "threads": "n_threads",
    "num_threads": "n_threads",
    "cache_type": "kv_type",
    "batch_size": "n_batch",
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def reject_unknown(function: str, given: Mapping[str, object], known: Iterable[str]) -> None:
    """Raises TypeError for a keyword that `function` does not have, naming the right word where there is one."""
    known = list(known)
    name = next((name for name in given if name not in known), None)
    if name is None:
        return
    right = _FOREIGN.get(name)
    if right not in known:
        right = next(iter(difflib.get_close_matches(name, known, 1)), None)
    hint = f"; use {right!r}" if right else f"; it takes {', '.join(known)}"
    raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def token_ids(tokens: Iterable[int]) -> list[int]:
    """Returns token ids as a list of int; numpy arrays and other sequences of integers are fine.

    Raises:
        TypeError: something is not an integer.
        ValueError: an id is no 32-bit number; whether the vocabulary has it is checked where it is used.
    """
    tolist = getattr(tokens, "tolist", None)
    ids = [operator.index(token) for token in (tolist() if tolist else tokens)]
    for token in ids:
        if not 0 <= token < 2**31:
            raise ValueError(f"[tokens] token id: expected one of the vocabulary, got {token}; pass ids of tokenize()")
    return ids


def stop_texts(stop: str | Sequence[str]) -> list[str]:
    """Returns the stop texts as a list; one text may be given bare."""
    texts = [stop] if isinstance(stop, str) else list(stop)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"stop takes texts, not {type(text).__name__}")
        if not text:
            raise ValueError("[generate] stop: expected texts of at least one character, got ''; leave it out")
    return texts


def checked_seed(seed: int | None) -> int | None:
    """Returns the seed if it is one."""
    if seed is None:
        return None
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"[generate] seed: expected 0 to 2**64 - 1, got {seed}; pass None for a random one")
    return seed


def checked_choice(where: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"[{where}] {name}: expected one of {words}, got {value!r}; choose one of them")


def size_in_bytes(where: str, name: str, size: int | str | None) -> int | None:
    """Returns a size such as 8589934592, "8GiB" or "8000MiB" in bytes; None for None and "auto".

    Without the "i" the units are powers of 1000.
    """
    if size is None or size == "auto":
        return None
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip())
        if not match:
            raise ValueError(f"[{where}] {name}: expected a size, got {size!r}; write it like '8GiB' or 'auto'")
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
    size = operator.index(size)
    if size < 0:
        raise ValueError(f"[{where}] {name}: expected at least 0 bytes, got {size}; write it like '8GiB' or 'auto'")
    return size
