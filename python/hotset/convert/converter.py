"""`convert()`: a Hugging Face checkpoint becomes one GGUF file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error, error_text
from .config import CheckpointConfig, read_config
from .gguf_file import GgufFile, atomic_path, encode, import_gguf, kFileTypes, stored_type
from .json_file import read_object
from .safetensors import Checkpoint
from .source import checkpoint_folder, is_powerinfer
from .tensors import TensorPlan, arrange, plan_tensors
from .vocabulary import Vocabulary, read_vocabulary

kDtypes = ("f32", "f16", "bf16", "q8_0", "q4_0")
kLayouts = ("neuron", "gguf")
kQuantizationVersion = 2


@dataclass
class ConvertReport:
    """What `convert` did."""

    out: Path
    dtype: str  # "" = those of the PowerInfer file
    layout: str
    n_tensors: int = 0
    n_params: int = 0
    n_bytes: int = 0
    fallbacks: list[str] = field(default_factory=list)
    """Names of the tensors stored in f16, because their rows do not fill whole blocks of 32."""
    notes: list[str] = field(default_factory=list)
    """What was left out or replaced, one sentence each."""


def convert(
    source: str | Path, out: str | Path, *, dtype: str | None = None, layout: str | None = None,
    log: Callable[[str], None] | None = None, force: bool = False, metadata: Mapping[str, str] | None = None,
) -> ConvertReport:  # fmt: skip
    """Converts a Hugging Face checkpoint (safetensors) of a family in `families.py`, or a PowerInfer file, to GGUF.

    Matrices get `dtype`, vectors and learned positions float32; the embedding and the output head are treated as every
    other matrix. The file appears under its name only when it is complete; on any failure nothing is left. Same input,
    same bytes. Memory: one tensor at a time.

    A PowerInfer file keeps its types and its layout; its predictor goes into the sidecar beside `out`.

    Args:
        source: a checkpoint folder, a PowerInfer file, or a repository `owner/name` of the Hugging Face hub, which is
            downloaded.
        out: the GGUF file to write.
        dtype: "f32", "f16", "bf16", "q8_0" (also None) or "q4_0".
        layout: "neuron" (also None) stores the down projection transposed, `ffn_down_t` (n_ff rows of n_embd), so that
            a unit is one row; "gguf" stores the standard `ffn_down`.
        log: takes progress lines, without newline.
        force: replaces an existing file.
        metadata: more keys of the file, all of `general.*`; `general.name` is the folder's name unless given here.

    Raises:
        ValueError: `dtype`, `layout` or `metadata` is none of the above, or given with a PowerInfer file.
        ModelFormatError: the checkpoint is damaged or incomplete.
        UnsupportedModelError: the checkpoint is of a kind that hotset does not run.
        Error: the output exists or cannot be written, the hub fails, or the package `gguf` is missing.
    """
    if is_powerinfer(source):
        if dtype is not None or layout is not None or metadata:
            what = "none for a PowerInfer file, which keeps its own"
            raise ValueError(error_text("convert", "type, layout and metadata", what, "some",
                                        "convert it without, then use `hotset quantize`"))  # fmt: skip
        return _convert_powerinfer(Path(source), Path(out), force, log)
    dtype, layout = "q8_0" if dtype is None else dtype, "neuron" if layout is None else layout
    _check_arguments(dtype, layout, metadata or {})
    import_gguf()
    target = _check_target(Path(out), force)
    report = ConvertReport(target, dtype, layout)
    tell = log or (lambda line: None)

    def note(line: str) -> None:
        report.notes.append(line.removeprefix("note: "))
        tell(line)

    folder, name = checkpoint_folder(source)
    config_object = read_object(folder / "config.json")
    config = read_config(config_object)
    with Checkpoint(folder) as checkpoint:
        plans = plan_tensors(config, checkpoint, neuron_major=layout == "neuron")
        vocabulary = read_vocabulary(folder, config_object, config.n_vocab, note)
        keys = _keys(config, vocabulary, report, {"general.name": _printable(name), **(metadata or {})})
        content = _Content(config.family.name, keys, config.rope.freqs if config.rope else None, plans, checkpoint)
        try:
            with atomic_path(target) as path:
                _write(path, content, report, tell)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Error(error_text("convert", f"output {target.name}", "a file that can be written", reason,
                                   "check the folder and its free space")) from error  # fmt: skip
    return report


def _convert_powerinfer(source: Path, target: Path, force: bool, log: Callable[[str], None] | None) -> ConvertReport:
    from .. import _core  # only here: converting checkpoints needs no native module
    from ..offline.sidecar import path_beside

    for path in (target, path_beside(target)):
        _check_target(path, force)
    n_tensors, n_params, n_bytes, sidecar = _core.convert_powerinfer(os.fspath(source), os.fspath(target))
    note = f"its predictor is in {sidecar}, for --mode predict" if sidecar else "it has no predictor"
    if log:
        log(f"note: {note}")
    return ConvertReport(target, "", "neuron", n_tensors, n_params, n_bytes, notes=[note])


def _check_arguments(dtype: str, layout: str, metadata: Mapping[str, str]) -> None:
    if dtype not in kDtypes:
        raise ValueError(error_text("convert", "dtype", " ".join(kDtypes), repr(dtype), "choose one of these"))
    if layout not in kLayouts:
        raise ValueError(error_text("convert", "layout", " ".join(kLayouts), repr(layout), "choose one of these"))
    taken = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
    for key, value in metadata.items():
        if not key.startswith("general.") or key in taken or not isinstance(value, str):
            raise ValueError(error_text("convert", "metadata", "general.NAME and a text, not a key that convert sets",
                                        repr(key), "choose another key"))  # fmt: skip


def _check_target(target: Path, force: bool) -> Path:
    if not target.absolute().parent.is_dir():
        raise Error(error_text("convert", "output", "an existing folder", f"{str(target.parent)!r}", "create it first"))
    if target.is_dir() or (target.exists() and not force):
        remedy = "name a file" if target.is_dir() else "pass --force (force=True) to replace it"
        raise Error(error_text("convert", "output", "a new file", f"{str(target)!r}, which exists", remedy))
    return target


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _keys(
    config: CheckpointConfig, vocabulary: Vocabulary, report: ConvertReport, general: dict[str, str]
) -> dict[str, Any]:
    keys: dict[str, Any] = dict(general)
    keys["general.file_type"] = kFileTypes[report.dtype]
    keys["general.quantization_version"] = kQuantizationVersion
    model: dict[str, Any] = {
        "context_length": config.n_ctx, "embedding_length": config.n_embd, "block_count": config.n_layer,
        "feed_forward_length": config.n_ff, "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_head_kv, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }  # fmt: skip
    epsilon = "layer_norm_epsilon" if config.family.norms_have_biases else "layer_norm_rms_epsilon"
    model[f"attention.{epsilon}"] = config.norm_eps
    if config.rope:
        model.update({"rope.dimension_count": config.rope.n_rot, "rope.freq_base": config.rope.freq_base})
    model.update({"vocab_size": config.n_vocab, "hidden_activation": config.hidden_activation})
    if config.rope:
        model.update({f"rope.{name}": value for name, value in config.rope.keys.items()})
    optional = {
        "hidden_activation_threshold": config.activation_threshold, "attention.sliding_window": config.window,
        "attention.sliding_window_pattern": config.windowed_layers, "attention.scale": config.attention_scale,
        "attn_logit_softcapping": config.softcaps[0], "final_logit_softcapping": config.softcaps[1],
    }  # fmt: skip
    model.update({name: value for name, value in optional.items() if value is not None})
    keys.update((f"{config.family.name}.{name}", value) for name, value in model.items())
    if report.layout == "neuron":
        keys["hotset.layout"] = "neuron"
    keys.update(vocabulary.keys())
    return keys


@dataclass
class _Content:
    """Everything that goes into the file."""

    architecture: str
    keys: dict[str, Any]
    rope_freqs: np.ndarray | None
    plans: list[TensorPlan]
    checkpoint: Checkpoint


def _write(path: Path, content: _Content, report: ConvertReport, log: Callable[[str], None]) -> None:
    """Writes the whole file to `path` and fills in the report."""
    plans, rope_freqs = content.plans, content.rope_freqs
    types = [plan.dtype or stored_type(plan.shape, report.dtype) for plan in plans]
    file = GgufFile(path, content.architecture)
    try:
        file.add_keys(content.keys)
        if rope_freqs is not None:
            file.describe_tensor("rope_freqs.weight", rope_freqs.shape, "f32")
        sizes = [file.describe_tensor(plan.name, plan.shape, kind) for plan, kind in zip(plans, types, strict=True)]
        file.start()
        if rope_freqs is not None:
            file.write_tensor(rope_freqs)
        for i, (plan, kind, size) in enumerate(zip(plans, types, sizes, strict=True)):
            fallback = kind == "f16" and report.dtype != "f16"
            reason = f" (rows of {plan.shape[-1]} do not fill blocks of 32)" if fallback else ""
            shape = "x".join(str(count) for count in plan.shape)
            log(f"[{i + 1}/{len(plans)}] {plan.name} {shape} {kind}{reason}, {size} bytes")
            file.write_tensor(encode(arrange(plan, content.checkpoint.raw(plan.source)), kind, plan.name))
            content.checkpoint.release_pages()
            report.n_params += math.prod(plan.shape)
            report.fallbacks += [plan.name] if fallback else []
    finally:
        file.close()
    report.n_tensors = len(plans) + (rope_freqs is not None)
    report.n_bytes = path.stat().st_size
