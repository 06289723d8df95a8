"""Profiling: runs a model over texts and counts which units are active (`hotset.offline.profile`).

Texts become sequences of at most n_ctx tokens, each beginning with BOS where the vocabulary adds it; a new text begins
a new sequence. Some are computed in one pass. Neither that nor the number of threads changes what is counted, so a run
that was interrupted and goes on gives the same statistics as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..arguments import INT64_MAX, checked_float, checked_int, checked_text, size_in_bytes
from ..errors import Error, error_text
from .npz import read_arrays, write_arrays
from .statistics import LayerStatistics, Statistics
from .texts import PlainText, Source, Texts

if TYPE_CHECKING:
    from ..model import Model

# Tokens that thresholds are calibrated on.
CALIBRATION_TOKENS = 8192
# Saving takes at most about this share of the time, and is not done more often than every so many seconds.
_SAVE_SHARE, _SAVE_SECONDS = 0.05, 30.0
_STATE_FORMAT = "hotset-profile-state"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a profile is.

    Attributes:
        n_tokens: tokens counted so far.
        share: part of the work that is done, 0 to 1.
        seconds: time since the start of this run.
        seconds_left: time that the rest will take at the speed so far; None before anything is known.
    """

    n_tokens: int
    share: float
    seconds: float
    seconds_left: float | None


