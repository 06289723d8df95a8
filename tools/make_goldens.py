"""Computes the logits that Hugging Face transformers gives for the models of tests/python/golden_models.py.

    python tools/make_goldens.py

Writes tests/python/goldens/NAME.npz: `tokens` int32 (n_tokens), `logits` float32 (n_tokens, n_vocab), and the
`fingerprint` of the weights, which are random numbers of NumPy and not stored. Needs torch, transformers and numpy.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from golden_models import FOLDER, GOLDENS, TOKENS, fingerprint, golden_weights  # noqa: E402


def make_network(config: dict[str, Any]) -> Any:
    """Returns the network of transformers for a config.json object, with its own random weights."""
    import transformers

    # A copy, because transformers writes into nested objects.
    settings = copy.deepcopy({name: value for name, value in config.items() if name != "architectures"})
    architecture, rule = config["architectures"][0], settings.get("hidden_act")
    if architecture == "BambooForCausalLM":  # PowerInfer's: Mistral but for the FFN; transformers has another one
        architecture, rule = "MistralForCausalLM", "drelu"
        settings.update(model_type="mistral", sliding_window=None)
    if rule == "fatrelu":
        settings["hidden_act"] = "relu"
    kind = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    network = getattr(transformers, architecture)(kind).eval()
    change_activation(network, rule, config.get("hidden_act_param"))
    return network


def change_activation(network: Any, rule: str | None, threshold: float | None) -> None:
    """Gives a network the activations that transformers does not have."""
    import torch

    if rule == "fatrelu":

        class FatRelu(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return torch.where(x > threshold, x, torch.zeros_like(x))

        for layer in network.model.layers:
            layer.mlp.act_fn = FatRelu()
    if rule == "drelu":  # max(gate, 0) * max(up, 0)
        for layer in network.model.layers:
            layer.mlp.up_proj.register_forward_hook(lambda module, inputs, output: torch.relu(output))


def transformers_logits(config: dict[str, Any], weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Returns the logits (n_tokens, n_vocab) of a checkpoint, computed in float64 where transformers lets us.

    Raises:
        RuntimeError: the weights are not those that transformers expects for this config.
    """
    import torch

    network = make_network(config)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    if network.config.tie_word_embeddings:
        state["lm_head.weight"] = state[next(iter(state))]  # the first is the embedding
    network.load_state_dict(state, strict=True)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return network.double()(torch.tensor([tokens])).logits[0].numpy()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, config in GOLDENS.items():
        weights = golden_weights(name)
        logits = transformers_logits(config, weights, TOKENS).astype(np.float32)
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, tokens=np.array(TOKENS, np.int32), logits=logits, fingerprint=fingerprint(weights))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
