"""Statistics files: what is written is read, layers by their numbers, and nothing hostile gets through."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile

import numpy as np
import pytest

from hotset.errors import Error
from hotset.offline import Statistics
from hotset.offline.statistics import LayerStatistics

FINGERPRINT = "0123456789abcdef" * 2


def make(n_layer=13, n_ff=20, n_tokens=50, seed=1, samples=0, **changes) -> Statistics:
    """Random statistics whose layers differ."""
    random_numbers = np.random.default_rng(seed)
    layers = []
    for _ in range(n_layer):
        counts = random_numbers.integers(0, n_tokens + 1, n_ff).astype(np.uint64)
        layer = LayerStatistics(counts, random_numbers.random(n_ff), int(counts.sum()) // 2, 0.0)
        if samples:
            layer.mask = random_numbers.integers(0, 256, (samples, (n_ff + 7) // 8)).astype(np.uint8)
            layer.input = random_numbers.random((samples, 6)).astype(np.float32)
        layers.append(layer)
    corpora = [{"name": f"text {seed}", "sha256": "0" * 64, "n_tokens": n_tokens, "n_bytes": 3 * n_tokens}]
    return Statistics(changes.get("fingerprint", FINGERPRINT), n_tokens, corpora, layers)


def assert_equal(got: Statistics, expected: Statistics) -> None:
    assert (got.model_fingerprint, got.n_tokens, got.corpora) == (
        expected.model_fingerprint, expected.n_tokens, expected.corpora)  # fmt: skip
    assert got.n_layer == expected.n_layer
    for a, b in zip(got.layers, expected.layers):
        assert (a.overlap, a.threshold) == (b.overlap, b.threshold)
        for name in ("counts", "mass", "mask", "input"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def entries_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_entries(path, entries, compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def npy(array, allow_pickle=False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


@pytest.mark.parametrize("samples", [0, 5])
def test_what_is_written_is_read(tmp_path, samples):
    statistics = make(samples=samples)
    statistics.save(tmp_path / "a.npz")
    assert_equal(Statistics.load(tmp_path / "a.npz"), statistics)
    statistics.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:  # and by NumPy itself
        assert np.array_equal(file["blk.11.counts"], statistics.layers[11].counts)


def test_layers_come_by_their_numbers_not_by_the_order_in_the_file(tmp_path):
    """Sorted as text, layer 10 comes before layer 2: the classic way to get hot sets of the wrong layers."""
    statistics = make(n_layer=13)
    statistics.save(tmp_path / "a.npz")
    entries = entries_of(tmp_path / "a.npz")
    for order in (sorted(entries), sorted(entries, reverse=True), sorted(entries, key=lambda name: name[::-1])):
        write_entries(tmp_path / "b.npz", {name: entries[name] for name in order})
        assert_equal(Statistics.load(tmp_path / "b.npz"), statistics)


def test_what_numpy_writes_is_read(tmp_path):
    statistics = make(n_layer=2)
    statistics.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        np.savez(tmp_path / "b.npz", **dict(file))
        np.savez_compressed(tmp_path / "c.npz", **dict(file))
    assert_equal(Statistics.load(tmp_path / "b.npz"), statistics)
    with pytest.raises(Error, match="compressed"):  # a small file cannot ask for much memory
        Statistics.load(tmp_path / "c.npz")


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    make(n_layer=1).save(tmp_path / "a.npz")
    for name in ("blk.0.counts.npy", "corpora.npy", "format.npy"):
        entries = entries_of(tmp_path / "a.npz")
        entries[name] = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
        write_entries(tmp_path / "b.npz", entries)
        with pytest.raises(Error):
            Statistics.load(tmp_path / "b.npz")
    assert not (tmp_path / "exploded").exists()


def test_huge_shapes_are_refused_before_memory_is_taken(tmp_path):
    import tracemalloc

    make(n_layer=1).save(tmp_path / "a.npz")
    for shape in ("(99999999999999,)", "(999999999999999, 999999999999999)", "(2000000000,)"):
        entries = entries_of(tmp_path / "a.npz")
        header = f"{{'descr': '<u8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        entries["blk.0.counts.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + bytes(160)
        write_entries(tmp_path / "b.npz", entries)
        tracemalloc.start()
        with pytest.raises(Error, match="another number of bytes"):
            Statistics.load(tmp_path / "b.npz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_truncated_files_are_refused(tmp_path):
    make(n_layer=2, n_ff=3).save(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    for n in range(0, len(data), 7):
        (tmp_path / "b.npz").write_bytes(data[:n])
        with pytest.raises(Error):
            Statistics.load(tmp_path / "b.npz")


def test_damaged_files_end_in_an_error_or_are_still_right(tmp_path):
    make(n_layer=2, n_ff=3, samples=2).save(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    seed = 7
    numbers = random.Random(seed)
    n_refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(numbers.randint(1, 4)):
            damaged[numbers.randrange(len(data))] = numbers.choice([0, 1, 0x7F, 0x80, 0xFF, numbers.randrange(256)])
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            Statistics.load(tmp_path / "b.npz")
        except Error:
            n_refused += 1
    assert n_refused > 1000, seed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "another"), ("format", 1), ("version", np.int64(2)), ("version", np.int32(1)),
        ("model_fingerprint", "xyz"), ("model_fingerprint", FINGERPRINT.upper()), ("n_layer", np.int64(1)),
        ("n_layer", np.int64(3)), ("n_layer", np.int64(0)), ("n_layer", np.int64(-1)), ("n_layer", np.int64(1 << 40)),
        ("n_tokens", np.int64(3)), ("n_tokens", np.int64(0)), ("n_tokens", np.float64(50)), ("corpora", "{"),
        ("corpora", "[1]"), ("corpora", '[{"name": 1}]'), ("corpora", "[" * 100000),
        ("blk.0.counts", np.zeros(20, np.int64)),
        ("blk.0.counts", np.zeros(0, np.uint64)), ("blk.0.counts", np.zeros((20, 1), np.uint64)),
        ("blk.0.mass", np.zeros(19)), ("blk.0.mass", np.full(20, np.nan)), ("blk.0.mass", np.full(20, -1.0)),
        ("blk.0.overlap", np.uint64(1 << 60)), ("blk.0.overlap", np.int64(1)), ("blk.0.threshold", np.float32(np.inf)),
        ("blk.0.threshold", np.float32(-1)), ("blk.0.threshold", np.float64(0)), ("blk.1.mass", None), ("format", None),
        ("blk.2.counts", np.zeros(20, np.uint64)), ("more", np.zeros(3)),
        ("blk.0.samples.mask", np.zeros((2, 3), np.uint8)),
    ],
)  # fmt: skip
def test_edited_files_are_refused(tmp_path, key, value):
    make(n_layer=2).save(tmp_path / "a.npz")
    entries = entries_of(tmp_path / "a.npz")
    entries.pop(f"{key}.npy", None)
    if value is not None:
        entries[f"{key}.npy"] = npy(np.asarray(value))
    write_entries(tmp_path / "b.npz", entries)
    with pytest.raises(Error, match=r"^\[statistics\] .*: expected .*, got .*; "):
        Statistics.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mask", lambda layer: layer.mask[:-1]), ("mask", lambda layer: layer.mask[:, :-1]),
        ("input", lambda layer: layer.input[:-1]), ("input", lambda layer: layer.input[:, :0]),
    ],
)  # fmt: skip
def test_samples_have_to_agree(tmp_path, name, change):
    statistics = make(n_layer=2, samples=4)
    setattr(statistics.layers[1], name, change(statistics.layers[1]))
    statistics.save(tmp_path / "a.npz")
    with pytest.raises(Error, match="samples"):
        Statistics.load(tmp_path / "a.npz")


def test_entries_that_come_twice_and_other_files_are_refused(tmp_path):
    make(n_layer=1).save(tmp_path / "a.npz")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("blk.0.counts.npy", npy(np.zeros(20, np.uint64)))
    (tmp_path / "text.npz").write_text("no archive")
    for path in (tmp_path / "a.npz", tmp_path / "text.npz", tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(Error):
            Statistics.load(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    make(seed=1).save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    broken = make(seed=2)
    broken.layers[12].mass = None  # fails after other layers are written
    with pytest.raises(AttributeError):
        broken.save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(Error, match="a place to write to"):
        make().save(tmp_path / "no folder" / "a.npz")


def test_merging_adds_counts_and_weighs_mass(tmp_path):
    first, second = make(seed=1, n_tokens=10, samples=2), make(seed=2, n_tokens=30, samples=3)
    both = Statistics.merge([first, second])
    assert both.n_tokens == 40
    assert [corpus["name"] for corpus in both.corpora] == ["text 1", "text 2"]
    for a, b, merged in zip(first.layers, second.layers, both.layers):
        assert np.array_equal(merged.counts, a.counts + b.counts)
        assert merged.counts.dtype == np.uint64
        np.testing.assert_allclose(merged.mass, (a.mass * 10 + b.mass * 30) / 40, rtol=1e-14)
        assert merged.overlap == a.overlap + b.overlap
        assert np.array_equal(merged.input, np.concatenate([a.input, b.input]))
    both.save(tmp_path / "both.npz")
    assert_equal(Statistics.load(tmp_path / "both.npz"), both)
    other = make(fingerprint="f" * 32)
    shifted = make()
    shifted.layers[5].threshold = 0.5
    for bad in ([], [first, other], [first, shifted], [first, make(n_ff=21)], [first, make(n_layer=12)]):
        with pytest.raises(ValueError, match=r"^\[merge\]"):
            Statistics.merge(bad)


def test_comparing_finds_common_hot_sets_and_ranks():
    def one_layer(counts):
        layer = LayerStatistics(np.array(counts, np.uint64), np.zeros(len(counts)), 0)
        return Statistics(FINGERPRINT, 100, [], [layer])

    first = one_layer([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert [(c.layer, c.top_overlap, c.rank_correlation) for c in first.compare(first)] == [(0, 1.0, pytest.approx(1))]
    reversed_one = one_layer([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert [(c.top_overlap, c.rank_correlation) for c in first.compare(reversed_one)] == [(0.0, pytest.approx(-1))]
    half = one_layer([9, 0, 8, 6, 5, 4, 3, 2, 1, 7])  # one of the two hottest
    assert first.compare(half)[0].top_overlap == 0.5
    assert first.compare(half, top=1.0)[0].top_overlap == 1.0
    # Ties: units by number, ranks shared. Ranks of (0,0,1,1): 1.5 1.5 3.5 3.5; of (0,1,2,3): 1 2 3 4.
    (tied,) = one_layer([0, 0, 1, 1]).compare(one_layer([0, 1, 2, 3]))
    assert tied.rank_correlation == pytest.approx(4 / np.sqrt(20))
    assert np.isnan(one_layer([3, 3]).compare(one_layer([1, 2]))[0].rank_correlation)
    for top in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="top"):
            first.compare(first, top)
    with pytest.raises(ValueError, match="one model"):
        make().compare(make(fingerprint="f" * 32))


def test_statistics_of_another_model_are_told():
    with pytest.raises(Error, match="fingerprint"):
        make().check_model("f" * 32)
    make().check_model(FINGERPRINT)


def test_corpora_are_plain_json(tmp_path):
    make(n_layer=1).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert json.loads(str(file["corpora"]))[0]["name"] == "text 1"
