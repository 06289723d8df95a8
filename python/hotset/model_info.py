"""What is known about a loaded model: its figures and the values of its file."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What a model runs on and what it costs; byte counts are exact.

    Attributes:
        model: kind and type, as the benchmark table prints it.
        model_size: bytes of all weights.
        model_n_params: number of weights.
        device: "cpu", "cuda", or "virtual" with a pretend card.
        isa: CPU kernels in use.
        mode: mode in effect.
        predictor: "bit_planes:2", "low_rank", "mlp"; "" in other modes than "predict".
        kv_type: type of the KV cache in effect.
        n_threads: threads that compute.
        n_ctx: positions a sequence may reach.
        weight_bytes: bytes mapped from the file.
        weight_bytes_per_token: bytes of weights that one token reads when no unit is skipped.
        skippable_bytes_per_token: those of them that mode "exact" reads for active units only.
        relayout_bytes: bytes made at load for mode "exact", in place of as much of the mapped file.
        detect_bytes_per_token: those of them that mode "predict" reads for candidates only.
        predictor_bytes: bytes made at load for mode "predict".
        predictor_bytes_per_token: bytes that mode "predict" reads besides.
        active_share: share of units that were active in exact steps so far; None before the first.
        over_selection: candidates for each active unit in mode "predict" so far; None in other modes.
        kv_bytes_per_position: bytes of KV cache that one position takes.
        buffer_bytes: bytes of activations and scratch, of all devices.
        device_bytes: bytes taken of an accelerator's memory: weights, KV cache and buffers; 0 without one.
        device_weight_bytes: those of them that are weights.
        device_kv_bytes: those of them that are keys and values.
        arena_bytes: bytes of host memory with copies of cold units' rows.
        shared_bytes: bytes of host memory through which host and accelerator exchange their work.
        cold_share: share of the active units that the host computed so far; None on the CPU and where all are computed.
        n_swaps: hot and cold units that have changed places.
        gpu_active_share: share of the active units that the accelerator has, as far as frequencies are known; None
            without one.
    """

    model: str
    model_size: int
    model_n_params: int
    device: str
    isa: str
    mode: str
    predictor: str
    kv_type: str
    n_threads: int
    n_ctx: int
    weight_bytes: int
    weight_bytes_per_token: int
    skippable_bytes_per_token: int
    relayout_bytes: int
    detect_bytes_per_token: int
    predictor_bytes: int
    predictor_bytes_per_token: int
    active_share: float | None
    over_selection: float | None
    kv_bytes_per_position: int
    buffer_bytes: int
    device_bytes: int
    device_weight_bytes: int
    device_kv_bytes: int
    arena_bytes: int
    shared_bytes: int
    cold_share: float | None
    n_swaps: int
    gpu_active_share: float | None


@dataclass(frozen=True, slots=True)
class KldResult:
    """How far a mode's predictions are from dense ones on the same weights, over the scored positions of a text.

    Attributes:
        mean_kld: mean Kullback-Leibler divergence in nats.
        kld_error: its standard error.
        kld_p999: 99.9 % of the positions lie below.
        kld_max: the largest.
        same_top: share of positions at which both put the same token first.
        ppl: perplexity of the mode.
        ppl_base: perplexity of dense execution.
        n_tokens: scored positions.
    """

    mean_kld: float
    kld_error: float
    kld_p999: float
    kld_max: float
    same_top: float
    ppl: float
    ppl_base: float
    n_tokens: int


def metadata_value(kind: str, text: str) -> str | int | float | bool:
    """Turns a value as `inspect` shows it back into what it is."""
    if kind == "str":
        literal, _, rest = text.rpartition('"')  # quoted as a bytes literal is, then "..." where it was cut
        value: bytes = ast.literal_eval(f'b{literal}"')
        return value.decode("utf-8", "replace") + rest
    if kind == "bool":
        return text == "true"
    if kind in ("f32", "f64"):
        return float(text)
    return text if kind.startswith("arr") else int(text)
