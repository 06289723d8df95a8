"""tools/compare.py with fake programs: the table, ratios, markers, failures, recipes, limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

TOOLS = REPOSITORY / "tools"
sys.path.insert(0, str(TOOLS))
import compare_programs
import compare_report
import compare_sweep

# Speeds of the rounds in turn: median 20, range 10-30; `exact` is twice as fast and reads half.
FAKE_HOTSET = """#!{python}
import json, sys
from pathlib import Path
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
if words == ["--version"]:
    print("hotset 9.9.9 (fake)")
elif words[0] == "doctor":
    print(json.dumps({{"cpu": "Fake CPU", "n_cores": 2, "memory_bytes": 1, "isa": "fake"}}))
elif words[0] == "synth":
    if "broken" in words:
        sys.exit("hotset: error: [synth] shape: expected one, got broken; correct it")
    Path(value("-o")).write_text(" ".join(words))
elif words[0] == "inspect":
    print(json.dumps({{"tensors": [{{"name": "output.weight", "type": "F16", "shape": [500, 2], "n_bytes": 2000}}]}}))
elif words[0] == "bench":
    if not Path(value("-m")).exists():
        sys.exit("hotset: error: [model] no such file " + value("-m"))
    log = Path(__file__).with_name("log.txt")
    with log.open("a") as file:
        file.write("hotset " + value("--mode") + " " + Path(value("-m")).read_text() + "\\n")
    turn = log.read_text().count("hotset " + value("--mode")) - 1
    factor = 2 if value("--mode") == "exact" else 1
    row = {{"n_prompt": 0, "n_gen": int(value("-n")), "avg_ts": factor * [10, 30, 20][turn % 3],
           "bytes_per_token": 3e6 / factor, "bandwidth_share": 0.5, "active_share": None if factor == 1 else 0.1,
           "n_depth": int(value("-d")) if "-d" in words else 0}}
    prompt = {{**row, "n_prompt": int(value("-p")), "n_gen": 0, "avg_ts": 100, "bytes_per_token": None,
              "bandwidth_share": None}}
    print(json.dumps([prompt, row]))
"""
FAKE_BENCH = """#!{python}
import json, sys
from pathlib import Path
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
with Path(__file__).with_name("log.txt").open("a") as file:
    file.write("peer " + Path(value("-m")).read_text() + "\\n")
build = {{"n_depth": int(value("-d")) if "-d" in words else 0, "build_number": 7, "build_commit": "abc"}}
rows = [{{"n_prompt": int(value("-p")), "n_gen": 0, "avg_ts": 25.0 if "-fa" in words else 50.0, **build}},
        {{"n_prompt": 0, "n_gen": int(value("-n")), "avg_ts": 16.0, **build}}]
if build["n_depth"] > 5000:
    sys.exit("error: too deep")
print(json.dumps(rows))
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def bench(tmp_path):
    """Runs compare.py with the fake programs in a folder of their own."""
    script(tmp_path / "hotset", FAKE_HOTSET)
    script(tmp_path / "llama-bench", FAKE_BENCH)
    (tmp_path / "a.gguf").write_text("ours")
    (tmp_path / "b.gguf").write_text("theirs")

    def call(*words, exit_code=0):
        command = [sys.executable, str(TOOLS / "compare.py"), *words, "--hotset", str(tmp_path / "hotset")]
        command += ["--n-gen", "8", "--n-prompt", "16"]
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60, check=False)
        assert done.returncode == exit_code, done.stderr
        return done

    call.folder = tmp_path
    return call


