"""Tests of the files of a report: plots, the page, JSON, all or nothing; of reading sidecars; and of the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
pytest.importorskip("gguf")

if importlib.util.find_spec("hotset") is None:  # not installed: a report needs no native module
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from statistics_file import FINGERPRINT, layer_of, write_sidecar, write_statistics  # noqa: E402

from hotset import cli  # noqa: E402
from hotset.errors import Error, ModelFormatError  # noqa: E402
from hotset.offline.report import make_report  # noqa: E402
from hotset.offline.sidecar_reader import read_placement  # noqa: E402
from hotset.offline.statistics import Statistics  # noqa: E402

N_LAYER, N_FF, N_TOKENS = 12, 40, 200
ERROR_LINE = re.compile(r"hotset: error: \[[^\n]+\] [^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\n")
HOSTILE = "<script src=http://evil.example/x.js></script>\"'&amp;\ud800"
PLOTS = {"active_share", "hot_curve", "units_for_80", "persistence", "stability", "coactivation", "placement"}
VOID = {"meta", "img", "source", "br"}


def statistics(path, seed=0, **more):
    """A file of 12 layers, the higher the denser, with samples."""
    rng = np.random.default_rng(seed)
    layers = []
    for layer in range(N_LAYER):
        rows = rng.random((N_TOKENS, N_FF)) < (layer + 1) / 16 * np.linspace(1, 0, N_FF)
        layers.append({**layer_of(rows), "samples": rows[:50], "threshold": more.get("threshold", 0)})
    more.pop("threshold", None)
    return write_statistics(path, layers, N_TOKENS, **more)


@pytest.fixture
def sidecar(tmp_path):
    rng = np.random.default_rng(3)
    orders = [rng.permutation(N_FF) for _ in range(N_LAYER)]
    return write_sidecar(tmp_path / "m.hotset.gguf", list(range(0, 3 * N_LAYER, 3)), orders)


class Page(HTMLParser):
    """Collects tags, attributes and texts; fails where tags do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.alts, self.rows = [], [], [], [], []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not any(name.startswith("on") for name in attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ("src", "srcset", "href", "action", "data") if name in attrs]
        if tag == "img":
            self.alts.append(attrs["alt"])
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""
        if self.open[-1:] == ["td"]:
            self.rows[-1][-1] += data


def test_a_full_report(tmp_path, sidecar):
    parts = [Statistics.load(statistics(tmp_path / f"{n}.npz", n, name=HOSTILE)) for n in range(3)]
    out = tmp_path / "made" / "here"
    report = make_report(parts, out, read_placement(sidecar))
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in PLOTS} | {"report.json", "report.html"}
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in PLOTS)
    assert json.loads((out / "report.json").read_text()) == dataclasses.asdict(report)
    html = (out / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.links) == 2 * len(PLOTS) and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.alts) == len(PLOTS) and all(len(alt) > 30 for alt in page.alts)
    assert page.tags.count("h1") == page.tags.count("title") == 1 and "script" not in page.tags
    assert "<script" not in html and "url(" not in html and "@import" not in html
    assert page.text.count(HOSTILE.replace("\ud800", "?")) >= 3 and "card & <host>" in page.text
    for figure in (report.model.sparsity, report.model.activations.units_for_80, report.placement.activations):
        assert f"{100 * figure:.1f}\u00a0%" in page.text
    rows = [row for row in page.rows if len(row) > 10]
    assert [row[0] for row in rows] == [*map(str, range(N_LAYER)), "all"]
    assert [row[3] for row in rows[:-1]] == [f"{100 * layer.sparsity:.1f}\u00a0%" for layer in report.layers]
    assert {len(row) for row in rows} == {page.tags.count("th") - 6}


def test_a_small_report_leaves_out_what_it_does_not_know(tmp_path):
    path = write_statistics(tmp_path / "s.npz", [{"counts": [0]}, {"counts": [1], "threshold": 0.5}], 1)
    report = make_report(Statistics.load(path), tmp_path / "out")
    left = {"persistence", "stability", "coactivation", "placement"}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == PLOTS - left
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "threshold" in page.text and "approximation" in page.text and report.layers[0].persistence is None
    assert "nan" not in page.text.lower() and "None" not in page.text


def test_another_report_replaces_the_first_with_all_its_plots(tmp_path):
    paths = [statistics(tmp_path / f"{n}.npz", n) for n in range(2)]
    out = tmp_path / "out"
    make_report([Statistics.load(path) for path in paths], out)
    (out / "mine.png").write_text("kept")
    assert (out / "stability.png").exists()
    make_report(Statistics.load(paths[0]), out)
    assert not (out / "stability.png").exists() and (out / "mine.png").read_text() == "kept"


