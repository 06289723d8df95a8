"""The native command against references: token ids, logits, losses, benchmark rows, reports."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import random
import re
import shutil
import subprocess

import numpy as np
import pytest

from conftest import assert_one_error_line


def token_list(result) -> list[int]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def logits_of(hotset, tmp_path, model, ids, *options, env=None) -> np.ndarray:
    path = tmp_path / "logits.npy"
    words = ["logits", "-m", str(model), "--tokens", ",".join(map(str, ids)), "-o", str(path), *options]
    result = hotset(*words, env=env)
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    return np.load(path)


# --- tokenize, detokenize -------------------------------------------------------------------------------------------


def test_tokenize_adds_nothing_to_the_bytes(hotset, demo_model):
    words = ["tokenize", "-m", str(demo_model), "--no-bos"]
    with_newline, without = token_list(hotset(*words, stdin=b"a b\n")), token_list(hotset(*words, stdin=b"a b"))
    assert with_newline[: len(without)] == without and len(with_newline) > len(without)
    assert token_list(hotset(*words, stdin=b"")) == []
    assert token_list(hotset(*words, "-p", "a b")) == without
    with_bos = token_list(hotset(*words[:-1], stdin=b"a b"))
    assert len(with_bos) == len(without) + 1 and with_bos[1:] == without


def test_parse_special_is_off_by_default(hotset, stories):
    words = ["tokenize", "-m", str(stories), "--no-bos"]
    assert 2 not in token_list(hotset(*words, stdin=b"a</s>"))
    assert token_list(hotset(*words, "--parse-special", stdin=b"a</s>"))[-1] == 2


def test_tokenize_round_trip_of_text_and_bytes(hotset, demo_model, shared):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    texts = [b"", b" ", b"  a", "Über 12 Äpfel 🦙\n\t".encode(), bytes(source.randrange(256) for _ in range(300))]
    for model in (demo_model, *sorted((shared / "vocabs").glob("*.gguf"))):
        for text in texts:
            ids = hotset("tokenize", "-m", str(model), stdin=text)
            assert ids.returncode == 0, ids.stderr
            back = hotset("detokenize", "-m", str(model), stdin=ids.stdout)
            assert (back.returncode, back.stdout) == (0, text), (model, back.stderr)


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "llama-bpe"])
def test_vocabulary_vectors(hotset, shared, name):
    model = shared / "vocabs" / f"ggml-vocab-{name}.gguf"
    cases = model.with_name(model.name + ".inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    lines = model.with_name(model.name + ".out").read_text().splitlines()
    expected = [[int(word) for word in line.split()] for line in lines]
    assert len(cases) == len(expected) == 46
    for text, ids in zip(cases, expected):
        assert token_list(hotset("tokenize", "-m", str(model), "--no-bos", stdin=text)) == ids, text


@pytest.mark.parametrize(
    "text",
    [b"", b" ", b"[", b"]", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[1.5]", b"[1e2]", b"[01]", b"[-]", b"[--1]",
     b"[+1]", b"[99999999999]", b"[-99999999999]", b'["1"]', b"[[1]]", b"[1] x", b"{}", b"null", b"1", b"[1]\0",
     b"[\xff]", b"[" * 100_000, b"[-1]", b"[512]", b"[2147483647]"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_detokenize_refuses_what_is_no_list_of_ids(hotset, stories, text):
    assert_one_error_line(hotset("detokenize", "-m", str(stories), stdin=text, memory=1 << 30), 1)


def test_detokenize_accepts_any_white_space(hotset, stories):
    plain = hotset("detokenize", "-m", str(stories), stdin=b"[403,407]")
    assert plain.returncode == 0 and plain.stdout
    assert hotset("detokenize", "-m", str(stories), stdin=b" \n[ 403\t,\r\n407 ]\n").stdout == plain.stdout
    assert hotset("detokenize", "-m", str(stories), stdin=b"[]").stdout == b""


# --- logits, perplexity ---------------------------------------------------------------------------------------------


def test_logits_of_stories260k_against_float64(hotset, tmp_path, stories, golden):
    ids = [1, *golden["greedy_ids_from_bos"][:255]]
    logits = logits_of(hotset, tmp_path, stories, ids)
    assert logits.shape == (256, 512) and logits.dtype == np.float32
    reference = np.array(golden["logits_pos0"])
    error = logits[0].astype(np.float64) - reference
    assert np.sum(error**2) / np.sum(reference**2) <= 1e-9
    for check in golden["logit_checks"]:
        row = logits[check["pos"]].astype(np.float64)
        top = [int(i) for i in np.argsort(-row)[:5]]
        assert top == [i for i, _ in check["top5"]]
        np.testing.assert_allclose(row[top], [x for _, x in check["top5"]], atol=1e-4)
        assert np.log(np.sum(np.exp(row - row.max()))) + row.max() == pytest.approx(check["logsumexp"], abs=1e-4)


def test_published_loss_of_stories260k(hotset, tmp_path, stories, golden):
    total, n_scored = 0.0, 0
    for story in golden["story_nll"]:
        logits = logits_of(hotset, tmp_path, stories, story["ids"]).astype(np.float64)[:-1]
        peak = logits.max(axis=1)
        chosen = logits[np.arange(len(logits)), story["ids"][1:]]
        loss = float(np.sum(np.log(np.sum(np.exp(logits - peak[:, None]), axis=1)) + peak - chosen))
        assert loss == pytest.approx(story["nll_sum"], rel=1e-5)
        total, n_scored = total + loss, n_scored + len(logits)
    assert total / n_scored == pytest.approx(golden["mean_nll_10_stories"], rel=1e-5)


def test_logits_are_equal_bit_for_bit_whatever_the_threads_and_batches(hotset, tmp_path, demo_model):
    ids = token_list(hotset("tokenize", "-m", str(demo_model), stdin=b"The fox and the hare went to the market. " * 4))
    expected = logits_of(hotset, tmp_path, demo_model, ids, "-t", "1").tobytes()
    for threads in ("2", "3", "4"):
        assert logits_of(hotset, tmp_path, demo_model, ids, "-t", threads).tobytes() == expected
    for batch in ("1", "5"):
        assert logits_of(hotset, tmp_path, demo_model, ids, "-b", batch).tobytes() == expected


def test_logits_output_is_whole_or_absent(hotset, tmp_path, stories):
    path = tmp_path / "out.npy"
    path.write_bytes(b"old")
    assert_one_error_line(hotset("logits", "-m", str(stories), "--tokens", "1,512", "-o", str(path)), 2)
    assert_one_error_line(hotset("logits", "-m", str(stories), "--tokens", "1,2", "-c", "1", "-o", str(path)), 1)
    assert path.read_bytes() == b"old"
    assert_one_error_line(hotset("logits", "-m", str(stories), "--tokens", "1", "-o", str(tmp_path / "no" / "x")), 1)
    assert hotset("logits", "-m", str(stories), "--tokens", "1,2", "-o", str(path)).returncode == 0
    assert np.load(path).shape == (2, 512)
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]
    streamed = hotset("logits", "-m", str(stories), "--tokens", "-", "-o", "-", stdin=b"[1, 2]")
    assert streamed.stdout == path.read_bytes()


def test_perplexity_is_the_mean_over_second_halves(hotset, tmp_path, stories, golden):
    text = "\n".join(story["text"] for story in golden["story_nll"])
    path = tmp_path / "stories.txt"
    path.write_text(text)
    n_ctx = 128
    ids = token_list(hotset("tokenize", "-m", str(stories), stdin=text.encode()))
    losses = []
    for start in range(0, len(ids) - n_ctx + 1, n_ctx):
        chunk = [1, *ids[start + 1 : start + n_ctx]]
        logits = logits_of(hotset, tmp_path, stories, chunk).astype(np.float64)
        for pos in range(n_ctx // 2, n_ctx - 1):
            row = logits[pos]
            losses.append(float(np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[chunk[pos + 1]]))
    words = ["perplexity", "-m", str(stories), "-f", str(path), "-c", str(n_ctx)]
    result = hotset(*words)
    assert result.returncode == 0, result.stderr
    last = result.stdout.decode().splitlines()[-1]
    match = re.fullmatch(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (\d+\.\d{5})", last)
    assert match, last
    assert float(match.group(1)) == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    answer = json.loads(hotset(*words, "--json").stdout)
    assert answer["n_scored"] == len(losses)
    assert answer["nll_mean"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert answer["ppl_error"] > 0


def test_perplexity_of_a_short_text_is_an_error(hotset, stories, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Once upon a time")
    result = hotset("perplexity", "-m", str(stories), "-f", str(path))
    assert_one_error_line(result, 1)
    assert b"[perplexity] text: expected at least 1024 tokens, got " in result.stderr


def test_kld_of_dense_against_dense_is_exactly_zero(hotset, stories, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little boat. It was blue. " * 30)
    words = ["kld", "-m", str(stories), "-f", str(path), "-c", "64", "--chunks", "3", "--mode", "dense"]
    answer = json.loads(hotset(*words, "--json").stdout)
    assert (answer["mean_kld"], answer["kld_p999"], answer["kld_max"], answer["same_top"]) == (0, 0, 0, 1)
    assert answer["ppl"] == answer["ppl_base"] > 1 and answer["ppl_ratio"] == 1
    assert (answer["n_tokens"], answer["mode"], answer["mode_base"]) == (3 * 31, "dense", "dense")
    perplexity = json.loads(hotset("perplexity", *words[1:], "--json").stdout)
    assert perplexity["ppl"] == answer["ppl"]
    text = hotset(*words).stdout
    assert b"mean KLD   0 +/- 0\n99.9 % KLD 0, largest 0\nsame top   100.0000 %\n" in text


def test_kld_of_exact_against_dense_is_exactly_zero(hotset, demo_model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little boat. It was blue. " * 30)
    words = ["kld", "-m", str(demo_model), "-f", str(path), "-c", "32", "--chunks", "2", "--mode", "exact", "--json"]
    for batch in ("1", "512"):  # every step sparse; large ones as the engine likes
        answer = json.loads(hotset(*words, "-b", batch).stdout)
        assert (answer["mode"], answer["mode_base"]) == ("exact", "dense")
        assert (answer["mean_kld"], answer["kld_max"], answer["same_top"], answer["ppl_ratio"]) == (0, 0, 1, 1)


def test_kld_of_exact_on_a_standard_file_takes_dense_on_the_weights_laid_out_anew(hotset, demo_model, tmp_path):
    path, standard = tmp_path / "text.txt", tmp_path / "standard.gguf"
    path.write_text("Once upon a time there was a little boat. It was blue. " * 30)
    assert hotset("quantize", str(demo_model), str(standard), "q4_0", "--layout", "gguf").returncode == 0
    words = ["kld", "-m", str(standard), "-f", str(path), "-c", "32", "--chunks", "2", "--mode", "exact", "--json"]
    same = json.loads(hotset(*words).stdout)
    assert (same["mean_kld"], same["kld_max"], same["same_top"], same["base_weights"]) == (0, 0, 1, "same")
    file = json.loads(hotset(*words, "--base-weights", "file").stdout)
    assert 0 < file["mean_kld"] < 0.1 and file["ppl"] == same["ppl"] and file["ppl_base"] != same["ppl_base"]


def test_kld_sees_another_number_format_of_the_kv_cache(hotset, stories, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little boat. It was blue. " * 30)
    words = ["kld", "-m", str(stories), "-f", str(path), "-c", "64", "--mode", "dense", "--kv-type", "f16"]
    answer = json.loads(hotset(*words, "--base-kv-type", "f32", "--json").stdout)
    assert (answer["kv_type"], answer["kv_type_base"]) == ("f16", "f32")
    assert 0 < answer["mean_kld"] < 1e-4 and answer["mean_kld"] < answer["kld_p999"] <= answer["kld_max"]
    assert answer["same_top"] > 0.9 and answer["ppl_ratio"] == pytest.approx(1, abs=1e-2)


def test_kld_refuses_what_it_cannot_run(hotset, stories, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Too short.")
    words = ["kld", "-m", str(stories), "-f", str(path)]
    assert_one_error_line(hotset(*words), 1)
    path.write_text("Once upon a time " * 200)
    result = hotset(*words, "-c", "16", "--mode", "predict")
    assert_one_error_line(result, 1)
    assert b"[engine] mode" in result.stderr


# --- inspect, bench, doctor -----------------------------------------------------------------------------------------


def test_inspect_tells_what_runs(hotset, demo_model, shared):
    answer = json.loads(hotset("inspect", "-m", str(demo_model), "--json").stdout)
    assert answer["runs"] is True and answer["verdict"]
    assert answer["file_bytes"] == demo_model.stat().st_size
    assert {"key", "type", "value"} == set(answer["metadata"][0])
    tensors = {tensor["name"]: tensor for tensor in answer["tensors"]}
    assert tensors["token_embd.weight"]["shape"][1] == 4096
    assert sum(t["n_bytes"] for t in answer["tensors"]) == sum(t["n_bytes"] for t in answer["types"].values())
    text = hotset("inspect", str(demo_model))
    assert text.returncode == 0 and b"runs      yes" in text.stdout and b"token_embd.weight" in text.stdout
    vocabulary = hotset("inspect", "-m", str(shared / "vocabs" / "ggml-vocab-gpt-2.gguf"), "--json")
    assert vocabulary.returncode == 1
    assert json.loads(vocabulary.stdout)["runs"] is False


BENCH_KEYS = {
    "model", "model_size", "model_n_params", "arch", "type", "mode", "device", "gpu", "n_threads", "isa", "n_prompt",
    "n_gen", "n_depth", "avg_ts", "stddev_ts", "samples_ts", "gbps", "bytes_per_token", "bandwidth_share", "vram_bytes",
    "ram_bytes", "active_share", "gpu_active_share", "build_commit",
}  # fmt: skip


def machine_rates(**changes) -> dict:
    """A machine.json as `bench --machine` would write it here."""
    doctor_cpu, cores = this_hardware()
    read = {"pages": "normal", "n_threads": 1, "dense_gbps": 1000.0, "dense_streams": 1, "gathered": []}
    hardware = {"cpu": doctor_cpu, "n_cores": cores, "memory_bytes": 1, "cache_bytes": 1}
    return {"format": "hotset-machine", "version": 1, "hardware": hardware, "buffer_bytes": 1, "read": [read],
            "gpu": None, "gpu_reason": "none", **changes}  # fmt: skip


@functools.cache
def this_hardware() -> tuple[str | None, int]:
    words = [os.environ.get("HOTSET_BIN") or shutil.which("hotset"), "doctor", "--json"]
    answer = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return answer["cpu"], answer["n_cores"]


def test_bench_knows_the_share_of_the_measured_bandwidth(hotset, demo_model, tmp_path):
    words = ["bench", "-m", str(demo_model), "-p", "4", "-n", "4", "-r", "2", "-t", "1"]
    path = tmp_path / "hotset" / "machine.json"
    path.parent.mkdir()
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    path.write_text(json.dumps(machine_rates()))
    result = hotset(*words, "-o", "json", env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    prompt, decode = json.loads(result.stdout)
    assert prompt["bandwidth_share"] is prompt["bytes_per_token"] is None
    assert decode["gbps"] == pytest.approx(decode["bytes_per_token"] * decode["avg_ts"] / 1e9)
    assert decode["bandwidth_share"] == pytest.approx(decode["gbps"] / 1000)
    table = hotset(*words, env=env).stdout.decode().splitlines()
    assert float(table[3].split("|")[9]) < 100 and table[2].split("|")[9].strip() == ""
    hardware = {"cpu": "another", "n_cores": 3, "memory_bytes": 1, "cache_bytes": 1}
    for text, note in (("{", b"bad JSON"), (json.dumps(machine_rates(hardware=hardware)), b"other hardware")):
        path.write_text(text)
        result = hotset(*words, "-o", "json", env=env)
        assert result.returncode == 0 and note in result.stderr
        assert json.loads(result.stdout)[1]["bandwidth_share"] is None


def test_bench_counts_the_bytes_of_active_units_only(hotset, demo_model):
    words = ["bench", "-m", str(demo_model), "-p", "0", "-n", "8", "-r", "1", "-t", "1", "-o", "json", "--mode"]
    dense, exact = (json.loads(hotset(*words, mode).stdout)[0] for mode in ("dense", "exact"))
    assert (dense["mode"], dense["active_share"], exact["mode"]) == ("dense", None, "exact")
    assert 0 < exact["active_share"] < 1
    # Of the FFN's three matrices up and down are read for active units: what is saved is linear in the share.
    tensors = json.loads(hotset("inspect", "-m", str(demo_model), "--json").stdout)["tensors"]
    skippable = sum(t["n_bytes"] for t in tensors if re.search(r"ffn_(up|down|down_t)\.", t["name"]))
    saved = dense["bytes_per_token"] - exact["bytes_per_token"]
    assert saved == pytest.approx((1 - exact["active_share"]) * skippable)


RECIPE = "llama activation=relu shape=n_layer=2,n_embd=96,n_ff=512,n_head=3,n_vocab=400 seed=3 type=q8_0 sparsity="


def test_bench_counts_all_bytes_where_most_units_are_active(hotset):
    words = ["bench", "--synth", RECIPE + "0.2", "-p", "0", "-n", "8", "-r", "1", "-t", "1", "-o", "json", "--mode"]
    dense, exact = (json.loads(hotset(*words, mode).stdout)[0] for mode in ("dense", "exact"))
    assert 0.7 < exact["active_share"] < 0.9
    assert exact["bytes_per_token"] == dense["bytes_per_token"]


def test_bench_counts_the_bytes_of_a_new_layout(hotset, tmp_path):
    """n_embd is no multiple of 256, so that rows of a K type become rows of another one when they are turned."""
    path = tmp_path / "a.gguf"
    shape = "n_layer=2,n_embd=96,n_ff=512,n_head=3,n_vocab=400"
    words = ["--arch", "llama", "--activation", "relu", "--shape", shape, "--type", "q4_k_m", "--layout", "gguf"]
    made = hotset("synth", *words, "-o", str(path))
    assert made.returncode == 0, made.stderr
    tensors = json.loads(hotset("inspect", "-m", str(path), "--json").stdout)["tensors"]
    n_bytes = {"down": 0, "up": 0}
    for tensor in tensors:
        if match := re.search(r"ffn_(up|down)\.weight", tensor["name"]):
            n_bytes[match[1]] += tensor["n_bytes"]
    assert {t["type"] for t in tensors if "ffn_down" in t["name"]} <= {"Q4_K", "Q6_K"}
    turned = 2 * 512 * 96 // 32 * 34  # Q8_0
    words = ["bench", "-m", str(path), "-p", "0", "-n", "8", "-r", "1", "-t", "1", "-o", "json", "--mode"]
    dense, exact = (json.loads(hotset(*words, mode).stdout)[0] for mode in ("dense", "exact"))
    skipped = (1 - exact["active_share"]) * (n_bytes["up"] + turned)
    assert dense["bytes_per_token"] - exact["bytes_per_token"] == pytest.approx(n_bytes["down"] - turned + skipped)


def test_bench_after_a_depth(hotset, demo_model):
    """Rows are named as llama-bench names them; keys and values of the depth count as memory and as bytes read."""
    words = ["bench", "-m", str(demo_model), "-p", "16,8", "-n", "4", "-d", "0,300", "-r", "2", "-t", "1"]
    words += ["--mode", "dense"]
    result = hotset(*words, "-o", "json")
    assert (result.returncode, result.stderr) == (0, b"")
    rows = json.loads(result.stdout)
    names = ["pp16", "pp8", "tg4"]
    assert [row["test"] for row in rows] == names + [name + " @ d300" for name in names]
    sizes = [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows[3:]]
    assert sizes == [(16, 0, 300), (8, 0, 300), (0, 4, 300)]
    assert all(len(row["samples_ts"]) == 2 and min(row["samples_ts"]) > 0 for row in rows)
    kv_bytes = (rows[3]["ram_bytes"] - rows[0]["ram_bytes"]) / 300
    assert kv_bytes > 0 and rows[0]["ram_bytes"] - rows[1]["ram_bytes"] == 8 * kv_bytes
    assert rows[5]["bytes_per_token"] - rows[2]["bytes_per_token"] == pytest.approx(300 * kv_bytes)
    assert rows[3]["bytes_per_token"] is None
    table = hotset(*words).stdout.decode().splitlines()
    assert [line.split("|")[6].strip() for line in table[2:8]] == [row["test"] for row in rows]
    assert hotset("bench", "-m", str(demo_model), "-p", "0", "-n", "0", "-d", "300", "-o", "json").stdout == b"[]\n"


def test_bench_machine_writes_what_bench_reads(hotset, demo_model, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = hotset("bench", "--machine", "-t", "1", "--seconds", "1", "--json", env=env)
    if b"free memory for --machine" in result.stderr:
        pytest.skip("too little memory")
    assert result.returncode == 0, result.stderr
    rates = json.loads(result.stdout)
    path = tmp_path / "cache" / "hotset" / "machine.json"
    assert json.loads(path.read_text()) == rates and list(path.parent.iterdir()) == [path]
    assert (rates["format"], rates["version"], rates["gpu"]) == ("hotset-machine", 1, None) and rates["gpu_reason"]
    assert rates["hardware"]["n_cores"] >= 1 and rates["buffer_bytes"] >= 2 * rates["hardware"]["cache_bytes"]
    assert {read["n_threads"] for read in rates["read"]} == {1}
    for read in rates["read"]:
        assert read["dense_gbps"] > 0 and len(read["gathered"]) == 30
        assert all(rate["gbps"] > 0 for rate in read["gathered"])
    words = ["bench", "-m", str(demo_model), "-p", "0", "-n", "2", "-r", "1", "-t", "1", "-o", "json"]
    assert json.loads(hotset(*words, env=env).stdout)[0]["bandwidth_share"] > 0
    result = hotset("bench", "--machine", "-o", str(tmp_path / "absent" / "x.json"))
    assert_one_error_line(result, 1)


def test_bench_formats_agree(hotset, demo_model):
    words = ["bench", "-m", str(demo_model), "-p", "16,0", "-n", "8", "-r", "2", "-t", "1,2"]
    result = hotset(*words, "-o", "json")
    assert (result.returncode, result.stderr) == (0, b"")
    rows = json.loads(result.stdout)
    assert [(row["n_threads"], row["n_prompt"], row["n_gen"]) for row in rows] == [
        (1, 16, 0), (1, 0, 8), (2, 16, 0), (2, 0, 8)]  # fmt: skip
    for row in rows:
        assert BENCH_KEYS <= set(row)
        assert len(row["samples_ts"]) == 2 and min(row["samples_ts"]) > 0
        assert row["avg_ts"] == pytest.approx(np.mean(row["samples_ts"]))
        assert row["stddev_ts"] == pytest.approx(np.std(row["samples_ts"], ddof=1))
        assert (row["gbps"] is None) == (row["n_gen"] == 0)
    lines = hotset(*words, "-o", "jsonl").stdout.splitlines()
    assert [set(json.loads(line)) for line in lines] == [set(row) for row in rows]
    table = list(csv.DictReader(io.StringIO(hotset(*words, "-o", "csv").stdout.decode())))
    assert [set(row) for row in table] == [set(row) for row in rows]
    markdown = hotset(*words).stdout.decode().splitlines()
    assert re.sub(" +", " ", markdown[0]) == "| model | size | params | backend | threads | test | t/s | GB/s | bw % |"
    assert [line.split("|")[6].strip() for line in markdown[2:6]] == ["pp16", "tg8", "pp16", "tg8"]
    assert all(line.count("|") == 10 for line in markdown[:6])


def test_threads_and_pinning_change_no_text(hotset):
    words = ["run", "-p", "Once upon a time", "-n", "16", "--temp", "0"]
    expected = hotset(*words, "-t", "1").stdout
    assert expected
    for n_threads in ("2", "16"):
        for pin in ("auto", "on", "off"):
            result = hotset(*words, "-t", n_threads, "--pin", pin)
            assert (result.returncode, result.stdout) == (0, expected)


def test_doctor_knows_the_machine(hotset, demo_model):
    answer = json.loads(hotset("doctor", "--json").stdout)
    assert answer["n_cores"] >= 1 and answer["memory_bytes"] >= answer["free_bytes"] > 0
    assert answer["read_gbps"] > 0
    assert answer["isa"] and answer["model"] and answer["version"]
    assert (answer["gpu"] is None) == bool(answer["gpu_reason"])
    assert re.search(r"\b[1-9]\d* threads? by default: ", answer["threads"])
    text = hotset("doctor")
    assert (text.returncode, text.stderr) == (0, b"")
    for word in (b"cpu ", b"threads ", b"memory ", b"gpu ", b"model "):
        assert re.search(rb"^" + word, text.stdout, re.MULTILINE)
    has_amx = answer["isa"] == "avx512" and "amx_int8" in answer["cpu_features"]
    assert (b"HOTSET_ISA=amx" in text.stdout) == has_amx
    broken = hotset("doctor", env={"HOTSET_MODEL": "/nonexistent/model.gguf"})
    assert broken.returncode == 0 and b"/nonexistent/model.gguf" in broken.stdout
