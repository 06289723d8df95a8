"""Sidecars: what is written is read back, by us and by the `gguf` package; damaged files are refused; nothing is half."""

from __future__ import annotations

import numpy as np
import pytest

from hotset.errors import Error, ModelFormatError
from hotset.offline.gguf_parts import ARRAY, STRING, RawTensor, raw_value, read_parts
from hotset.offline.sidecar import Sidecar, StoredPlacement, path_beside

FINGERPRINT = "0123456789abcdef0123456789abcdef"
N_LAYER, N_FF = 12, 40


def placement(**changes) -> StoredPlacement:
    values = {
        "vram_budget": 8 << 30, "n_ctx": 4096, "machine": "Böhm & Söhne", "n_hot": list(range(N_LAYER)),
        "detect": ["device", "split", "host"] * 4, "attention": ["device", "host"] * 6, "head": "device",
        "predicted_tg_ts": 12.25, "gap": 1e-4,
    }  # fmt: skip
    return StoredPlacement(**{**values, **changes})


def sidecar(seed: int = 1) -> Sidecar:
    random = np.random.default_rng(seed)
    out = Sidecar(FINGERPRINT, N_LAYER)
    out.set_frequencies([np.round(random.random(N_FF), 1) for _ in range(N_LAYER)])
    out.placement = placement()
    return out


def with_predictor(out: Sidecar) -> Sidecar:
    out.keys["hotset.predictor.kind"] = raw_value(STRING, "low_rank")
    out.keys["hotset.predictor.thresholds"] = raw_value(ARRAY, [0.5] * N_LAYER, 6)
    random = np.random.default_rng(2)
    for layer in range(N_LAYER):
        for name, shape, n_bytes in (("fc1.weight", (32, 5), 5 * 34), ("fc2.weight", (5, N_FF), 20 * N_FF)):
            kind = 8 if name == "fc1.weight" else 0
            out.tensors[f"blk.{layer}.predictor.{name}"] = RawTensor(shape, kind, random.bytes(n_bytes))
        out.tensors[f"blk.{layer}.predictor.bias"] = RawTensor((N_FF,), 0, random.bytes(4 * N_FF))
    return out


def test_written_is_read_back_and_equal_sidecars_are_equal_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    with_predictor(sidecar()).save(first)
    with_predictor(sidecar()).save(second)
    assert first.read_bytes() == second.read_bytes()
    back = Sidecar.load(first, FINGERPRINT)
    wanted = with_predictor(sidecar())
    assert (back.model_fingerprint, back.n_layer, back.placement) == (FINGERPRINT, N_LAYER, placement())
    for layer in range(N_LAYER):
        np.testing.assert_array_equal(back.unit_of_slot[layer], wanted.unit_of_slot[layer])
        np.testing.assert_array_equal(back.unit_freq[layer], wanted.unit_freq[layer])
    assert back.keys == wanted.keys and back.tensors == wanted.tensors
    back.save(second)
    assert first.read_bytes() == second.read_bytes()


def test_keys_and_values_apart_from_attention_are_optional_and_checked(tmp_path):
    path = tmp_path / "a"
    out = sidecar()
    out.placement = placement(kv=["host"] + ["device"] * (N_LAYER - 1))
    out.save(path)
    assert Sidecar.load(path, FINGERPRINT).placement == out.placement
    out.placement = placement(kv=["here"] * N_LAYER)
    out.save(path)
    with pytest.raises(ModelFormatError, match="hotset.placement.kv"):
        Sidecar.load(path, FINGERPRINT)


def test_order_is_descending_and_ties_go_by_unit_number():
    out = Sidecar(FINGERPRINT, 1)
    out.set_frequencies([np.array([0.5, 0.25, 0.5, 1.0, 0.25])])
    assert out.unit_of_slot[0].tolist() == [3, 0, 2, 1, 4]
    assert out.unit_freq[0].tolist() == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_gguf_package_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    with_predictor(sidecar()).save(tmp_path / "s.gguf")
    reader = gguf.GGUFReader(tmp_path / "s.gguf")
    assert reader.get_field("general.architecture").contents() == "hotset-sidecar"
    assert reader.get_field("hotset.placement.n_hot").contents() == list(range(N_LAYER))
    assert reader.get_field("hotset.placement.detect").contents() == ["device", "split", "host"] * 4
    assert reader.get_field("hotset.placement.vram_budget").contents() == 8 << 30
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    order = sidecar().unit_of_slot
    for layer in range(N_LAYER):  # 12 layers: blk.10 comes after blk.9, whatever the order of names
        np.testing.assert_array_equal(tensors[f"blk.{layer}.unit_of_slot"].data, order[layer])
        assert tensors[f"blk.{layer}.predictor.fc1.weight"].data.tobytes() == (
            with_predictor(sidecar()).tensors[f"blk.{layer}.predictor.fc1.weight"].data
        )


