"""Checks of what callers pass: keywords, prompts, numbers, texts, sizes.

A wrong type is a TypeError that names the argument; a value out of range is a ValueError in the shape of every error.
Only what the native side cannot say itself is checked here: its types and what fits into them.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from .errors import error_text

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
FLOAT32_MAX = (2 - 2**-23) * 2.0**127

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


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function with their defaults; its signature is the one place that states them."""
    return dict(function.__kwdefaults__ or {})


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
    given: Any = tokens
    if hasattr(given, "tolist") and not isinstance(given, memoryview):
        given = given.tolist()
    if not is_list(given):
        raise TypeError(f"token ids come as a list of int, not {_type_name(tokens)}")
    ids = []
    for token in given:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise TypeError(f"token ids are int, not {_type_name(token)}")
        ids.append(operator.index(token))
    for token in ids:
        if not 0 <= token <= INT32_MAX:
            _out_of_range("tokens", "token id", "one of the vocabulary", token, "pass ids of tokenize()")
    return ids


def is_list(value: object) -> bool:
    """Whether something may be a list of texts or token ids: any iterable but a text, bytes or a mapping."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview, Mapping))


def split_prompts(prompt: object) -> tuple[list[str | list[int]], bool]:
    """Returns the prompts that `generate` was given, each a text or token ids, and whether it was a single one."""
    if isinstance(prompt, str):
        return [prompt], True
    given: Any = prompt
    if not is_list(given):
        raise TypeError(f"prompt takes str or token ids, not {_type_name(given)}")
    items = list(given)
    if not items:
        raise ValueError("[generate] prompt: expected text or tokens, got an empty list; pass at least one")
    if hasattr(items[0], "__index__") and not is_list(items[0]):
        return [token_ids(items)], True
    for item in items:
        if not isinstance(item, str) and not is_list(item):
            raise TypeError(f"prompt takes str or token ids, not {_type_name(item)}")
    return [item if isinstance(item, str) else token_ids(item) for item in items], False


def stop_texts(stop: str | Sequence[str]) -> list[str]:
    """Returns the stop texts as a list; one text may be given bare."""
    if not isinstance(stop, str) and not is_list(stop):
        raise TypeError(f"stop takes texts, not {_type_name(stop)}")
    texts = [checked_text("generate", "stop", text) for text in ([stop] if isinstance(stop, str) else stop)]
    if "" in texts:
        raise ValueError("[generate] stop: expected texts of at least one character, got ''; leave it out")
    return texts


def checked_int(where: str, name: str, value: object, low: int, high: int) -> int:
    """Returns an integer from `low` to `high`; integers of numpy are fine."""
    given: Any = value
    number = None
    if not isinstance(given, bool) and hasattr(given, "__index__"):
        try:
            number = operator.index(given)
        except TypeError:  # an array of several
            pass
    if number is None:
        raise TypeError(f"{name} takes an integer, not {_type_name(given)}")
    if not low <= number <= high:
        _out_of_range(where, name, f"{low} to {high}", number, "pass a number in that range")
    return number


def checked_float(where: str, name: str, value: object) -> float:
    """Returns a number that fits a 32-bit float, or infinity or NaN, of which the native side complains."""
    given: Any = value
    number = None
    if not isinstance(given, bool) and (hasattr(given, "__float__") or hasattr(given, "__index__")):
        try:
            number = float(given)
        except TypeError:  # an array of several, a complex number
            pass
        except OverflowError:
            number = FLOAT32_MAX * 2
    if number is None:
        raise TypeError(f"{name} takes a number, not {_type_name(given)}")
    if FLOAT32_MAX < abs(number) < float("inf"):
        _out_of_range(where, name, f"at most {FLOAT32_MAX:.2g}", given, "pass a number in that range")
    return number


def as_doubles(where: str, name: str, value: object) -> Any:
    """Returns numbers as a NumPy vector of float64."""
    import numpy as np

    try:
        out = np.ascontiguousarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} takes numbers, not {_type_name(value)}") from None
    if out.ndim != 1:
        raise ValueError(error_text(where, name, "a vector of each layer", f"{out.ndim} dimensions", "pass one"))
    return out


def checked_bool(name: str, value: object) -> bool:
    """Returns True or False; those of numpy are fine."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} takes True or False, not {_type_name(value)}")


