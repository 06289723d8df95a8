"""Writes a llama GGUF with random weights in the standard layout, for benchmarks against other engines.

    python tools/make_random_llama.py VOCAB.gguf OUT.gguf [--type f16|q8_0|q4_0] [--n-layer 16 --n-embd 2048 ...]

The vocabulary is copied from VOCAB.gguf (SentencePiece kind). Needs the packages numpy and gguf.
"""

from __future__ import annotations

import argparse

import gguf
import numpy as np

TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def copy_vocabulary(source: str, writer: gguf.GGUFWriter) -> int:
    """Copies a SentencePiece vocabulary; returns its size."""
    fields = gguf.GGUFReader(source).fields

    def values(key: str) -> list:
        field = fields[f"tokenizer.ggml.{key}"]
        return [field.parts[index] for index in field.data]

    tokens = [bytes(part) for part in values("tokens")]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(part[0]) for part in values("scores")])
    writer.add_token_types([int(part[0]) for part in values("token_type")])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary")
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, default="f16")
    sizes = {"n_layer": 16, "n_embd": 2048, "n_ff": 8192, "n_head": 32, "n_head_kv": 8, "seed": 1}
    for name, value in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    args = parser.parse_args()
    head_dim = args.n_embd // args.n_head

    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name("random llama")
    writer.add_block_count(args.n_layer)
    writer.add_embedding_length(args.n_embd)
    writer.add_feed_forward_length(args.n_ff)
    writer.add_head_count(args.n_head)
    writer.add_head_count_kv(args.n_head_kv)
    writer.add_context_length(4096)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_string("llama.hidden_activation", "silu")
    n_vocab = copy_vocabulary(args.vocabulary, writer)
    writer.add_vocab_size(n_vocab)

    rng = np.random.default_rng(args.seed)
    dtype = TYPES[args.type]

    def matrix(name: str, n_in: int, n_out: int) -> None:
        values = rng.standard_normal((n_out, n_in), dtype=np.float32) * np.float32(0.7 / n_in**0.5)
        writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(args.n_embd, np.float32))

    matrix("token_embd.weight", args.n_embd, n_vocab)
    norm("output_norm.weight")
    matrix("output.weight", args.n_embd, n_vocab)
    n_q, n_kv = args.n_head * head_dim, args.n_head_kv * head_dim
    for layer in range(args.n_layer):
        prefix = f"blk.{layer}."
        norm(prefix + "attn_norm.weight")
        norm(prefix + "ffn_norm.weight")
        matrix(prefix + "attn_q.weight", args.n_embd, n_q)
        matrix(prefix + "attn_k.weight", args.n_embd, n_kv)
        matrix(prefix + "attn_v.weight", args.n_embd, n_kv)
        matrix(prefix + "attn_output.weight", n_q, args.n_embd)
        matrix(prefix + "ffn_gate.weight", args.n_embd, args.n_ff)
        matrix(prefix + "ffn_up.weight", args.n_embd, args.n_ff)
        matrix(prefix + "ffn_down.weight", args.n_ff, args.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
