"""Statistics of a model over texts, as `hotset profile` writes them (docs/FORMATS.md, "Statistics")."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..errors import Error, error_text
from .npz import read_arrays, write_arrays

FORMAT = "hotset-statistics"
VERSION = 1
MAX_LAYERS = 1 << 14
_MAX_TEXT = 1 << 20


@dataclass(eq=False)
class LayerStatistics:
    """What was counted of one layer.

    Attributes:
        counts: uint64 (n_ff), tokens for which a unit was active.
        mass: float64 (n_ff), mean over all tokens of |h| times the length of the unit's down row.
        overlap: sum over tokens but the first of each text of the units active both for it and for the token before.
        threshold: contribution from which on a unit counts as active; 0 for activations with exact zeros.
        mask: uint8 (n, ceil(n_ff / 8)), active units of sampled tokens: bit u % 8 of byte u // 8; or None.
        input: float32 (n, n_embd), what the layer's feed-forward network read for these tokens; or None.
    """

    counts: np.ndarray
    mass: np.ndarray
    overlap: int
    threshold: float = 0.0
    mask: np.ndarray | None = None
    input: np.ndarray | None = None

    @property
    def n_ff(self) -> int:
        """Number of units."""
        return len(self.counts)


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """How alike two statistics are in a layer.

    Attributes:
        layer: its number.
        top_overlap: share of the hottest units of one that are among the hottest of the other.
        rank_correlation: Spearman's, of all units' counts; NaN where all counts of one are equal.
    """

    layer: int
    top_overlap: float
    rank_correlation: float


@dataclass(eq=False)
class Statistics:
    """Activation statistics of one model.

    Attributes:
        model_fingerprint: `Model.fingerprint` of the model.
        n_tokens: tokens that were counted.
        corpora: for each text its name, sha256 and n_bytes (of the bytes that were read) and n_tokens.
        layers: by layer number.
    """

    model_fingerprint: str
    n_tokens: int
    corpora: list[dict[str, Any]]
    layers: list[LayerStatistics]

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def frequencies(self, layer: int) -> np.ndarray:
        """Returns the share of tokens for which each unit of a layer was active, float64 (n_ff)."""
        return self.layers[layer].counts / self.n_tokens

    def order(self, layer: int) -> np.ndarray:
        """Returns the units of a layer from the hottest to the coldest, int64 (n_ff); ties by unit number."""
        return np.argsort(-self.layers[layer].counts.astype(np.int64), kind="stable")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all; equal statistics give equal bytes.

        Raises:
            Error: it cannot be written.
        """
        arrays: dict[str, object] = {
            "format": FORMAT,
            "version": np.int64(VERSION),
            "model_fingerprint": self.model_fingerprint,
            "n_layer": np.int64(self.n_layer),
            "n_tokens": np.int64(self.n_tokens),
            "corpora": json.dumps(self.corpora, sort_keys=True),
        }
        for number, layer in enumerate(self.layers):
            prefix = f"blk.{number}"
            arrays[f"{prefix}.counts"] = layer.counts.astype("<u8")
            arrays[f"{prefix}.mass"] = layer.mass.astype("<f8")
            arrays[f"{prefix}.overlap"] = np.uint64(layer.overlap)
            arrays[f"{prefix}.threshold"] = np.float32(layer.threshold)
            if layer.input is not None and layer.mask is not None:
                arrays[f"{prefix}.samples.input"] = layer.input.astype("<f4")
                arrays[f"{prefix}.samples.mask"] = layer.mask.astype("u1")
        write_arrays(path, arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Reads a file.

        Raises:
            Error: there is no such file, or it is damaged, contradicts itself, or is of another kind or version.
        """
        return _Reader(os.fspath(path)).statistics()

    def check_model(self, fingerprint: str) -> None:
        """Raises Error unless these are statistics of the model with this fingerprint."""
        if self.model_fingerprint != fingerprint:
            raise Error(error_text("statistics", "model", f"the one with fingerprint {fingerprint}",
                                   f"statistics of {self.model_fingerprint}",
                                   "profile this model, or choose the statistics that belong to it"))  # fmt: skip

    @staticmethod
    def merge(parts: Sequence[Statistics]) -> Statistics:
        """Returns the statistics of all texts: counts are added, mass is weighed by tokens, samples are joined.

        Raises:
            ValueError: there are none, or they are of different models or count with different thresholds.
        """
        if not parts:
            raise ValueError(error_text("merge", "statistics", "at least one", "none", "name some files"))
        for part in parts[1:]:
            _check_comparable("merge", parts[0], part)
        layers = [
            _merged_layer(group, [part.n_tokens for part in parts]) for group in zip(*(part.layers for part in parts))
        ]
        n_tokens = sum(part.n_tokens for part in parts)
        corpora = [corpus for part in parts for corpus in part.corpora]
        return Statistics(parts[0].model_fingerprint, n_tokens, corpora, layers)

    def compare(self, other: Statistics, top: float = 0.2) -> list[LayerComparison]:
        """Returns for each layer how alike these statistics and others of the same model are.

        Args:
            other: what to compare with.
            top: share of the units that count as the hottest, at least one unit.

        Raises:
            ValueError: they are of different models, or `top` is not within 0 to 1.
        """
        if not 0 < top <= 1:
            raise ValueError(error_text("compare", "top", "a share above 0, up to 1", top, "pass such a number"))
        _check_comparable("compare", self, other, thresholds=False)
        out = []
        for layer in range(self.n_layer):
            n_top = max(1, round(top * self.layers[layer].n_ff))
            common = np.intersect1d(self.order(layer)[:n_top], other.order(layer)[:n_top], assume_unique=True)
            correlation = _rank_correlation(self.layers[layer].counts, other.layers[layer].counts)
            out.append(LayerComparison(layer, len(common) / n_top, correlation))
        return out


def _check_comparable(where: str, first: Statistics, second: Statistics, thresholds: bool = True) -> None:
    same_units = [layer.n_ff for layer in first.layers] == [layer.n_ff for layer in second.layers]
    if first.model_fingerprint != second.model_fingerprint or not same_units:
        raise ValueError(error_text(where, "statistics", f"those of model {first.model_fingerprint}",
                                    second.model_fingerprint, "use statistics of one model"))  # fmt: skip
    for number, (a, b) in enumerate(zip(first.layers, second.layers)):
        if thresholds and a.threshold != b.threshold:
            raise ValueError(error_text(where, f"threshold of layer {number}", a.threshold, b.threshold,
                                        "profile the second text with the thresholds of the first "
                                        "(--thresholds)"))  # fmt: skip


def _merged_layer(group: Sequence[LayerStatistics], n_tokens: Sequence[int]) -> LayerStatistics:
    mass = np.average([layer.mass for layer in group], axis=0, weights=n_tokens)
    counts = np.sum([layer.counts for layer in group], axis=0, dtype=np.uint64)
    out = LayerStatistics(counts, mass, sum(layer.overlap for layer in group), group[0].threshold)
    sampled = [layer for layer in group if layer.mask is not None and layer.input is not None]
    if sampled:
        out.mask = np.concatenate([layer.mask for layer in sampled if layer.mask is not None])
        out.input = np.concatenate([layer.input for layer in sampled if layer.input is not None])
    return out


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; equal values share the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, places, n_equal = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(n_equal) - (n_equal - 1) / 2)[places]

    first, second = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size > 0 else float("nan")


class _Reader:
    """Checks the arrays of a file one by one; what is not asked for is refused at the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._arrays = read_arrays(path, "statistics")

    def statistics(self) -> Statistics:
        kind = self._text("format")
        if kind != FORMAT:
            self._refuse("format", FORMAT, kind)
        version = self._number("version", 1 << 31)
        if version != VERSION:
            self._refuse("version", VERSION, version, "use the version of hotset that wrote it")
        fingerprint = self._text("model_fingerprint")
        if len(fingerprint) != 32 or set(fingerprint) - set("0123456789abcdef"):
            self._refuse("model_fingerprint", "32 hexadecimal digits", repr(fingerprint[:40]))
        n_layer, n_tokens = self._number("n_layer", MAX_LAYERS, 1), self._number("n_tokens", 1 << 62, 1)
        corpora = self._corpora()
        layers = [self._layer(number, n_tokens) for number in range(n_layer)]
        if self._arrays:
            self._refuse("keys", f"those of version {VERSION}", repr(min(self._arrays))[:100])
        if len({None if layer.input is None else layer.input.shape for layer in layers}) > 1:
            self._refuse("samples", "as many of one size in every layer", "others")
        return Statistics(fingerprint, n_tokens, corpora, layers)

    def _layer(self, number: int, n_tokens: int) -> LayerStatistics:
        prefix = f"blk.{number}"
        counts = self._take(f"{prefix}.counts", "<u8", 1)
        mass = self._take(f"{prefix}.mass", "<f8", 1)
        overlap, threshold = self._take(f"{prefix}.overlap", "<u8", 0), self._take(f"{prefix}.threshold", "<f4", 0)
        if len(counts) == 0 or counts.max() > n_tokens:
            self._refuse(f"{prefix}.counts", f"counts of at most {n_tokens} tokens", "others")
        if mass.shape != counts.shape or not (np.isfinite(mass) & (mass >= 0)).all():
            self._refuse(f"{prefix}.mass", f"{len(counts)} numbers from 0", "others")
        if float(overlap) > float(counts.sum(dtype=np.float64)):
            self._refuse(f"{prefix}.overlap", "at most the sum of the counts", overlap)
        if not np.isfinite(threshold) or threshold < 0:
            self._refuse(f"{prefix}.threshold", "a number from 0", threshold)
        out = LayerStatistics(counts, mass, int(overlap), float(threshold))
        if f"{prefix}.samples.mask" in self._arrays or f"{prefix}.samples.input" in self._arrays:
            out.mask, out.input = self._take(f"{prefix}.samples.mask", "|u1", 2), self._take(f"{prefix}.samples.input",
                                                                                              "<f4", 2)  # fmt: skip
            if out.mask.shape != (len(out.input), (len(counts) + 7) // 8) or out.input.shape[1] == 0:
                self._refuse(f"{prefix}.samples", "a mask for every input", f"{out.mask.shape} and {out.input.shape}")
        return out

    def _corpora(self) -> list[dict[str, Any]]:
        try:
            corpora = json.loads(self._text("corpora"))
            for corpus in corpora:
                texts, numbers = (corpus["name"], corpus["sha256"]), (corpus["n_tokens"], corpus["n_bytes"])
                if not all(isinstance(text, str) for text in texts) or not all(type(n) is int for n in numbers):
                    raise ValueError
            return list(corpora)
        except (ValueError, TypeError, KeyError, RecursionError):
            self._refuse("corpora", "a JSON list of objects with name, sha256, n_tokens, n_bytes", "other text")

    def _take(self, key: str, dtype: str, n_dims: int) -> np.ndarray:
        array = self._arrays.pop(key, None)
        if array is None:
            self._refuse("keys", repr(key), "none of that name")
        if array.dtype != np.dtype(dtype) or array.ndim != n_dims:
            self._refuse(key, f"{n_dims} dimensions of {np.dtype(dtype)}", f"{array.ndim} of {array.dtype}")
        return array

    def _number(self, key: str, high: int, low: int = 0) -> int:
        value = int(self._take(key, "<i8", 0))
        if not low <= value <= high:
            self._refuse(key, f"{low} to {high}", value)
        return value

    def _text(self, key: str) -> str:
        array = self._arrays.pop(key, None)
        if array is None or array.dtype.kind != "U" or array.ndim != 0 or array.nbytes > 4 * _MAX_TEXT:
            self._refuse(key, "a text", "none" if array is None else "something else")
        try:
            return str(array)
        except (ValueError, UnicodeError):  # code points that do not exist
            self._refuse(key, "a text", "something else")

    def _refuse(self, what: str, expected: object, got: object, remedy: str = "profile again") -> NoReturn:
        raise Error(error_text("statistics", f"{self._path}, {what}", expected, got, remedy))