def cells(text: str) -> list[list[str]]:
    """The table's rows, without the rule."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    assert len({len(row) for row in rows}) == 1
    return rows


def test_table_ratios_and_interleaving(bench):
    words = ["a.gguf=b.gguf", "--llama-cpp", str(bench.folder), "--mode", "dense,exact", "--threads", "2"]
    text = bench(*words, "--rounds", "3", "--json", "out.json").stdout
    header, decode, prefill = cells(text)
    assert header == [
        "model", "test", "threads", "llama.cpp t/s", "hotset dense t/s", "/ llama.cpp", "MB/token", "active %", "bw %",
        "hotset exact t/s", "/ llama.cpp", "MB/token", "active %", "bw %"]  # fmt: skip
    assert decode == [
        "a.gguf", "tg8", "2", "16.0 [16.0-16.0]", "20.0 [10.0-30.0]", "1.25", "3.0", "", "50.0",
        "40.0 [20.0-60.0]", "2.50", "1.5", "10.0", "50.0"]  # fmt: skip
    assert prefill[:6] == ["a.gguf", "pp16", "2", "50.0 [50.0-50.0]", "100.0 [100.0-100.0]", "2.00"]
    for part in ("Fake CPU, 2 cores", "hotset 9.9.9 (fake)", "llama.cpp build 7 (abc)", "3 interleaved rounds"):
        assert part in text
    assert f"{bench.folder}/" not in text and "--llama-cpp" in text
    log = (bench.folder / "log.txt").read_text().splitlines()
    ours = ["hotset dense ours", "hotset exact ours"]
    assert log == ["peer theirs", *ours, *ours, "peer theirs", ours[1], "peer theirs", ours[0]]
    document = json.loads((bench.folder / "out.json").read_text())
    row = next(row for row in document["rows"] if (row["program"], row["test"]) == ("hotset exact", "tg8"))
    assert row["samples_ts"] == [20, 60, 40] and row["median_ts"] == 40
    assert row["ratio"] == {"llama.cpp": 2.5} and row["active_share"] == pytest.approx(0.1)
    assert len(document["rows"]) == 6 and document["n_rounds"] == 3


def test_each_thread_count_is_a_row_and_one_file_serves_all(bench):
    text = bench("a.gguf", "--llama-cpp", str(bench.folder / "llama-bench"), "--threads", "1,2").stdout
    assert [row[:3] for row in cells(text)[1:]] == [
        ["a.gguf", "tg8", "1"], ["a.gguf", "pp16", "1"], ["a.gguf", "tg8", "2"], ["a.gguf", "pp16", "2"]]  # fmt: skip
    assert "peer ours" in (bench.folder / "log.txt").read_text()


def test_depths_are_rows_and_reach_both_programs(bench):
    words = ["a.gguf", "--llama-cpp", str(bench.folder), "--threads", "2", "--rounds", "1", "--depth", "0,4096,6000"]
    text = bench(*words, "--json", "out.json").stdout
    assert [row[1] for row in cells(text)[1:]] == [
        "tg8", "pp16", "tg8 @ d4096", "pp16 @ d4096", "tg8 @ d6000", "pp16 @ d6000"]  # fmt: skip
    assert cells(text)[3][3:6] == ["16.0 [16.0-16.0]", "30.0 [30.0-30.0]", "1.88"]
    assert cells(text)[5][3:6] == ["failed", "20.0 [20.0-20.0]", ""]
    assert "- llama.cpp failed on a.gguf, 2 threads, depth 6000: exit 1: error: too deep" in text
    rows = json.loads((bench.folder / "out.json").read_text())["rows"]
    assert [row["depth"] for row in rows] == [0] * 4 + [4096] * 4 + [6000] * 3
    script(bench.folder / "other", "#!{python}\nimport sys\nprint(f'speed {{sys.argv[1]}}')\n")
    peer = ["--peer-cmd", f"other={bench.folder}/other {{n_depth}}", "--peer-tg", r"other=speed (\d+)"]
    assert cells(bench("a.gguf", "--threads", "2", "--rounds", "1", "--depth", "7", *peer).stdout)[1][1:4] == [
        "tg8 @ d7", "2", "7.0 [7.0-7.0]"]  # fmt: skip


def test_llama_args_are_columns_and_the_kv_type_is_one(bench):
    words = ["a.gguf", "--llama-cpp", str(bench.folder), "--llama-args=-t 2", "--llama-args", "-fa 1", "--threads", "2"]
    header, _, prefill = cells(bench(*words, "--rounds", "1").stdout)
    assert header[3:5] == ["llama.cpp -t 2 t/s", "llama.cpp -fa 1 t/s"]
    assert prefill[3:5] == ["50.0 [50.0-50.0]", "25.0 [25.0-25.0]"]
    setting = compare_programs.Setting(16, 8, 2, 1, 60, depth=7, kv_type="q8_0")
    case = compare_programs.Case.of_files("a.gguf=b.gguf")
    peer = compare_programs.LlamaCpp("llama-bench", "-fa 1").command(case, setting)
    assert peer[-8:] == ["-o", "json", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "1"] and peer[peer.index("-d") + 1] == "7"
    ours = compare_programs.Hotset([str(bench.folder / "hotset")], "exact").command(case, setting)
    assert ours[-4:] == ["--mode", "exact", "--kv-type", "q8_0"] and ours[ours.index("-d") + 1] == "7"


def test_peers_by_template(bench):
    script(bench.folder / "other", "#!{python}\nimport sys\nprint(f'speed 5.5 t/s\\nspeed {{sys.argv[4]}}.0 t/s')\n")
    script(bench.folder / "third", "#!{python}\nprint('{{\"runs\": [{{\"rate\": 25}}]}}')\n")
    words = ["a.gguf", "--threads", "2", "--rounds", "1"]
    words += ["--peer-cmd", f"other={bench.folder}/other {{model}} {{threads}} {{n_prompt}} {{n_gen}}"]
    words += ["--peer-tg", r"other=speed ([\d.]+) t/s", "--peer-version", "other=v1"]
    words += ["--peer-cmd", f"third={bench.folder}/third", "--peer-pp", "third=$.runs.0.rate"]
    text = bench(*words).stdout
    header, decode, prefill = cells(text)
    assert header[3:7] == ["other t/s", "third t/s", "hotset dense t/s", "/ other"] and "other v1" in text
    assert decode[3:8] == ["8.0 [8.0-8.0]", "-", "10.0 [10.0-10.0]", "1.25", ""]
    assert prefill[3:8] == ["-", "25.0 [25.0-25.0]", "100.0 [100.0-100.0]", "", "4.00"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import sys; sys.exit('loading\\nerror: no | such\\nbye')", "exit 1: error: no | such"),
        ("print('nothing')", "llama-bench printed no benchmark rows"),
        ("print('[{{\"avg_ts\": \"fast\"}}]')", "llama-bench printed no benchmark rows"),
        ("import time; time.sleep(60)", "no result within 1 s"),
        (None, "cannot start llama-bench: No such file or directory"),
    ],
)
def test_a_peer_that_fails_is_reported(bench, body, why):
    path = bench.folder / "llama-bench"
    path.unlink()
    if body is not None:
        script(path, "#!{python}\n" + body + "\n")
    timeout = "1" if "sleep" in (body or "") else "60"
    text = bench("a.gguf", "--llama-cpp", str(path), "--threads", "2", "--timeout", timeout, "--json", "out.json").stdout
    assert cells(text)[1][3:6] == ["failed", "20.0 [10.0-30.0]", ""]
    assert f"- llama.cpp failed on a.gguf, 2 threads: {why}" in text
    rows = json.loads((bench.folder / "out.json").read_text())["rows"]
    assert [row["error"] for row in rows if "error" in row] == [why]


def test_without_any_result_of_hotset_the_exit_code_says_so(bench):
    text = bench("absent.gguf=b.gguf", "--llama-cpp", str(bench.folder), "--threads", "1", exit_code=1).stdout
    assert cells(text)[1][4] == "failed" and "[model] no such file absent.gguf" in text


def test_the_section_is_replaced_between_its_markers(tmp_path):
    path = tmp_path / "doc.md"
    compare_report.replace_section(path, "a", "one")
    assert path.read_text() == "<!-- compare:a begin -->\none\n<!-- compare:a end -->\n"
    path.write_text("# Title\n\nBefore.\n" + path.read_text() + "After.\n")
    compare_report.replace_section(path, "a", r"two \1")
    expected = "# Title\n\nBefore.\n<!-- compare:a begin -->\ntwo \\1\n<!-- compare:a end -->\nAfter.\n"
    assert path.read_text() == expected
    compare_report.replace_section(path, "b", "three")
    assert path.read_text() == expected + "\n<!-- compare:b begin -->\nthree\n<!-- compare:b end -->\n"
    for damaged in ("<!-- compare:a end -->\n<!-- compare:a begin -->", "<!-- compare:a begin -->", expected + expected):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="one pair of markers"):
            compare_report.replace_section(path, "a", "four")
        assert path.read_text() == damaged


def test_the_document_is_written_by_the_command(bench):
    (bench.folder / "doc.md").write_text("# Figures\n")
    for _ in range(2):
        text = bench("a.gguf", "--threads", "1", "--rounds", "1", "--docs", "doc.md", "--section", "x").stdout
    document = (bench.folder / "doc.md").read_text()
    assert document.startswith("# Figures\n\n<!-- compare:x begin -->\n") and document.count("| a.gguf | tg8 ") == 1
    assert text.strip() in document


@pytest.mark.parametrize(
    "words",
    [[], ["a.gguf", "--rounds", "0"], ["a.gguf", "--threads", "0"], ["a.gguf", "--threads", "x"], ["--sweep", "50"],
     ["a.gguf", "--depth", "-1"], ["a.gguf", "--sweep", "50"], ["--synth", "x", "--sweep", "100"], ["--synth", "x", "--plot", "p.png"],
     ["a.gguf", "--peer-tg", "x=1"], ["a.gguf", "--peer-cmd", "x"]],
)  # fmt: skip
def test_wrong_usage(bench, words):
    assert "usage: compare.py" in bench(*words, exit_code=2).stderr


# --- recipes, sweeps, limits ----------------------------------------------------------------------------------------

RATES = {
    "format": "hotset-machine", "version": 1,
    "read": [{"pages": "normal", "n_threads": 2, "dense_gbps": 20, "gathered": [
        {"row_bytes": 1000, "density": 0.1, "gbps": 8}, {"row_bytes": 1000, "density": 0.01, "gbps": 4},
        {"row_bytes": 4000, "density": 0.1, "gbps": 16}, {"row_bytes": 4000, "density": 0.01, "gbps": 12}]},
        {"pages": "huge", "n_threads": 2, "dense_gbps": 18, "gathered": []},
        {"pages": "normal", "n_threads": 4, "dense_gbps": 30, "gathered": []}],
}  # fmt: skip


def test_recipes_become_files_of_both_layouts(bench):
    words = ["--synth", "--arch arcee --type q4_0", "--llama-cpp", str(bench.folder), "--threads", "2", "--rounds", "1"]
    text = bench(*words, "--work-dir", str(bench.folder)).stdout
    assert cells(text)[1][0] == "synth --arch arcee --type q4_0"
    log = (bench.folder / "log.txt").read_text().splitlines()
    assert "peer synth --arch arcee --type q4_0 --layout gguf" in log[0]
    assert "hotset dense synth --arch arcee --type q4_0 --layout neuron" in log[1]
    assert len(list(bench.folder.glob("arch-arcee*.gguf"))) == 2
    text = bench("--synth", "--arch broken broken", "--threads", "2", "--rounds", "1", exit_code=1).stdout
    assert "the recipe gave no file: exit 1: hotset: error: [synth] shape: expected one, got broken" in text


def test_a_sweep_draws_speed_against_sparsity(bench):
    (bench.folder / "machine.json").write_text(json.dumps(RATES))
    words = ["--synth", "--arch arcee", "--sweep", "50,90", "--mode", "exact", "--threads", "2", "--rounds", "1"]
    words += ["--llama-cpp", str(bench.folder), "--machine", "machine.json", "--plot", "out.png", "--json", "out.json"]
    done = bench(*words)
    header, first, *_ = rows = cells(done.stdout)
    assert [row[0] for row in rows[1::2]] == ["50 % sparse: --arch arcee", "90 % sparse: --arch arcee"]
    assert header[-1] == "byte limit t/s" and first[-1] == f"{20e9 / 2000:.1f}"
    assert "--sparsity 0.9" in (bench.folder / "log.txt").read_text()
    assert not list(bench.folder.glob("*.gguf.part")) and not list(bench.folder.glob("arch-arcee*"))
    assert json.loads((bench.folder / "out.json").read_text())["limits"]
    if "no plot" in done.stderr:
        pytest.skip("matplotlib is not installed")
    assert (bench.folder / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_rates_in_between_are_those_of_the_library():
    """The same cases as tests/cpp/test_machine_rates.cpp."""
    assert [compare_sweep.dense_gbps(RATES, n) for n in (1, 2, 3, 4, 100)] == [20, 20, 20, 30, 30]

    def at(row_bytes: float, density: float) -> float:
        return compare_sweep.gathered_gbps(RATES, 2, row_bytes, density)

    assert [at(1000, 0.1), at(1, 1e-9), at(1e9, 0.01)] == [8, 4, 12]
    assert at(2000, 0.1) == pytest.approx(12) and at(2000, 0.001**0.5) == pytest.approx(10)
    assert at(1000, 0.1**0.5) == pytest.approx(14) and at(1000, 1) == pytest.approx(20)
    assert compare_sweep.gathered_gbps(RATES, 4, 1000, 0.1) == 0


def tensor(name: str, n_bytes: int, *shape: int) -> dict:
    return {"name": name, "type": "F16", "shape": list(shape), "n_bytes": n_bytes}


def test_limits_count_what_a_token_reads():
    head = [tensor("token_embd.weight", 1000, 5, 100), tensor("output.weight", 1000, 5, 100)]
    up, gate = tensor("blk.0.ffn_up.weight", 8000, 500, 8), tensor("blk.0.ffn_gate.weight", 8000, 500, 8)
    down_t, down = tensor("blk.0.ffn_down_t.weight", 8000, 500, 8), tensor("blk.0.ffn_down.weight", 8000, 8, 500)
    assert compare_sweep.token_bytes([*head, up, down_t]) == (10 + 1000 + 8000, [(8000, 1000)])
    assert compare_sweep.token_bytes([head[0], up, down]) == (1000 + 8000, [(8000, 1000)])
    assert compare_sweep.token_bytes([*head, gate, up, down_t]) == (9010, [(8000, 1000), (8000, 1000)])
    limits = compare_sweep.limits_at([*head, gate, up, down_t], RATES, 2, 0.1)
    assert limits["dense_ts"] == pytest.approx(20e9 / (9010 + 1600))
    assert limits["gathered_ts"] == pytest.approx(1 / (9010 / 20e9 + 1600 / 8e9))


def test_shortened_text_names_no_folder():
    text = "python x.py /home/me/models/a.gguf=/mnt/b.gguf --peer-cmd 'n=/opt/bin/n {model}' ./c/d https://x/y/z"
    short = compare_programs.shortened(text)
    assert short == "python x.py a.gguf=b.gguf --peer-cmd 'n=n {model}' ./c/d https://x/y/z"
