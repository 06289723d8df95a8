"""`hotset run --prompt-cache`: the second run computes only what differs, and says the same."""

from __future__ import annotations

import json

import pytest

from conftest import assert_one_error_line

STORY = "Once upon a time there was a little girl who lived in a big forest. She had a dog and a cat." * 2


@pytest.fixture
def run(hotset, demo_model):
    def call(prompt, *words, **options):
        result = hotset(
            "run", "-m", str(demo_model), "-p", prompt, "-n", "8", "--temp", "0", "-t", "2", "--json", *words, **options
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return call


def test_only_what_differs_is_computed(run, tmp_path):
    cache = tmp_path / "cache"
    plain = run(STORY)
    first = run(STORY, "--prompt-cache", str(cache))
    saved = cache.read_bytes()
    second = run(STORY, "--prompt-cache", str(cache))
    n = plain["timings"]["n_prompt"]
    assert [each["timings"]["n_prompt_reused"] for each in (plain, first, second)] == [0, 0, n - 1]
    assert plain["tokens"] == first["tokens"] == second["tokens"]
    assert cache.read_bytes() == saved
    longer = run(STORY + " One day", "--prompt-cache", str(cache))
    assert longer["timings"]["n_prompt_reused"] == n
    assert longer["tokens"] == run(STORY + " One day")["tokens"]
    assert len(cache.read_bytes()) > len(saved)
    longest = cache.read_bytes()
    assert run(STORY, "--prompt-cache", str(cache))["timings"]["n_prompt_reused"] == n - 1
    assert cache.read_bytes() == longest  # holds the shorter prompt too


def test_a_prompt_that_parts_midway_takes_the_common_beginning(run, tmp_path):
    cache = tmp_path / "cache"
    run(STORY + " One day she went to the park", "--prompt-cache", str(cache))
    other = STORY + " Her mother was sad"
    n = run(STORY, "--prompt-cache", str(cache), "--prompt-cache-ro")["timings"]["n_prompt"]
    words = (other, "--prompt-cache", str(cache))
    on_two_devices = run(*words, "--prompt-cache-ro", "--device", "virtual", "--vram-budget", "26MiB")
    parted = run(*words)
    assert parted["timings"]["n_prompt_reused"] == on_two_devices["timings"]["n_prompt_reused"] == n
    assert parted["tokens"] == on_two_devices["tokens"] == run(other)["tokens"]
    again = run(*words)  # the file holds this prompt now
    assert again["timings"]["n_prompt_reused"] == again["timings"]["n_prompt"] - 1


def test_the_prompt_is_saved_however_its_continuation_ends(hotset, demo_model, run, tmp_path):
    cache = tmp_path / "cache"
    words = ["run", "-m", str(demo_model), "-p", STORY, "-n", "-1", "-c", "64", "--ignore-eos"]
    result = hotset(*words, "--prompt-cache", str(cache))
    assert result.returncode == 1 and b"a full context of 64" in result.stderr
    reused = run(STORY, "--prompt-cache", str(cache))["timings"]
    assert reused["n_prompt_reused"] == reused["n_prompt"] - 1


def test_all_and_read_only(run, tmp_path):
    cache = tmp_path / "cache"
    first = run(STORY, "--prompt-cache", str(cache), "--prompt-cache-all")
    n = first["timings"]["n_prompt"]
    with_text = cache.read_bytes()
    goes_on = run(STORY + first["text"], "--prompt-cache", str(cache), "--prompt-cache-ro")
    assert goes_on["timings"]["n_prompt_reused"] >= n
    run("A dog", "--prompt-cache", str(cache), "--prompt-cache-ro")
    assert cache.read_bytes() == with_text
    none = tmp_path / "none"
    run("A dog", "--prompt-cache", str(none), "--prompt-cache-ro")
    assert not none.exists()


def test_the_timings_line_counts_what_was_reused(hotset, demo_model, tmp_path):
    words = ["run", "-m", str(demo_model), "-p", STORY, "-n", "2", "--prompt-cache", str(tmp_path / "cache")]
    lines = [hotset(*words).stderr.decode().splitlines()[-1] for _ in range(2)]
    assert "reused" not in lines[0]
    assert " reused of " in lines[1]


def test_files_that_do_not_fit_are_errors(hotset, demo_model, tmp_path, run):
    cache = tmp_path / "cache"
    run(STORY, "--prompt-cache", str(cache))
    good = cache.read_bytes()
    words = ["run", "-m", str(demo_model), "-p", "x", "-n", "2", "--prompt-cache", str(cache)]
    assert_one_error_line(hotset(*words, "--kv-type", "q8_0"), 1)
    for bad in (b"", b"HSEQ", good[:-1], good[:200] + b"x" + good[201:]):
        cache.write_bytes(bad)
        result = hotset(*words)
        assert_one_error_line(result, 1)
        assert cache.read_bytes() == bad
    assert_one_error_line(hotset(*words[:-1], str(tmp_path)), 1)  # a folder
    assert_one_error_line(hotset("run", "-p", "x", "--prompt-cache-ro"), 2)


def test_a_file_that_cannot_be_written_is_an_error_after_the_text(hotset, demo_model, tmp_path):
    words = ["run", "-m", str(demo_model), "-p", STORY, "-n", "2", "--prompt-cache", str(tmp_path / "none" / "cache")]
    result = hotset(*words)
    assert result.returncode == 1 and result.stdout
    assert b"hotset: error: [file " in result.stderr.splitlines()[-1]