def utf8(where: str, name: str, value: object, errors: str = "strict") -> bytes:
    """Returns the UTF-8 bytes of a text; `errors` as in str.encode."""
    if not isinstance(value, str):
        raise TypeError(f"{name} takes str, not {_type_name(value)}")
    try:
        return value.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        got = f"{value[error.start]!r} at {error.start}"
        raise ValueError(error_text(where, name, "text that UTF-8 can hold", got, "leave that out")) from None


def checked_text(where: str, name: str, value: object) -> str:
    """Returns a text that UTF-8 can hold."""
    return utf8(where, name, value).decode()


def checked_path(where: str, name: str, value: object) -> str:
    """Returns a path as text that a file system and the native side can take."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} takes str or os.PathLike, not {_type_name(value)}")
    path = checked_text(where, name, os.fspath(value))
    if "\0" in path:
        raise ValueError(error_text(where, name, "a path without zero bytes", repr(path), "leave them out"))
    return path


def checked_choice(where: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if not isinstance(value, (str, bool, type(None))):
        raise TypeError(f"{name} takes one of {', '.join(map(repr, choices))}, not {_type_name(value)}")
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"[{where}] {name}: expected one of {words}, got {value!r}; choose one of them")


def size_in_bytes(where: str, name: str, size: int | str | None) -> int | None:
    """Returns a size such as 8589934592, "8GiB" or "8000MiB" in bytes; None for None and "auto".

    Without the "i" the units are powers of 1000.
    """
    if size is None:
        return None
    if not isinstance(size, str):
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"{name} takes bytes or a text such as '8GiB', not {_type_name(size)}")
        return checked_int(where, name, size, 0, INT64_MAX)
    if size == "auto":
        return None
    match = _SIZE.fullmatch(size.strip())
    n_bytes = 0.0
    if match:
        n_bytes = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " ")
    if not match or n_bytes > INT64_MAX:
        raise ValueError(error_text(where, name, "a size", repr(size[:40]), "write it like '8GiB' or 'auto'"))
    return int(n_bytes)


def load_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the keywords of `Model`; returns those that the native engine takes, as it takes them."""
    native: dict[str, Any] = {}
    defaults = {"activation": "", "predictor": "", "sidecar": "auto", "n_ctx": 0, "n_threads": 0}  # what None means
    given = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    native["sidecar"] = checked_path("Model", "sidecar", given["sidecar"])
    for name in ("mode", "predictor", "device", "kv_type", "pin", "activation"):
        native[name] = checked_text("Model", name, given[name])
    for name, low, high in [("n_ctx", 0, INT64_MAX), ("n_threads", 0, INT32_MAX), ("n_batch", 1, INT32_MAX)]:
        native[name] = checked_int("Model", name, given[name], low, high)
    # These matter only with an accelerator; they are checked in any case, so that a typo shows everywhere.
    native["vram_budget"] = size_in_bytes("Model", "vram_budget", given["vram_budget"])
    checked_choice("Model", "adapt", given["adapt"], (None, True, False))
    native["adapt"] = {None: "auto", True: "on", False: "off"}[given["adapt"]]
    native["kv_place"] = checked_text("Model", "kv_place", given["kv_place"])
    checked_choice("Model", "kv_place", native["kv_place"], ("auto", "device", "host"))
    return native


def _type_name(value: object) -> str:
    return type(value).__name__


def _out_of_range(where: str, name: str, expected: str, value: object, remedy: str) -> NoReturn:
    too_long = isinstance(value, int) and abs(value) >= 2**128  # Python refuses to write out thousands of digits
    got = "one beyond 2**128" if too_long else repr(value)
    raise ValueError(error_text(where, name, expected, got, remedy))
