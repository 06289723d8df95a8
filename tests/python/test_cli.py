"""The native command through pipes: output, exit codes, bad input, golden results."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import signal
import subprocess

import pytest

from conftest import assert_one_error_line

TIMINGS = re.compile(
    rb"\[ Prompt: [0-9.]+ t/s \| Generation: [0-9.]+ t/s \| (?:[0-9.]+ % of units active \| )?"
    rb"(\d+) \+ (\d+) tokens \| (\w+) \]\n"
)
COMMANDS = "run bench perplexity kld tokenize detokenize logits inspect quantize synth doctor".split()
GREEDY = ("--temp", "0")


# --- help, versions, usage ------------------------------------------------------------------------------------------


def test_help_of_the_command_lists_the_subcommands(hotset):
    result = hotset("--help")
    assert (result.returncode, result.stderr) == (0, b"")
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", result.stdout.decode(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_subcommand(hotset, command):
    for flag in ("--help", "-h"):
        result = hotset(command, flag)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.startswith(b"usage: hotset " + command.encode())


def test_version(hotset):
    result = hotset("--version")
    assert (result.returncode, result.stderr) == (0, b"")
    assert re.fullmatch(rb"hotset \d+\.\d+\.\d+\S* \(.+\)\n", result.stdout)


def test_no_command_shows_the_usage_and_fails(hotset):
    result = hotset()
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"usage: hotset COMMAND" in result.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rnu", "-p", "x"], b"did you mean run?"),
        (["run", "--promt", "x"], b"did you mean --prompt?"),
        (["run", "--tmep=1", "-p", "x"], b"did you mean --temp?"),
        (["bench", "--thread", "1"], b"did you mean --threads?"),
        (["logits", "--token", "1"], b"did you mean --tokens?"),
        (["chat"], b"pip install hotset"),
        (["serve", "--port", "1"], b"pip install hotset"),
        (["quantize", "a", "b", "q8_0", "--order", "s.npz"], b"pip install hotset"),
        (["bench", "--machine", "-p", "1"], b"contradicting flags"),
        (["bench", "--machine", "-d", "1"], b"contradicting flags"),
        (["bench", "--machine", "-o", "json"], b"use --json"),
        (["bench", "--machine", "--seconds", "0"], b"bad value of --seconds"),
        (["bench", "--machine", "--synth", "shape=tiny"], b"contradicting flags"),
        (["run", "-p", "x", "-hf", "owner/repo"], b"pip install hotset"),
        (["run", "-p", "x", "-m", "hf:owner/repo"], b"pip install hotset"),
        (["run"], b"no prompt"),
        (["run", "-p", "x", "-f", "y"], b"two prompts"),
        (["run", "x"], b"unexpected argument"),
        (["run", "-p"], b"missing value"),
        (["run", "-p", "x", "-n", "ten"], b"bad value of -n"),
        (["run", "-p", "x", "-n", "1e3"], b"bad value of -n"),
        (["run", "-p", "x", "-n", "99999999999999999999"], b"bad value of -n"),
        (["run", "-p", "x", "-n", "-2"], b"bad value of -n"),
        (["run", "-p", "x", "-t", "-1"], b"bad value of -t"),
        (["run", "-p", "x", "-c", ""], b"bad value of -c"),
        (["run", "-p", "x", "--temp", "nan"], b"bad value of --temp"),
        (["run", "-p", "x", "--temp", "-1"], b"bad value of --temp"),
        (["run", "-p", "x", "--top-p", "0"], b"bad value of --top-p: expected a number above 0, up to 1, got"),
        (["run", "-p", "x", "--top-p", "1e-60"], b"bad value of --top-p"),
        (["run", "-p", "x", "--temp", "1e300"], b"bad value of --temp"),
        (["run", "-p", "x", "--mode", "fast"], b"exact|predict|dense|auto"),
        (["run", "-p", "x", "--vram-budget", "8 parrots"], b"8GiB"),
        (["run", "-p", "x", "--adapt", "maybe"], b"on|off"),
        (["run", "-p", "x", "--kv-place", "moon"], b"auto|device|host"),
        (["run", "-p", "x", "--pin", "maybe"], b"auto|on|off"),
        (["run", "-p", "x", "-ngl", "some"], b"bad value of -ngl"),
        (["run", "-p", "x", "-ngl", "all", "--device", "cpu"], b"contradicting"),
        (["run", "-p", "x", "--json=yes"], b"no value"),
        (["bench", "-t", "1,,2"], b"bad value of -t"),
        (["bench", "-d", "-1"], b"bad value of -d"),
        (["bench", "-o", "sql"], b"md|csv|json|jsonl"),
        (["perplexity"], b"no text"),
        (["perplexity", "-f", "x", "-c", "2"], b"bad value of -c,--ctx-size: expected an integer from 3 to"),
        (["kld"], b"[kld] no text"),
        (["kld", "-f", "x", "--chunks", "1"], b"bad value of --chunks"),
        (["kld", "-f", "x", "--base-kv-type", "f64"], b"auto|f16|f32|q8_0"),
        (["logits", "--tokens", "1"], b"no -o"),
        (["logits", "-o", "x.npy"], b"no --tokens"),
        (["logits", "--tokens", "1,x", "-o", "x.npy"], b"bad value of --tokens"),
    ],
)
def test_wrong_usage(hotset, words, hint, demo_model):
    result = hotset(*words, env={"HOTSET_MODEL": str(demo_model)})
    assert_one_error_line(result, 2)
    assert hint in result.stderr


def test_asking_for_a_gpu_that_is_not_there_is_an_error(hotset, demo_model):
    doctor = json.loads(hotset("doctor", "--json", env={"HOTSET_MODEL": str(demo_model)}).stdout)
    if doctor["gpu"] is not None:
        pytest.skip("this machine and build have a GPU")
    for words in (["--device", "cuda"], ["-ngl", "all"], ["-ngl", "5"]):
        assert_one_error_line(hotset("run", "-m", str(demo_model), "-p", "x", "-n", "1", *words), 1)
    for words in (["-ngl", "0"], ["-ngl", "auto"], ["--device", "cpu"], ["--vram-budget", "8GiB"], ["--adapt", "on"]):
        result = hotset("run", "-m", str(demo_model), "-p", "x", "-n", "1", *words)
        assert result.returncode == 0, result.stderr
        is_noted = words[0] in ("--vram-budget", "--adapt")
        assert (b"no effect" in result.stderr) == is_noted


def test_a_kv_cache_on_a_gpu_that_is_not_there_is_an_error(hotset, demo_model, tmp_path):
    doctor = json.loads(hotset("doctor", "--json", env={"HOTSET_MODEL": str(demo_model)}).stdout)
    if doctor["gpu"] is not None:
        pytest.skip("this machine and build have a GPU")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time " * 400)
    for words in (["run", "-p", "x", "-n", "1"], ["bench", "-p", "1", "-n", "1"], ["perplexity", "-f", str(text)],
                  ["logits", "--tokens", "1", "-o", str(tmp_path / "x.npy")]):  # fmt: skip
        result = hotset(*words, "-m", str(demo_model), "--kv-place", "device")
        assert_one_error_line(result, 1)
        assert b"--kv-place" in result.stderr
        for place in ("auto", "host"):
            assert hotset(*words, "-m", str(demo_model), "--kv-place", place).returncode == 0


# --- run ------------------------------------------------------------------------------------------------------------


def test_run_prints_only_generated_text_on_stdout(hotset, demo_model):
    words = ["run", "-m", str(demo_model), "-p", "Once upon a time", "-n", "16", *GREEDY]
    plain = hotset(*words)
    assert plain.returncode == 0, plain.stderr
    timings = TIMINGS.search(plain.stderr)
    assert timings and timings.group(2) == b"16" and timings.group(3) == b"length", plain.stderr
    assert plain.stderr.count(b"\n") == 2  # what runs on what, and the timings
    assert b"\r" not in plain.stderr and b"\x1b" not in plain.stderr
    answer = json.loads(hotset(*words, "--json").stdout)
    assert answer["text"].encode() == plain.stdout
    assert len(answer["tokens"]) == 16
    assert answer["finish_reason"] == "length"
    assert answer["timings"]["n_generated"] == 16
    assert b"Once upon a time" not in plain.stdout[:20]


def test_run_uses_the_packaged_model_by_default(hotset, demo_model):
    default = hotset("run", "-p", "Once", "-n", "8", *GREEDY)
    named = hotset("run", "-p", "Once", "-n", "8", *GREEDY, "-m", str(demo_model))
    assert default.returncode == named.returncode == 0, default.stderr
    assert default.stdout == named.stdout


def test_golden_greedy_text_of_stories260k(hotset, shared, stories, golden):
    text = (shared / "models" / "stories260K" / "expected_stdout.pyline.txt").read_text()
    expected = ast.literal_eval(text.split("=", 1)[1].strip())
    result = hotset("run", "-m", str(stories), "-p", "", "-n", "200", *GREEDY)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected
    ids = golden["greedy_ids_from_bos"]
    answer = json.loads(hotset("run", "-m", str(stories), "-p", "", "-n", str(len(ids)), *GREEDY, "--json").stdout)
    assert answer["tokens"] == ids


def test_seed_repeats_a_run_and_another_changes_it(hotset, demo_model):
    words = ["run", "-m", str(demo_model), "-p", "The little fox", "-n", "32", "--temp", "1"]
    first, second, other = (hotset(*words, "--seed", seed).stdout for seed in ("7", "7", "8"))
    assert first == second != other
    unseeded = hotset(*words, "--json")
    again = hotset(*words, "--json", "--seed", str(json.loads(unseeded.stdout)["seed"]))
    assert json.loads(again.stdout)["tokens"] == json.loads(unseeded.stdout)["tokens"]


def test_every_way_to_pass_a_prompt_is_the_same(hotset, demo_model, tmp_path):
    prompt = "Lily saw a\nbird. \xe9".encode("latin-1")  # the last byte is not UTF-8
    path = tmp_path / "prompt.txt"
    path.write_bytes(prompt)
    words = ["run", "-m", str(demo_model), "-n", "8", *GREEDY]
    results = [hotset(*words, "-p", prompt), hotset(*words, "-p", "-", stdin=prompt), hotset(*words, "-f", str(path))]
    assert [r.returncode for r in results] == [0, 0, 0], results[0].stderr
    assert results[0].stdout == results[1].stdout == results[2].stdout
    results[0].stdout.decode("utf-8")


def test_random_bytes_are_a_prompt(hotset, demo_model):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(5):
        prompt = bytes(source.randrange(256) for _ in range(64))
        result = hotset("run", "-m", str(demo_model), "-p", "-", "-n", "4", *GREEDY, stdin=prompt)
        assert result.returncode == 0, (prompt, result.stderr)
        result.stdout.decode("utf-8")


def test_threads_batches_and_isa_do_not_change_the_text(hotset, demo_model):
    words = ["run", "-m", str(demo_model), "-p", "Once upon a time there was a", "-n", "24", *GREEDY]
    expected = hotset(*words).stdout
    assert expected
    for extra in (["-t", "1"], ["-t", "3"], ["-b", "1"], ["-b", "3"], ["-c", "64"]):
        assert hotset(*words, *extra).stdout == expected, extra
    tried = 0
    for isa in ("generic", "avx2", "avx512", "amx"):
        result = hotset(*words, env={"HOTSET_ISA": isa})
        if result.returncode != 0:
            assert isa != "generic"
            assert_one_error_line(result, result.returncode)  # this CPU lacks it: a clear error
            continue
        tried += 1
        assert result.stdout == expected, isa
    assert tried >= 1


def test_prompt_beyond_the_context_is_an_error(hotset, demo_model):
    result = hotset("run", "-m", str(demo_model), "-p", "word " * 500, "-c", "64", "-n", "4")
    assert_one_error_line(result, 1)


def test_end_of_the_context_is_an_error_unless_shifted(hotset, demo_model):
    words = ["run", "-m", str(demo_model), "-p", "Once", "-n", "100", "-c", "48", "--ignore-eos", *GREEDY]
    full = hotset(*words)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith(b"hotset: error: [")
    assert full.stdout  # what came before the end was delivered
    shifted = hotset(*words, "--context-shift")
    assert shifted.returncode == 0, shifted.stderr
    assert shifted.stdout.startswith(full.stdout)
    assert TIMINGS.search(shifted.stderr).group(2) == b"100"


def test_json_of_a_run_that_met_the_end_of_the_context(hotset, demo_model):
    words = ["run", "-m", str(demo_model), "-p", "Once", "-n", "-1", "-c", "48", "--ignore-eos", *GREEDY]
    result = hotset(*words, "--json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert answer["text"].encode() == hotset(*words).stdout
    assert 40 < len(answer["tokens"]) == answer["timings"]["n_generated"]
    assert answer["finish_reason"] is None
    last = result.stderr.decode().splitlines()[-1]
    assert last == f"hotset: error: {answer['error']}" and "--context-shift" in last
    assert json.loads(hotset(*words, "--json", "--context-shift", "-n", "60").stdout)["error"] is None


def test_no_limit_is_what_help_promises(hotset):
    text = hotset("run", "--help").stdout.decode()
    assert re.search(r"--n-predict N\s+tokens to generate \(256\); -1 = no limit\n", text)
    assert re.search(r"--context-shift\s+at the end of the context forget the older half instead of failing\n", text)


def test_without_a_prompt_nothing_waits_for_input(hotset_bin):
    child = subprocess.Popen([hotset_bin, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.wait(timeout=30) == 2  # stdin stays open and empty
    finally:
        child.kill()
        child.communicate()


def test_reader_that_leaves_ends_the_run_quietly(hotset_bin, demo_model):
    words = [hotset_bin, "run", "-m", str(demo_model), "-p", "Once", "-n", "-1", "--ignore-eos", "--context-shift"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout.read(10)
        child.stdout.close()
        assert child.wait(timeout=60) == 0
        assert b"error" not in child.stderr.read()
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_disk_is_an_error(hotset, demo_model):
    with open("/dev/full", "wb") as full:
        result = hotset("tokenize", "-m", str(demo_model), stdin=b"abc", stdout=full)
    assert result.returncode == 1
    assert result.stderr.startswith(b"hotset: error: [stdout]") and result.stderr.count(b"\n") == 1


def test_closed_streams_do_no_harm(hotset_bin, demo_model):
    script = '"$0" tokenize -m "$1" -p abc >&-; "$0" tokenize -m "$1" <&-; "$0" tokenize -m "$1" -p abc 2>&-'
    result = subprocess.run(["sh", "-c", script, hotset_bin, str(demo_model)], capture_output=True, check=False)
    assert result.stderr.startswith(b"hotset: error: [stdout]") and result.stderr.count(b"\n") == 1
    assert [type(json.loads(line)) for line in result.stdout.splitlines()] == [list, list]


def test_interrupt_stops_generation(hotset_bin, demo_model):
    words = [hotset_bin, "run", "-m", str(demo_model), "-p", "Once", "-n", "-1", "--ignore-eos", "--context-shift"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout.read(10)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 130
        assert TIMINGS.search(errors).group(3) == b"cancelled"
    finally:
        child.kill()
        child.wait()


def test_interrupt_stops_prefill(hotset_bin, demo_model):
    """A prompt that takes minutes ends at once; nothing is generated."""
    words = [hotset_bin, "run", "-m", str(demo_model), "-p", "-", "-c", "200000"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        child.stdin.write(b"and then he said to her that " * 20000)
        child.stdin.close()
        child.stdin = None
        line = child.stderr.readline()
        while b", context 200000," not in line:  # comes just before the prefill
            assert line, "ended before the prefill"
            line = child.stderr.readline()
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=60)
        assert (child.returncode, out) == (130, b""), errors
        assert TIMINGS.search(errors).group(2, 3) == (b"0", b"cancelled")
    finally:
        child.kill()
        child.wait()


def test_interrupt_while_waiting_for_stdin(hotset_bin, demo_model):
    words = [hotset_bin, "tokenize", "-m", str(demo_model)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        child.stdin.write(b"x" * (1 << 20))  # more than a pipe holds: returns once the child reads
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 130
        assert child.stdout.read() == child.stderr.read() == b""
    finally:
        child.kill()
        child.communicate()
