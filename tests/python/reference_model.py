"""Reference forward pass of GGUF files of every family, in NumPy and float64: the oracle of tests.

Slow and plain on purpose: it dequantises every tensor and computes all positions at once, so its results depend on no
order of sums that matters at float64 precision. Needs the packages numpy and gguf; nothing of hotset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FfnObserver = Callable[[int, np.ndarray], None]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Returns x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Returns (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return rms_norm(centred, weight, eps) + bias


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    """Returns relu(x), relu(x)^2 or silu(x)."""
    if kind in ("relu", "relu2"):
        return np.maximum(x, 0.0) ** (1 if kind == "relu" else 2)
    assert kind == "silu", kind
    return x / (1.0 + np.exp(-x))


def causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns attention of q (n_tokens, n_head, head_dim) over k and v (n_tokens, n_head_kv, head_dim)."""
    n_tokens, n_head, head_dim = q.shape
    group = n_head // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head_dim)
    scores[:, np.triu(np.ones((n_tokens, n_tokens), dtype=bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(n_tokens, n_head * head_dim)


class ReferenceModel:
    """A model file of one of the families; `keys` and `tensors` (float64, rows first) by GGUF name."""

    def __init__(self, path: str | Path) -> None:
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)
        self.keys: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.arch: str = self.keys["general.architecture"]
        assert self.arch in ("llama", "arcee", "nemotron", "opt"), self.arch
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors: dict[str, np.ndarray] = {}
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            self.tensors[tensor.name] = values.reshape(tuple(tensor.shape)[::-1]).astype(np.float64)

    def _key(self, name: str, default: Any = None) -> Any:
        value = self.keys.get(f"{self.arch}.{name}", default)
        assert value is not None, name
        return value

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        weight = self.tensors[name + ".weight"]
        if self.arch in ("llama", "arcee"):
            return rms_norm(x, weight, self._key("attention.layer_norm_rms_epsilon"))
        return layer_norm(x, weight, self.tensors[name + ".bias"], self._key("attention.layer_norm_epsilon"))

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotates pair i of the first n_rot elements of each head of x (n_tokens, n_head, head_dim) by position *
        frequency i: elements (2 i, 2 i + 1), or nemotron's (i, i + n_rot / 2)."""
        if self.arch == "opt":
            return x
        n_tokens, _, head_dim = x.shape
        n_rot = self._key("rope.dimension_count", head_dim)
        frequency = self._key("rope.freq_base", 10000.0) ** (-np.arange(0, n_rot, 2) / n_rot)
        frequency = frequency / self.tensors.get("rope_freqs.weight", 1.0)
        if self.keys.get(f"{self.arch}.rope.scaling.type") == "linear":
            frequency = frequency / self._key("rope.scaling.factor")
        angle = (np.arange(n_tokens)[:, None] * frequency)[:, None, :]
        pairs = (slice(0, n_rot // 2), slice(n_rot // 2, n_rot))
        if self.arch != "nemotron":
            pairs = (slice(0, n_rot, 2), slice(1, n_rot, 2))
        first, second = x[..., pairs[0]], x[..., pairs[1]]
        out = x.copy()
        out[..., pairs[0]] = first * np.cos(angle) - second * np.sin(angle)
        out[..., pairs[1]] = first * np.sin(angle) + second * np.cos(angle)
        return out

    def _attention(self, x: np.ndarray, layer: int) -> np.ndarray:
        def project(name: str, n_head: int) -> np.ndarray:
            return self._linear(x, f"blk.{layer}.attn_{name}").reshape(len(x), n_head, -1)

        n_head = self._key("attention.head_count")
        n_head_kv = self._key("attention.head_count_kv", n_head)
        q, k = self._rotate(project("q", n_head)), self._rotate(project("k", n_head_kv))
        return self._linear(causal_attention(q, k, project("v", n_head_kv)), f"blk.{layer}.attn_output")

    def _ffn(self, x: np.ndarray, layer: int, observe: FfnObserver | None) -> np.ndarray:
        name = f"blk.{layer}.ffn_"
        is_gated = name + "gate.weight" in self.tensors
        usual = {"llama": "silu", "opt": "relu"}.get(self.arch, "relu2")
        active = activate(self._linear(x, name + ("gate" if is_gated else "up")), self._key("hidden_activation", usual))
        if observe:
            observe(layer, active)
        hidden = active * self._linear(x, name + "up") if is_gated else active
        if name + "down_t.weight" in self.tensors:
            return hidden @ self.tensors[name + "down_t.weight"] + self.tensors.get(name + "down.bias", 0.0)
        return self._linear(hidden, name + "down")

    def logits(self, tokens: Sequence[int], observe: FfnObserver | None = None) -> np.ndarray:
        """Returns logits (n_tokens, n_vocab) of one sequence from position 0.

        Args:
            tokens: ids, the start token included where the model wants one.
            observe: called as observe(layer, activation(gate, or up without a gate)) with an array (n_tokens, n_ff).
        """
        x = self.tensors["token_embd.weight"][np.asarray(tokens, dtype=np.int64)]
        if self.arch == "opt":
            x = x + self.tensors["position_embd.weight"][: len(tokens)]
        for layer in range(self._key("block_count")):
            x = x + self._attention(self._norm(x, f"blk.{layer}.attn_norm"), layer)
            x = x + self._ffn(self._norm(x, f"blk.{layer}.ffn_norm"), layer, observe)
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self._norm(x, "output_norm") @ head.T

    def greedy(self, tokens: Sequence[int], n_new: int) -> list[int]:
        """Returns the `n_new` most probable next tokens, one after the other (quadratic cost)."""
        ids = list(tokens)
        for _ in range(n_new):
            ids.append(int(np.argmax(self.logits(ids)[-1])))
        return ids[len(tokens) :]


def token_nll(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Returns -log p(tokens[i + 1] | tokens[: i + 1]) for logits (n_tokens, n_vocab): n_tokens - 1 values in nat."""
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    following = np.asarray(tokens[1:], dtype=np.int64)
    return log_sum[:-1] - logits[np.arange(len(following)), following]
