"""Conversion of Hugging Face checkpoints to GGUF: `convert()` and the command `hotset convert`.

The path of a conversion: `source` finds the folder, `config` reads the hyperparameters with the table of `families`,
`safetensors` maps the weights, `tensors` says which tensor becomes which, `vocabulary` (with `sentencepiece` and
`tokenizer_json`) reads the tokenizer, `gguf_file` writes, `converter` joins them.
"""

from .command import add_arguments, main
from .converter import ConvertReport, convert, kDtypes, kLayouts

__all__ = ["ConvertReport", "add_arguments", "convert", "kDtypes", "kLayouts", "main"]