def test_a_failure_leaves_nothing_new_and_all_of_the_old(tmp_path, monkeypatch):
    part = Statistics.load(statistics(tmp_path / "s.npz"))
    out = tmp_path / "out"
    make_report(part, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write, calls = Path.write_bytes, []

    def fail_at_the_fourth(self, data):
        calls.append(self)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_fourth)
    with pytest.raises(Error, match="No space left"):
        make_report(Statistics.load(statistics(tmp_path / "t.npz", 7)), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    calls.clear()
    with pytest.raises(Error, match="No space left"):
        make_report(part, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    part = Statistics.load(statistics(tmp_path / "s.npz"))
    with pytest.raises(Error, match=r'package matplotlib.*pip install "hotset\[report\]"'):
        make_report(part, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(Error, match="folder .*out"):
        make_report(Statistics.load(statistics(tmp_path / "s.npz")), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_equal_names_are_told_apart(tmp_path):
    part = Statistics.load(statistics(tmp_path / "s.npz", name="a"))
    assert [each.name for each in make_report([part, part], tmp_path / "out").sources] == ["a", "a (2)"]


# --- sidecars -------------------------------------------------------------------------------------------------------


def test_a_placement_is_read(sidecar):
    placement = read_placement(sidecar)
    assert placement.n_hot == list(range(0, 36, 3)) and placement.model_fingerprint == FINGERPRINT
    assert (placement.vram_budget, placement.n_ctx, placement.machine) == (8 << 30, 4096, "card & <host>")
    assert (placement.detect, placement.attention) == (["device"] * 12, ["host"] * 12)
    assert (placement.head, placement.predicted_tg_ts, placement.gap) == ("device", 31.25, 0.0)
    assert sorted(placement.unit_of_slot[11].tolist()) == list(range(N_FF))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "llama"}, "general.architecture: expected hotset-sidecar, got llama"),
        ({"version": 2}, "hotset.version: expected 1, got 2"),
        ({"n_layer": None}, "hotset.n_layer"),
        ({"n_layer": 3}, "n_hot"),
        ({"n_layer": 4_000_000_000}, "hotset.n_layer"),
        ({"placement__detect": ["device"]}, "detect"),
        ({"placement__predicted_tg_ts": float("nan")}, "predicted_tg_ts"),
        ({"placement__machine": 7}, "machine"),
    ],
)
def test_contradictions_in_a_sidecar(tmp_path, changes, match):
    path = write_sidecar(tmp_path / "s.gguf", [1, 1], [[0, 1], [1, 0]], **changes)
    with pytest.raises(ModelFormatError, match=match):
        read_placement(path)


@pytest.mark.parametrize(("n_hot", "orders", "match"), [
    ([3, 1], [[0, 1], [1, 0]], "hot units of layer 0: expected 0 to 2, got 3"),
    ([1, 1], [[0, 1], [1, 1]], "blk.1.unit_of_slot: expected every unit once"),
    ([1, 1], [[0, 1]], "blk.1.unit_of_slot: expected present"),
])  # fmt: skip
def test_impossible_placements(tmp_path, n_hot, orders, match):
    with pytest.raises(ModelFormatError, match=match):
        read_placement(write_sidecar(tmp_path / "s.gguf", n_hot, orders))


def test_a_sidecar_without_a_placement(tmp_path):
    path = write_sidecar(tmp_path / "s.gguf", [], [[0, 1]], n_layer=1)
    with pytest.raises(Error, match="run hotset place"):
        read_placement(path)


def test_optional_keys_may_be_absent(tmp_path):
    keys = ("detect", "attention", "head", "machine", "vram_budget", "n_ctx", "predicted_tg_ts", "gap")
    path = write_sidecar(tmp_path / "s.gguf", [1], [[0, 1]], **{f"placement__{key}": None for key in keys})
    placement = read_placement(path)
    assert (placement.detect, placement.machine, placement.gap) == ([None], None, None)


def test_damaged_sidecars_are_errors(tmp_path):
    data = write_sidecar(tmp_path / "s.gguf", [1, 1], [[0, 1], [1, 0]]).read_bytes()
    path = tmp_path / "damaged.gguf"
    for size in range(len(data) - 32):  # the last tensor's data are padded to 32 bytes
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError):
            read_placement(path)
    rng = random.Random(1)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4, 32])):
            damaged[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        path.write_bytes(damaged)
        try:
            read_placement(path)
        except Error:
            pass
    with pytest.raises(ModelFormatError, match="readable"):
        read_placement(tmp_path / "missing.gguf")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, sidecar, capsys):
    paths = [str(statistics(tmp_path / f"{name}.npz", n)) for n, name in enumerate(("stories", "code"))]
    out = tmp_path / "out"
    code = cli.main(["report", "--stats", *paths, "--sidecar", str(sidecar), "--layer", "3", "-o", str(out)])
    printed = capsys.readouterr()
    assert (code, printed.out) == (0, "")
    assert re.fullmatch(
        r"wrote .*report.html: 400 tokens, 12 layers, [0-9.]+ % sparse; .* carry 80 % .*\n", printed.err
    )
    report = json.loads((out / "report.json").read_text())
    assert [each["name"] for each in report["sources"]] == ["stories", "code"]
    assert [each["layer"] for each in report["coactivation"] if each["correlation"]] == [3]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--stats", "missing.npz", "-o", "out"], 1),
        (["--stats", "text.npz", "-o", "out"], 1),
        (["--stats", "a.npz", "other.npz", "-o", "out"], 1),
        (["--stats", "a.npz", "--sidecar", "text.npz", "-o", "out"], 1),
        (["--stats", "empty.npz", "-o", "out"], 1),
        (["--stats", "a.npz", "--layer", "12", "-o", "out"], 2),
        (["--stats", "a.npz"], 2),
        (["-o", "out"], 2),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, code):
    monkeypatch.chdir(tmp_path)
    statistics(tmp_path / "a.npz")
    statistics(tmp_path / "other.npz", model_fingerprint="ff" * 16)
    write_statistics(tmp_path / "empty.npz", [{"counts": [0]}], 0)
    (tmp_path / "text.npz").write_text("not statistics")
    try:
        found = cli.main(["report", *words])
    except SystemExit as stop:  # argparse
        found = stop.code
    printed = capsys.readouterr()
    assert (found, printed.out) == (code, "") and ERROR_LINE.fullmatch(printed.err), printed.err
    assert not (tmp_path / "out").exists()
