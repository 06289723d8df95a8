"""
Native half of hotset. Use the classes of the package `hotset`; names in here may change.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray


def version() -> str:
    """Version of the library."""

def build_commit() -> str:
    """Commit the library was built from, or "" when unknown."""

class Engine:
    """A loaded model and the engine that runs it."""

    def __init__(self, path: str, *, activation: str, mode: str, predictor: str, sidecar: str, device: str, kv_type: str, kv_place: str, vram_budget: int | None, adapt: str, pin: str, n_ctx: int, n_threads: int, n_batch: int, log: Callable[[bool, str], None]) -> None: ...

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]: ...

    def detokenize(self, ids: Sequence[int], special: bool) -> bytes: ...

    def logits(self, tokens: Sequence[int]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
        """Logits (n_tokens, n_vocab) of every position."""

    def stats(self) -> dict[str, Any]: ...

    def metadata(self) -> list[tuple[str, str, str]]:
        """Tuples (key, type, value) of the file, as `hotset inspect` shows them."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def chat_templates(self) -> list[tuple[bytes, bytes]]:
        """Names and texts of the file's chat templates."""

    @property
    def control_tokens(self) -> list[tuple[int, bytes]]:
        """Ids and texts of tokens that plain text never becomes."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def name(self) -> str: ...

    @property
    def n_vocab(self) -> int: ...

class Session:
    """A conversation: its tokens and their keys and values."""

    @staticmethod
    def open(engine: Engine) -> Session: ...

    @staticmethod
    def load(engine: Engine, path: str) -> Session: ...

    def tokens(self) -> list[int]: ...

    def n_past(self) -> int: ...

    def append(self, tokens: Sequence[int]) -> None: ...

    def truncate(self, n: int) -> None: ...

    def fork(self, n: int | None) -> Session: ...

    def save(self, path: str) -> None: ...

class Generation:
    """One pass over one or several prompts."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, repeat_last_n: int, seed: int | None, stop: Sequence[str], ignore_eos: bool, context_shift: bool, reuse: bool, use_processor: bool, session: Session | None) -> None: ...

    def next(self, processor: Callable[[int, numpy.ndarray], object] | None) -> list[tuple[int, str, float, int, int, str]] | None:
        """
        Tuples (id, text, logprob, index, sequence, finish reason), or None when all sequences are finished.
        """

    def cancel(self) -> None:
        """Ends the generation within a token; may be called from any thread."""

    def stats(self) -> dict[str, Any]: ...

def judge_starts(starts: Sequence[tuple[str, bytes, int]], activation: str) -> dict[str, Any]:
    """
    Loads a model without its data: of each shard its name, first bytes and bytes in all. Raises what loading would; `n_needed` of the result is how many first bytes of each file that takes, 0 where they suffice.
    """

def plan(path: str, *, load: dict[str, Any], vram_budget: int, frequencies: Sequence[numpy.ndarray], machine: str, gpu_gbps: float | None, pcie_gbps: float | None, handoff_us: float | None) -> dict[str, Any]:
    """
    What `hotset plan --json` prints, of a model with the keywords that Engine takes.
    """

def place(problem: dict[str, Any]) -> dict[str, Any]:
    """Solves a placement problem: see hotset.offline.placement.Problem."""

def evaluate_placement(problem: dict[str, Any], placement: dict[str, Any]) -> tuple[float, int]:
    """Predicted seconds of a token, and bytes on the device."""

def kl_divergence(engine: Engine, tokens: Sequence[int], n_ctx: int) -> dict[str, Any]:
    """
    How far an engine's predictions are from dense ones on the same weights.
    """

def tensor(engine: Engine, name: str) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C')]:
    """
    A tensor of the model's file as float32 (n_rows, n_cols), a vector as one row.
    """

def tensor_info(engine: Engine, name: str) -> tuple[int, int, int] | None:
    """
    Rows, columns and bytes of a tensor of the model's file; None without one.
    """

def convert_powerinfer(input: str, output: str) -> tuple[int, int, int, str]:
    """
    Writes a PowerInfer file as GGUF and sidecar: tensors, parameters, bytes, path of the sidecar or "".
    """

def quantize(values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], type: str) -> bytes:
    """Rows of a matrix in a stored type."""

class Calibrator:
    """
    Counts units by the slack they need to be candidates. Used by one thread at a time.
    """

    def __init__(self, engine: Engine, *, predictor: str, sidecar: str, n_ctx: int, n_threads: int, n_batch: int, low: float, high: float, n_bins: int) -> None: ...

    def add(self, sequences: Sequence[Sequence[int]]) -> None: ...

    def layers(self) -> list[dict[str, Any] | None]:
        """
        For each layer arrays (n_bins) `units`, `active` and `mass`; None without a predictor.
        """

class Profiler:
    """Counts the active units of a model. Used by one thread at a time."""

    def __init__(self, engine: Engine, *, kv_type: str, n_ctx: int, n_threads: int, n_batch: int, n_samples: int, device: str = 'auto', vram_budget: int | None = None, n_sequences: int = 0) -> None: ...

    def calibrate(self, sequences: Sequence[Sequence[int]], share: float) -> None: ...

    def add(self, sequences: Sequence[Sequence[int]]) -> None: ...

    @property
    def n_tokens(self) -> int: ...

    def down_norms(self) -> Annotated[NDArray[numpy.float64], dict(shape=(None, None), order='C')]:
        """Lengths of the down rows (n_layer, n_ff)."""

    def state(self) -> dict[str, Any]:
        """What was counted, by the names of restore()."""

    def restore(self, *, n_tokens: int, counts: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], h_sums: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order='C', device='cpu', writable=False)], overlaps: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], thresholds: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], sample_tokens: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sample_inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], sample_masks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None), order='C', device='cpu', writable=False)]) -> None: ...

def pre_token_lengths(name: str, text: bytes) -> list[int]:
    """
    Bytes of each piece that a pre-tokenizer (`tokenizer.ggml.pre`) cuts a text into.
    """

class Tokenizer:
    """The tokenizer of a file, which may lack the model."""

    def __init__(self, path: str) -> None: ...

    def encode(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], special: bool) -> bytes: ...