def test_an_update_keeps_predictors_byte_for_byte(tmp_path):
    path = tmp_path / "s.gguf"
    with_predictor(sidecar()).save(path)
    before = read_parts(path)
    update = Sidecar.load(path, FINGERPRINT)
    update.placement = placement(vram_budget=1, n_hot=[0] * N_LAYER)
    update.save(path)
    after = read_parts(path)
    changed = {key for key in before[0] if before[0][key] != after[0][key]}
    assert changed == {"hotset.placement.vram_budget", "hotset.placement.n_hot"}
    assert before[1] == after[1]


def rows_by_unit(stored: Sidecar, layer: int) -> list[list[bytes]]:
    """Of each unit its rows of the predictor's second factor and its bias."""
    out = []
    for name in ("fc2.weight", "bias"):
        data = stored.tensors[f"blk.{layer}.predictor.{name}"].data
        rows = [data[i : i + len(data) // N_FF] for i in range(0, len(data), len(data) // N_FF)]
        out.append([rows[slot] for slot in np.argsort(stored.unit_of_slot[layer])])
    return out


def test_rows_of_predictors_go_along_into_another_order(tmp_path):
    path = tmp_path / "s.gguf"
    before = with_predictor(sidecar())
    before.save(path)
    update = Sidecar.load(path)
    update.set_frequencies(list(np.random.default_rng(9).random((N_LAYER, N_FF))))
    update.save(path)
    after = Sidecar.load(path)
    for layer in range(N_LAYER):
        assert not np.array_equal(after.unit_of_slot[layer], before.unit_of_slot[layer])
        assert rows_by_unit(after, layer) == rows_by_unit(before, layer)
        first = f"blk.{layer}.predictor.fc1.weight"
        assert after.tensors[first] == before.tensors[first]


def test_predictors_whose_rows_are_of_no_known_units_are_refused():
    frequencies = list(np.random.default_rng(9).random((N_LAYER, N_FF)))
    for spoiled in (with_predictor(Sidecar(FINGERPRINT, N_LAYER)), with_predictor(sidecar())):
        if spoiled.unit_of_slot:
            spoiled.tensors["blk.1.predictor.bias"] = RawTensor((N_FF - 1,), 0, bytes(4 * (N_FF - 1)))
        before = dict(spoiled.tensors)
        with pytest.raises(Error, match="a row for each"):
            spoiled.set_frequencies(frequencies)
        assert spoiled.tensors == before


@pytest.mark.parametrize("values", [[np.nan], [-0.1], [1.5], [np.inf]])
def test_frequencies_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="0 to 1"):
        Sidecar(FINGERPRINT, 1).set_frequencies([np.array([0.5, *values])])
    with pytest.raises(ValueError, match="layers"):
        Sidecar(FINGERPRINT, 2).set_frequencies([np.array([0.5])])


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "s.gguf"
    with_predictor(sidecar()).save(path)
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 13), *range(2000, len(whole) - 64, 997)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            Sidecar.load(cut)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    path = tmp_path / "s.gguf"
    sidecar().save(path)
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(5)
    for _ in range(1500):
        damaged = bytearray(whole)
        for at in random.integers(0, 3000, random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            Sidecar.load(path, FINGERPRINT)
        except ModelFormatError as error:
            assert "\n" not in str(error)


def test_what_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "s.gguf"

    def saved(out: Sidecar) -> None:
        out.save(path)
        with pytest.raises(ModelFormatError):
            Sidecar.load(path)

    out = sidecar()
    out.unit_of_slot[3] = out.unit_of_slot[3].copy()
    out.unit_of_slot[3][0] = out.unit_of_slot[3][1]
    saved(out)
    out = sidecar()
    out.unit_freq[3] = out.unit_freq[3][::-1]
    saved(out)
    out = sidecar()
    out.unit_freq[3] = out.unit_freq[3][:-1]
    saved(out)
    for change in ({"n_hot": [N_FF + 1] * N_LAYER}, {"n_hot": [1]}, {"detect": ["gpu"] * N_LAYER}, {"head": "split"},
                   {"gap": float("nan")}):  # fmt: skip
        out = sidecar()
        out.placement = placement(**change)
        saved(out)
    sidecar().save(path)
    with pytest.raises(ModelFormatError, match="fingerprint"):
        Sidecar.load(path, "f" * 32)
    with pytest.raises(Error):
        Sidecar.load(tmp_path / "none.gguf")
    with pytest.raises(Error):
        sidecar().save(tmp_path / "no" / "folder.gguf")
    assert [each.name for each in tmp_path.iterdir()] == ["s.gguf"]


def test_place_beside_a_model():
    assert path_beside("a/model.gguf").as_posix() == "a/model.hotset.gguf"
