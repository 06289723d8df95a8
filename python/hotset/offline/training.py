"""Predictors for a model: made, calibrated on text, judged by the model's own predictions, written into its sidecar.

Whatever the predictor, the exact detect row of every candidate decides in the end. So its quality is what it misses, and
its price is what it reads: itself and the detect rows of candidates that turn out inactive. Thresholds are chosen by
missed mass (`calibration`), and the missed mass so that the model's predictions stay within a KL divergence of exact
execution, measured on text that neither training nor calibration has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _core
from ..errors import Error, error_text
from .calibration import LayerThreshold, Totals, choose_threshold, largest_missed_mass, measure_slacks
from .predictor_file import STORED_TYPES, stored, stored_bytes, with_predictor
from .sidecar import Sidecar
from .sizing import best_size, first_rank
from .training_material import Material, begin_sidecar
from .two_layer import RANK_STEP, Factors, TrainOptions, TwoLayer, train, with_relu

if TYPE_CHECKING:
    from ..model import Model

KINDS = ("bit_planes", "low_rank", "mlp")
PAPER_SHARE = 0.0709  # of the parameters: mean of the paper's Table 6
SIZING_MISSED_MASS = 0.005  # at which ranks are compared; the threshold that is stored comes from the model's quality


@dataclass(frozen=True)
class PredictorOptions:
    """What to make and how good it has to be.

    Attributes:
        kind: "bit_planes" or "low_rank", which need no training, or "mlp", the paper's network.
        bits: of bit planes, 1 to 3.
        max_kld: largest mean KL divergence from exact execution, nats per token.
        dtype: how low-rank and trained weights are stored: "q8_0", "q4_0" or "f16".
        max_share: predictors together have at most this share of the model's parameters.
        n_ctx: tokens of a sequence.
        n_train, n_calibrate, n_test: tokens of text for each step, taken in turn from the same texts; bit planes need no
            training text.
        train: how networks are trained.
    """

    kind: str = "bit_planes"
    bits: int = 3
    max_kld: float = 0.0014
    dtype: str = "q8_0"
    max_share: float = PAPER_SHARE
    n_ctx: int = 256
    n_train: int = 32768
    n_calibrate: int = 16384
    n_test: int = 8192
    train: TrainOptions = TrainOptions()


@dataclass(frozen=True)
class PredictorLayer:
    """One layer of a finished predictor; rank 0 of low-rank and trained ones: none, the layer runs exactly."""

    layer: int
    rank: int
    n_bytes: int
    threshold: LayerThreshold | None


@dataclass(frozen=True)
class PredictorReport:
    """What was made, and how good it is.

    Attributes:
        kind: as asked for. bits: of bit planes, else 0.
        layers: one for each layer of the model.
        n_bytes: of all layers, read for every token. detect_bytes: of the matrices in whose place they are read.
        share: the predictor's weights as a share of the model's; of bit planes, bits as a share of the model's bits.
        totals: recall, over-selection and missed mass on the calibration text.
        kld, same_top, ppl_ratio: of mode predict against exact execution, on the test text.
        max_kld: what was asked for.
    """

    kind: str
    bits: int
    layers: list[PredictorLayer]
    n_bytes: int
    detect_bytes: int
    share: float
    totals: Totals
    kld: float
    same_top: float
    ppl_ratio: float
    max_kld: float

    @property
    def is_good(self) -> bool:
        """Whether the asked quality is reached."""
        return self.kld <= self.max_kld


def train_predictor(
    model: Model,
    sequences: Iterable[Sequence[int]],
    options: PredictorOptions,
    sidecar: Sidecar | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> tuple[Sidecar, PredictorReport]:
    """Makes a predictor for a model whose activation makes exact zeros.

    Args:
        model: the model.
        sequences: token sequences of real text, each from the beginning of a context, such as
            `hotset.offline.profiler.token_sequences` gives; as many are read as the options ask for.
        options: what to make.
        sidecar: of this model, whose order of units and placement are kept; None = begin one, ordered by the activity
            that is seen on the way.
        log: called with lines on how far the work is.

    Returns:
        The sidecar with the predictor, not yet saved, and what is known of it. `report.is_good` says whether the quality
        was reached; a predictor that is not good must not be used.

    Raises:
        Error: too little text, no torch for kind "mlp", or the model does not fit.
        ValueError: an option is out of range.
    """
    _check(options)
    material = Material.read(model, sequences, options)
    out = begin_sidecar(material, sidecar)
    predictors = _make(material, options, log)
    with stored(with_predictor(out, predictors, options, [0.0] * material.n_layer)) as path:
        slacks = measure_slacks(material.engine, material.calibrate, path)
    tried: dict[float, tuple[list[LayerThreshold | None], dict[str, float]]] = {}

    def is_good(missed_mass: float) -> bool:
        thresholds = [None if layer is None else choose_threshold(layer, missed_mass) for layer in slacks]
        with stored(with_predictor(out, predictors, options, _z(thresholds))) as path:
            found = _judge(material, options, path)
        log(f"missed mass {missed_mass:.2g}: KLD {found['mean_kld']:.3g}, "
            f"{Totals.of(thresholds).over_selection:.2f} candidates per active unit")  # fmt: skip
        tried[missed_mass] = thresholds, found
        return found["mean_kld"] <= options.max_kld

    chosen = largest_missed_mass(is_good)
    thresholds, found = tried[chosen] if chosen else min(tried.values(), key=lambda each: each[1]["mean_kld"])
    report = _report(material, options, predictors, thresholds, found)
    return with_predictor(out, predictors, options, _z(thresholds), report), report


def _check(options: PredictorOptions) -> None:
    def refuse(what: str, expected: object, got: object) -> None:
        raise ValueError(error_text("train-predictor", what, expected, got, "pass a value of that kind"))

    if options.kind not in KINDS:
        refuse("kind", ", ".join(KINDS), options.kind)
    if options.bits not in (1, 2, 3):
        refuse("bits", "1, 2 or 3", options.bits)
    if not 0 < options.max_kld < math.inf:
        refuse("max_kld", "a number above 0", options.max_kld)
    if options.dtype not in STORED_TYPES:
        refuse("dtype", ", ".join(STORED_TYPES), options.dtype)
    if not 0 < options.max_share <= 1:
        refuse("max_share", "a number above 0, up to 1", options.max_share)
    if options.n_ctx < 16:
        refuse("n_ctx", "at least 16", options.n_ctx)


def _make(material: Material, options: PredictorOptions, log: Callable[[str], None]) -> list[TwoLayer | None]:
    """The predictor of each layer; bit planes are made by the engine, from the model alone."""
    if options.kind == "bit_planes":
        return [None] * material.n_layer
    n_params = material.engine.stats()["model_n_params"]
    largest = int(options.max_share * n_params / material.n_layer / (material.n_embd + material.n_ff)) - 1
    if largest < RANK_STEP:
        raise Error(error_text("train-predictor", "share of the model's parameters", f"enough for rank {RANK_STEP}",
                               f"rank {largest}", "raise --max-share"))  # fmt: skip
    out: list[TwoLayer | None] = []
    for layer in range(material.n_layer):
        samples = material.samples(layer)
        learn, judge = samples.split(len(samples.inputs) * 4 // 5)
        detect, row_bytes = material.detect(layer)

        factors = Factors(detect, learn.inputs)

        def make(rank: int) -> TwoLayer:
            if options.kind == "low_rank":
                return factors.at(rank)
            return train(learn, with_relu(factors.at(rank // 2)), options.train)

        sized = best_size(make, judge, SIZING_MISSED_MASS, row_bytes, STORED_TYPES[options.dtype][1],
                          first_rank(samples, largest), largest)  # fmt: skip
        useful = sized.cost < material.n_ff * row_bytes
        out.append(sized.predictor if useful else None)
        log(f"layer {layer}: rank {sized.predictor.rank}, {100 * sized.selection.candidates:.1f} % of units named"
            + ("" if useful else "; left out, as it would read more than the detect matrix"))  # fmt: skip
    return out


def _judge(material: Material, options: PredictorOptions, sidecar: str) -> dict[str, float]:
    """Quality of mode predict on the test text, against exact execution."""
    from ..model import Model

    with Model(material.model.path, mode="predict", sidecar=sidecar, n_ctx=options.n_ctx,
               n_threads=material.engine.stats()["n_threads"]) as model:  # fmt: skip
        return _core.kl_divergence(model._open_engine(), material.test, options.n_ctx)


def _z(thresholds: Sequence[LayerThreshold | None]) -> list[float]:
    return [0.0 if t is None else t.z for t in thresholds]


def _report(
    material: Material,
    options: PredictorOptions,
    predictors: list[TwoLayer | None],
    thresholds: list[LayerThreshold | None],
    found: dict[str, float],
) -> PredictorReport:
    is_planes = options.kind == "bit_planes"
    n_weights = material.n_ff * material.n_embd
    layers = []
    for layer, (predictor, threshold) in enumerate(zip(predictors, thresholds)):
        if is_planes:
            n_bytes = n_weights * options.bits // 8
        else:
            n_bytes = stored_bytes(predictor, options.dtype) if predictor else 0
        layers.append(PredictorLayer(layer, predictor.rank if predictor else 0, n_bytes, threshold))
    stats = material.engine.stats()
    n_bytes = sum(layer.n_bytes for layer in layers)
    share = (n_bytes / stats["model_size"] if is_planes
             else sum(p.n_params for p in predictors if p) / stats["model_n_params"])  # fmt: skip
    return PredictorReport(
        options.kind, options.bits if is_planes else 0, layers, n_bytes,
        int(sum(material.detect_bytes(layer) for layer in range(material.n_layer))), share, Totals.of(thresholds),
        found["mean_kld"], found["same_top"], found["ppl"] / found["ppl_base"], options.max_kld,
    )  # fmt: skip