def profile(
    model: Model,
    texts: str | Source | os.PathLike[str] | Iterable[str | Source | os.PathLike[str]],
    *,
    n_ctx: int | None = None,
    max_tokens: int | None = None,
    n_samples: int = 0,
    mass_share: float = 0.01,
    thresholds: Statistics | None = None,
    kv_type: str = "auto",
    n_threads: int | None = None,
    n_batch: int = 512,
    device: str = "auto",
    vram_budget: int | str | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Statistics:
    """Runs a model over texts and counts its active units.

    Args:
        model: the model; what it generates meanwhile is not disturbed.
        texts: files as paths, texts as str, or sources of `hotset.offline.texts`; one or several.
        n_ctx: tokens of a sequence; None = 512, or the context of the model where that is shorter.
        max_tokens: stop after so many tokens, BOS included; None = all.
        n_samples: tokens whose inputs and active units are kept of every layer, for training and co-activation.
        mass_share: for activations without exact zeros: contributions below the threshold are at most this share of a
            layer's, on the first tokens.
        thresholds: statistics of the model whose thresholds are taken instead, so that both can be merged.
        kv_type: type of the KV cache, as in `Model`.
        n_threads: threads that compute; None = one per physical core.
        n_batch: tokens computed at once.
        device, vram_budget: as in `Model`. An accelerator shares the work and changes no figure of a neuron-major file;
            with one in the standard layout it computes with units as rows, which may round otherwise.
        progress: called now and then.
        checkpoint: file in which the state is saved every half minute and when the run is interrupted, by an error or
            Ctrl-C. It stays: remove it when the statistics are saved.
        resume: go on from `checkpoint` where there is one.

    Raises:
        Error: a file is missing or damaged, an activation is not finite, the checkpoint belongs to another run, or
            there is no token in the texts.
        ValueError: an argument is out of range.
    """
    if max_tokens is None:
        max_tokens = INT64_MAX
    options = {
        "n_ctx": checked_int("profile", "n_ctx", min(512, model.n_ctx) if n_ctx is None else n_ctx, 2, 1 << 30),
        "max_tokens": checked_int("profile", "max_tokens", max_tokens, 1, INT64_MAX),
        "n_samples": checked_int("profile", "n_samples", n_samples, 0, 1 << 24),
        "mass_share": checked_float("profile", "mass_share", mass_share),
        "kv_type": kv_type,
    }
    threads = 0 if n_threads is None else checked_int("profile", "n_threads", n_threads, 0, 1024)
    batch = checked_int("profile", "n_batch", n_batch, 1, 65536)
    where = {"device": checked_text("profile", "device", device),
             "vram_budget": size_in_bytes("profile", "vram_budget", vram_budget)}  # fmt: skip
    run = _Run(model._open_engine(), _sources(texts), options, threads, batch, where)
    if thresholds is not None:
        run.take_thresholds(thresholds)
    if resume and checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    try:
        run.count(progress, checkpoint)
    except BaseException:
        if checkpoint is not None and run.has_news:
            run.save(checkpoint)
        raise
    return run.statistics()


def token_sequences(
    model: Model,
    texts: str | Source | os.PathLike[str] | Iterable[str | Source | os.PathLike[str]],
    n_ctx: int,
) -> Iterator[list[int]]:
    """Yields the token sequences that `profile` would run a model over; arguments as there."""
    for source in _sources(texts):
        yield from _Corpus(source).sequences(model._open_engine(), n_ctx)


def _sources(texts: Any) -> list[Source]:
    """The corpora of what a caller passes; texts that follow each other are one."""
    given = [texts] if isinstance(texts, (str, os.PathLike)) or hasattr(texts, "pieces") else list(texts)
    out: list[Source] = []
    for is_text, group in itertools.groupby(given, lambda each: isinstance(each, str)):
        if is_text:
            out.append(Texts(list(group)))
        else:
            out += [PlainText(each) if isinstance(each, os.PathLike) else each for each in group]
    if not all(hasattr(source, "pieces") for source in out):
        raise TypeError("texts are str, paths or sources of hotset.offline.texts")
    return out


class _Corpus:
    """What is known of a source that is being read."""

    def __init__(self, source: Source) -> None:
        self.source, self.n_tokens, self.n_bytes, self.sha256 = source, 0, 0, hashlib.sha256()

    def sequences(self, engine: _core.Engine, n_ctx: int) -> Iterator[list[int]]:
        """Cuts the source into sequences."""
        bos = [engine.bos_id] if engine.adds_bos and engine.bos_id is not None else []
        sequence = list(bos)
        for piece in self.source.pieces(engine):
            self.n_bytes += len(piece.data)
            self.sha256.update(piece.data)
            if piece.starts and len(sequence) > len(bos):
                yield sequence
                sequence = list(bos)
            tokens = engine.tokenize(piece.text, False, piece.has_markup)
            at = 1 if piece.has_markup and bos and tokens[:1] == bos else 0  # the template has written it
            while at < len(tokens):
                part = tokens[at : at + n_ctx - len(sequence)]
                sequence += part
                at += len(part)
                if len(sequence) == n_ctx:
                    yield sequence
                    sequence = list(bos)
        if len(sequence) > len(bos):
            yield sequence

    def row(self) -> dict[str, Any]:
        """What the statistics say about it."""
        return {"name": self.source.name, "sha256": self.sha256.hexdigest(), "n_tokens": self.n_tokens,
                "n_bytes": self.n_bytes}  # fmt: skip


class _Run:
    """One profile: the native counters, and how far the texts have been read."""

    def __init__(self, engine: _core.Engine, sources: list[Source], options: dict[str, Any], n_threads: int,
                 n_batch: int, where: dict[str, Any]) -> None:  # fmt: skip
        self._engine, self._options = engine, options
        self._corpora = [_Corpus(source) for source in sources]
        self._pass_tokens = max(options["n_ctx"], 4 * n_batch)
        self._profiler = _core.Profiler(engine, kv_type=options["kv_type"], n_ctx=options["n_ctx"],
                                        n_threads=n_threads, n_batch=n_batch, n_samples=options["n_samples"],
                                        n_sequences=self._sequences_at_once(where["device"]), **where)  # fmt: skip
        self._needs_calibration = True
        # The sequences that were handed over last, and a hash of all that are counted, with their tokens. An interrupt
        # may come between any two lines; the native counters, which count a pass whole or not at all, say what is true.
        self._pass: list[list[int]] = []
        self._counted: tuple[Any, int] = (hashlib.sha256(), 0)
        self._resumed: tuple[str, int] | None = None

    def _sequences_at_once(self, device: str) -> int:
        """For how many sequences an accelerator sets memory aside: those of a pass. 0: as they come."""
        return 0 if device in ("auto", "cpu") else -(-self._pass_tokens // self._options["n_ctx"])

    @property
    def n_tokens(self) -> int:
        """Tokens counted so far."""
        return self._profiler.n_tokens

    @property
    def has_news(self) -> bool:
        """Whether more is counted than in the state that the run began with."""
        return self.n_tokens > (self._resumed[1] if self._resumed else 0)

    def take_thresholds(self, statistics: Statistics) -> None:
        """Counts with the thresholds of other statistics of the model."""
        statistics.check_model(self._engine.fingerprint)
        state = self._profiler.state()
        state["thresholds"] = np.array([layer.threshold for layer in statistics.layers], np.float32)
        self._profiler.restore(**state)
        self._needs_calibration = False

    def count(self, progress: Callable[[Progress], None] | None, checkpoint: str | os.PathLike[str] | None) -> None:
        """Counts what is not counted yet."""
        clock = _Clock()
        sequences = self._skip_counted(self._sequences())
        sequences = self._calibrate(sequences)
        next_save = clock.seconds + _SAVE_SECONDS
        first_share = self._share()
        while self._fill_pass(sequences):
            self._profiler.add(self._pass)
            self._sync()
            if progress:
                progress(clock.progress(self.n_tokens, self._share(), first_share))
            if checkpoint is not None and clock.seconds >= next_save:
                began = clock.seconds
                self.save(checkpoint)
                next_save = clock.seconds + max(_SAVE_SECONDS, (clock.seconds - began) / _SAVE_SHARE)
        if self.n_tokens == 0:
            raise Error(error_text("profile", "texts", "at least one token", "none", "name files with text"))

    def _sequences(self) -> Iterator[list[int]]:
        """All sequences of all texts, up to max_tokens."""
        left = self._options["max_tokens"]
        for corpus in self._corpora:
            if left == 0:
                return
            for sequence in corpus.sequences(self._engine, self._options["n_ctx"]):
                sequence = sequence[:left]
                corpus.n_tokens += len(sequence)
                left -= len(sequence)
                yield sequence
                if left == 0:
                    return

    def _skip_counted(self, sequences: Iterator[list[int]]) -> Iterator[list[int]]:
        """Reads past what a saved state has counted, and checks that the texts are the same."""
        if self._resumed is None:
            return sequences
        digest, n_tokens = self._resumed
        while self._counted[1] < n_tokens and (sequence := next(sequences, None)) is not None:
            self._counted = _hashed(self._counted, [sequence], n_tokens)
        if self._counted[1] != n_tokens or self._counted[0].hexdigest() != digest:
            raise Error(error_text("profile", "texts of the saved state", "the same as before", "others",
                                   "leave --resume out to begin anew"))  # fmt: skip
        return sequences

    def _calibrate(self, sequences: Iterator[list[int]]) -> Iterator[list[int]]:
        """Chooses thresholds on the first sequences, which are then counted like all others."""
        if not self._needs_calibration:
            return sequences
        first: list[list[int]] = []
        n_tokens = 0
        while n_tokens < CALIBRATION_TOKENS and (sequence := next(sequences, None)) is not None:
            first.append(sequence)
            n_tokens += len(sequence)
        if first:
            self._profiler.calibrate(first, self._options["mass_share"])
        return itertools.chain(first, sequences)

    def _fill_pass(self, sequences: Iterator[list[int]]) -> bool:
        """Takes the sequences of the next pass; False when there are no more."""
        taken: list[list[int]] = []
        n_tokens = 0
        while n_tokens < self._pass_tokens and (sequence := next(sequences, None)) is not None:
            taken.append(sequence)
            n_tokens += len(sequence)
        self._pass = taken
        return bool(taken)

    def _sync(self) -> None:
        """Brings the hash up to what is counted."""
        self._counted = _hashed(self._counted, self._pass, self.n_tokens)

    def _share(self) -> float:
        by_tokens = self.n_tokens / self._options["max_tokens"]
        total = sum(corpus.source.n_bytes for corpus in self._corpora)
        by_bytes = sum(corpus.n_bytes for corpus in self._corpora) / total if total else 1.0
        return min(1.0, max(by_tokens, by_bytes))

    def _settings(self) -> str:
        names = [corpus.source.name for corpus in self._corpora]
        return json.dumps({"model": self._engine.fingerprint, "texts": names, **self._options}, sort_keys=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves what is counted, whole or not at all."""
        self._sync()
        digest, n_tokens = self._counted
        state = self._profiler.state()
        assert n_tokens == state["n_tokens"]
        settings = {"format": _STATE_FORMAT, "version": np.int64(1), "settings": self._settings(),
                    "digest": digest.hexdigest()}  # fmt: skip
        write_arrays(path, {**settings, **state, "n_tokens": np.uint64(n_tokens)})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes over what save() has written.

        Raises:
            Error: it is damaged, or belongs to another model, other texts or other options.
        """
        arrays = read_arrays(path, "profile")
        try:
            texts = {key: str(arrays.pop(key)) for key in ("format", "version", "settings", "digest")}
            if texts["format"] != _STATE_FORMAT or texts["version"] != "1" or texts["settings"] != self._settings():
                raise ValueError
            arrays["n_tokens"] = int(arrays["n_tokens"])
            self._profiler.restore(**arrays)
        except (KeyError, ValueError, TypeError):
            raise Error(error_text("profile", f"saved state {os.fspath(path)!r}",
                                   "one of this model, these texts and options", "another",
                                   "leave --resume out to begin anew")) from None  # fmt: skip
        self._resumed = texts["digest"], arrays["n_tokens"]
        self._needs_calibration = False

    def statistics(self) -> Statistics:
        """What was counted, in the form that is kept."""
        state, norms = self._profiler.state(), self._profiler.down_norms()
        mass = state["h_sums"] * norms / self.n_tokens
        layers = []
        for number in range(len(norms)):
            layers.append(LayerStatistics(state["counts"][number], mass[number], int(state["overlaps"][number]),
                                          float(state["thresholds"][number])))  # fmt: skip
            if self._options["n_samples"] > 0:
                layers[-1].mask, layers[-1].input = state["sample_masks"][number], state["sample_inputs"][number]
        corpora = [corpus.row() for corpus in self._corpora if corpus.n_tokens > 0]
        return Statistics(self._engine.fingerprint, self.n_tokens, corpora, layers)


def _hashed(counted: tuple[Any, int], sequences: list[list[int]], n_tokens: int) -> tuple[Any, int]:
    """Adds sequences to (hash, tokens) until there are n_tokens."""
    digest, n_hashed = counted[0].copy(), counted[1]
    for sequence in sequences:
        if n_hashed >= n_tokens:
            break
        digest.update(array("q", [len(sequence), *sequence]).tobytes())
        n_hashed += len(sequence)
    return digest, n_hashed


class _Clock:
    """Time since the start of a run."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def progress(self, n_tokens: int, share: float, first_share: float) -> Progress:
        seconds, done = self.seconds, share - first_share
        return Progress(n_tokens, share, seconds, seconds * (1 - share) / done if done > 0 else None)
