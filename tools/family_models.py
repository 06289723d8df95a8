"""Writes a model of random weights of every family that llama.cpp has too, for tools/compare_logits.py.

    python tools/family_models.py FOLDER

FAMILY.gguf: F32 in the standard layout, 2 M parameters, rows that are whole blocks of every type (`hotset quantize
--layout gguf` gives the others), a vocabulary of bytes. Weights are those of tests/python/hf_checkpoint.py; needs
`hotset[convert]`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import hf_checkpoint as hf  # noqa: E402

from hotset.convert import convert  # noqa: E402

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 1024}
HEADS = {"head_dim": 64}
WINDOW = {"sliding_window": 100, "query_pre_attn_scalar": 64, **HEADS}
# llama.cpp computes GELU of falcon by its approximation.
FAMILIES = {
    "llama": {},
    "qwen2": hf.QWEN2,
    "qwen3": {**hf.QWEN3, **HEADS},
    "gemma2": {**hf.GEMMA2, **WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {**hf.GEMMA3, **WINDOW},
    "arcee": hf.ARCEE,
    "nemotron": {**hf.NEMOTRON, "tie_word_embeddings": False},
    "jais2": hf.JAIS2,
    "falcon": {**hf.FALCON, "ffn_hidden_size": 512},
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, changes) in enumerate(FAMILIES.items()):
        config = hf.shaped(**SIZES, **{"intermediate_size": 512, **changes})
        with tempfile.TemporaryDirectory() as checkpoint:
            hf.write_checkpoint(Path(checkpoint), config, hf.random_weights(config, seed))
            report = convert(checkpoint, folder / f"{name}.gguf", dtype="f32", layout="gguf", force=True)
        print(f"{report.out}: {report.n_params} parameters")


if __name__ == "__main__":
    main()
