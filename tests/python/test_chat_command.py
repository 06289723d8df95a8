"""`hotset chat`: through pipes as a script uses it, on a pseudo-terminal as a person does."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY, assert_one_error_line
from gguf_bytes import with_texts
from test_cli_pty import Terminal

DEMO = REPOSITORY / "python" / "hotset" / "data" / "demo-relu-q8_0.gguf"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}"
COMMAND = [sys.executable, "-c", "import sys; from hotset.cli import main; sys.exit(main())", "chat", "-t", "1"]
PLAIN = ["--chat-template", TEMPLATE, "--temp", "0"]
# Answers at a speed at which a person can interrupt them, and without end.
ENDLESS = ["--chat-template", TEMPLATE, "--temp", "2", "--min-p", "0", "-n", "-1", "-c", "500000"]


def chat(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, timeout=60)


def test_lines_of_a_pipe_are_answered(tmp_path: Path) -> None:
    import hotset

    saved = tmp_path / "talk.json"
    lines = f"Once upon a time\n\n/stats\n/save {saved}\nThe cat\r\n/reset\nOnce upon a time"
    result = chat(*PLAIN, "-n", "8", stdin=lines.encode())
    assert result.returncode == 0, result.stderr
    talk = json.loads(saved.read_text())
    with hotset.Model(n_threads=1) as model:

        def answer(talk: list[dict[str, str]]) -> str:
            return str(model.chat(talk, chat_template=TEMPLATE, max_tokens=8, temperature=0.0))

        first = [{"role": "user", "content": "Once upon a time"}]
        assert talk == [*first, {"role": "assistant", "content": answer(first)}]
        second = answer([*talk, {"role": "user", "content": "The cat"}])
    assert result.stdout.decode() == "".join(f"{text}\n" for text in (talk[1]["content"], second, talk[1]["content"]))
    assert result.stderr.count(b"\n") == 2 and b" tokens of 512, 0 reused | 2 messages ]\n" in result.stderr
    assert list(tmp_path.iterdir()) == [saved]


def test_template_of_the_file_system_message_and_first_message(tmp_path: Path) -> None:
    path = tmp_path / "chat.gguf"
    path.write_bytes(with_texts(DEMO, {"tokenizer.chat_template": TEMPLATE}))
    words = ["-m", str(path), "--temp", "0", "-n", "6", "-sys", "Once upon", "-p", "a time", "--single-turn"]
    result = chat(*words, stdin=b"never read\n")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == chat(*PLAIN, "-n", "6", "-p", "Once upon a time").stdout != b""


@pytest.mark.parametrize(
    ("words", "stdin", "code", "told"),
    [
        ([], b"hi\n", 1, b"got none; use a chat model, or name a template (chatml, or a file)"),
        (["--chat-template", "{% if %}"], b"hi\n", 1, b"one that Jinja reads"),
        (["--chat-template", "nothing"], b"hi\n", 1, b"one of chatml, or a file"),
        (["--chat-template", "chatml", "--chat-template-kwargs", "[]"], b"", 1, b"a JSON object"),
        (["--chat-template", "{{ raise_exception('no') }}"], b"", 1, b"correct roles and contents"),
        ([*PLAIN, "-n", "1"], b"word " * 2000, 1, b"512"),
        ([*PLAIN], b"/sing\n", 1, b"/reset, /stats, /save FILE, /help or /exit"),
        ([*PLAIN], b"/save\n", 1, b"write /save FILE"),
        (["--tmep", "0"], b"", 2, b"did you mean --temp?"),
        (["-n", "ten"], b"", 2, b"invalid int value"),
    ],
)
def test_errors(words: list[str], stdin: bytes, code: int, told: bytes) -> None:
    result = chat(*words, stdin=stdin)
    assert_one_error_line(result, code)
    assert told in result.stderr


def test_nothing_to_save_into_leaves_no_file(tmp_path: Path) -> None:
    result = chat(*PLAIN, "-n", "1", stdin=f"/save {tmp_path / 'no' / 'folder.json'}\n".encode())
    assert_one_error_line(result, 1)
    assert b"No such file" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_error() -> None:
    command = shlex.join([*COMMAND, *PLAIN, "-n", "8", "-p", "Once"]) + " | true; echo ${PIPESTATUS[0]}"
    lines = b"Once upon a time\n" * 50
    result = subprocess.run(["bash", "-c", command], input=lines, capture_output=True, timeout=60)
    assert (result.stdout, result.stderr) == (b"0\n", b"")


def test_a_person_talks() -> None:
    with Terminal([*COMMAND, *PLAIN, "-n", "8"]) as terminal:
        terminal.read_until(lambda seen: seen.endswith(b"> "))
        terminal.type(b"Once upon \\\na time\n")
        terminal.read_until(lambda seen: b"there was" in seen and seen.endswith(b"\n> "))
        terminal.type(b"/nonsense\n")
        terminal.read_until(lambda seen: b"error: [chat] command" in seen and seen.endswith(b"> "))
        terminal.type(b"/help\n/exit\n")
        assert terminal.finish() == 0
    assert b"/reset forgets" in terminal.seen


def test_ctrl_c_stops_the_answer_then_leaves() -> None:
    with Terminal([*COMMAND, *ENDLESS]) as terminal:
        terminal.read_until(lambda seen: seen.endswith(b"> "))
        terminal.type(b"Once upon a time\n")
        n_before = len(terminal.seen)
        terminal.read_until(lambda seen: len(seen) > n_before + 100)
        terminal.type(b"\x03")
        terminal.read_until(lambda seen: seen.endswith(b"\n> "))
        terminal.type(b"/stats\n")
        terminal.read_until(lambda seen: b"| 2 messages ]" in seen and seen.endswith(b"> "))
        terminal.type(b"\x03")
        terminal.type(b"\n")  # Python's readline may sleep through a signal that comes just before it waits
        assert terminal.finish() == 130
    assert b"Traceback" not in terminal.seen


def test_end_of_input_leaves() -> None:
    with Terminal([*COMMAND, *PLAIN]) as terminal:
        terminal.read_until(lambda seen: seen.endswith(b"> "))
        terminal.type(b"\x04")
        assert terminal.finish() == 0
