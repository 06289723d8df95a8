"""Reader of SentencePiece `tokenizer.model` files: the few protobuf fields that a tokenizer needs, bounds-checked.

Field numbers: sentencepiece_model.proto of google/sentencepiece. Unknown fields are skipped, as protobuf prescribes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import ModelFormatError, UnsupportedModelError, error_text

kWhere = "tokenizer.model"
kMaxPieces = 1 << 22
# Piece types; GGUF's token types use the same numbers.
kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte = range(1, 7)
kModelTypes = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_kVarint, _kFixed64, _kBytes, _kFixed32 = 0, 1, 2, 5


@dataclass
class SentencePieceModel:
    """The content of a `tokenizer.model`; the defaults are those of the format. Absent special ids are -1."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    model_type: int = 1
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    whitespace_as_suffix: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    has_charsmap: bool = False


def _damaged(what: str, expected: object, got: object) -> ModelFormatError:
    return ModelFormatError(error_text(kWhere, what, expected, got, "download the tokenizer again"))


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if position + i >= len(data):
            raise _damaged("varint", "its end within the message", "end of message")
        byte = data[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + i + 1
    raise _damaged("varint", "at most 10 bytes", "more")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yields (field number, wire type, value) of a message; the value is an integer for varints, else bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _kVarint:
            value, position = _read_varint(data, position)
            yield number, wire, value
            continue
        if wire == _kBytes:
            length, position = _read_varint(data, position)
        elif wire in (_kFixed64, _kFixed32):
            length = 8 if wire == _kFixed64 else 4
        else:
            raise _damaged("wire type", "0, 1, 2 or 5", wire)
        if number == 0 or length > len(data) - position:
            raise _damaged(f"field {number}", f"at most {len(data) - position} bytes", length)
        yield number, wire, data[position : position + length]
        position += length


def _typed(wire: int, value: int | memoryview, expected: int, what: str) -> int | memoryview:
    if wire != expected:
        raise _damaged(what, f"wire type {expected}", wire)
    return value


def _signed32(value: int) -> int:
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _read_piece(model: SentencePieceModel, data: memoryview) -> None:
    text, score, kind = "", 0.0, kNormal
    what = f"piece {len(model.pieces)}"
    for number, wire, value in _fields(data):
        if number == 1:
            try:
                text = bytes(_typed(wire, value, _kBytes, what)).decode("utf-8")
            except UnicodeDecodeError:
                raise _damaged(what, "UTF-8 text", "invalid bytes") from None
        elif number == 2:
            (score,) = struct.unpack("<f", _typed(wire, value, _kFixed32, what))
        elif number == 3:
            kind = _typed(wire, value, _kVarint, what)
    if not text or not math.isfinite(score) or not kNormal <= kind <= kByte:
        raise _damaged(what, "a text, a finite score and a type from 1 to 6", (text, score, kind))
    if len(model.pieces) == kMaxPieces:
        raise _damaged("pieces", f"at most {kMaxPieces}", "more")
    model.pieces.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _read_flags(model: SentencePieceModel, data: memoryview, names: dict[int, str]) -> None:
    """Stores the varint fields listed in `names` as attributes of the same kind (bool or int)."""
    for number, wire, value in _fields(data):
        name = names.get(number)
        if name is not None:
            number32 = _signed32(_typed(wire, value, _kVarint, name))
            setattr(model, name, type(getattr(model, name))(number32))
        elif number == 2 and "add_dummy_prefix" in names.values() and wire == _kBytes:
            model.has_charsmap = len(value) > 0


_kTrainerFields = {3: "model_type", 24: "whitespace_as_suffix", 40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
_kNormalizerFields = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parses a `tokenizer.model`.

    Raises:
        ModelFormatError: the bytes are no SentencePiece model.
        UnsupportedModelError: the model is not of kind BPE, or treats blanks differently from LLaMA.
    """
    model = SentencePieceModel()
    for number, wire, value in _fields(memoryview(data)):
        if number == 1:
            _read_piece(model, _typed(wire, value, _kBytes, "pieces"))
        elif number == 2:
            _read_flags(model, _typed(wire, value, _kBytes, "trainer_spec"), _kTrainerFields)
        elif number == 3:
            _read_flags(model, _typed(wire, value, _kBytes, "normalizer_spec"), _kNormalizerFields)
    if not model.pieces:
        raise _damaged("pieces", "at least one", "none")
    remedy = "convert a checkpoint with a LLaMA-like tokenizer"
    if model.model_type != 2:
        got = kModelTypes.get(model.model_type, model.model_type)
        raise UnsupportedModelError(error_text(kWhere, "model_type", "bpe", got, remedy))
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        got = "as suffix" if model.whitespace_as_suffix else "unescaped"
        raise UnsupportedModelError(error_text(kWhere, "blanks", "escaped, as prefix", got, remedy))
    return model
