"""Judges a model of the hub by its first bytes, before gigabytes are fetched."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from . import _core
from .hub_files import Repository, Start, size_text

# Fetched first: whole headers of small vocabularies. Then four times as much each time, or what is known to be needed.
_FIRST_BYTES = 1 << 19
_GROWTH = 4
# Beyond this a header is no longer looked at: vocabularies of 256,000 tokens take about 20 MiB.
_MOST_BYTES = 256 << 20


def judge(repository: Repository, shards: Sequence[tuple[str, int]], activation: str = "") -> None:
    """Raises what loading a model would raise, having fetched the header of each shard only.

    Warns about weights that exceed this machine's memory: such a model runs, reading the rest from disk for each token.

    Args:
        repository: where it is.
        shards: name and bytes of each.
        activation: overrides the file's, as for `Model`.

    Raises:
        ModelFormatError: a header is damaged, or the shards do not belong together.
        UnsupportedModelError: this version does not run it.
    """
    starts = [Start(repository, file, n_bytes) for file, n_bytes in shards]
    needed = [_FIRST_BYTES] * len(starts)
    while True:
        for start, n in zip(starts, needed):
            start.grow(n)
        given = [(start.file, start.data, start.n_bytes) for start in starts]
        judged = _core.judge_starts(given, activation)
        if not any(judged["n_needed"]):
            break
        for i, n in enumerate(judged["n_needed"]):
            needed[i] = max(n, len(starts[i].data) * _GROWTH) if n else 0
        if sum(needed) > _MOST_BYTES:
            logging.getLogger("hotset").info("a header of more than %s is not looked at", size_text(_MOST_BYTES))
            return
    if judged["size_bytes"] > judged["memory_bytes"] > 0:
        logging.getLogger("hotset").warning(
            "[hub] %s: %s of weights and %s of memory here: the rest will be read from disk for every token",
            judged["type"],
            size_text(judged["size_bytes"]),
            size_text(judged["memory_bytes"]),
        )
