"""The order of units, hottest first, in the form that `hotset quantize --order` reads."""

from __future__ import annotations

import struct

from .statistics import Statistics

_ALIGNMENT = 32
_STRING, _I32 = 8, 26  # GGUF's numbers of a text value and of a tensor type


def sidecar_bytes(statistics: Statistics) -> bytes:
    """Returns a sidecar (GGUF) with nothing but the model's fingerprint and, per layer N, `blk.N.unit_of_slot`."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    keys = {"general.architecture": "hotset-sidecar", "hotset.model_fingerprint": statistics.model_fingerprint}
    head = b"GGUF" + struct.pack("<IQQ", 3, statistics.n_layer, len(keys))
    head += b"".join(text(key) + struct.pack("<I", _STRING) + text(value) for key, value in keys.items())
    data = b""
    for layer in range(statistics.n_layer):
        units = statistics.order(layer).astype("<i4")
        head += text(f"blk.{layer}.unit_of_slot") + struct.pack("<IQIQ", 1, len(units), _I32, len(data))
        data += units.tobytes() + bytes(-units.nbytes % _ALIGNMENT)
    return head + bytes(-len(head) % _ALIGNMENT) + data

