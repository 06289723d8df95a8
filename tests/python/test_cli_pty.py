"""The native command on a pseudo-terminal: what a person sees, and Ctrl-C from the keyboard."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios

import pytest

DEADLINE_S = 60
ENDLESS = ("-n", "-1", "--ignore-eos", "--context-shift")


class Terminal:
    """A child with a terminal of its own. Streams are the terminal unless `streams` redirects them."""

    def __init__(self, words, **streams):
        self.master, slave = pty.openpty()
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, **streams}

        def take_terminal():
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.child = subprocess.Popen(
            words, start_new_session=True, preexec_fn=take_terminal, pass_fds=(slave,), **streams
        )
        os.close(slave)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.master)

    def _read_some(self) -> bool:
        if not select.select([self.master], [], [], DEADLINE_S)[0]:
            pytest.fail(f"silence after {self.seen!r}")
        try:
            data = os.read(self.master, 4096)
        except OSError:  # the last user of the terminal has closed it
            return False
        self.seen += data
        return bool(data)

    def read_until(self, enough):
        """Reads until `enough(bytes seen)`; fails when the child ends first."""
        while not enough(self.seen):
            assert self._read_some(), f"ended after {self.seen!r}"

    def finish(self) -> int:
        """Reads to the end; the exit code, negative for a signal."""
        while self._read_some():
            pass
        return self.child.wait(timeout=DEADLINE_S)

    def type(self, keys: bytes):
        os.write(self.master, keys)


def test_a_person_sees_text_newline_and_timings(hotset_bin, demo_model):
    words = [hotset_bin, "run", "-m", str(demo_model), "-p", "Once upon a time", "-n", "8", "--temp", "0"]
    with Terminal(words) as terminal:
        assert terminal.finish() == 0
    text = subprocess.run(words, capture_output=True, check=True).stdout
    lines = terminal.seen.replace(b"\r\n", b"\n").split(b"\n", 1)[1]  # without the line on model and device
    assert lines.startswith(text + b"\n[ Prompt: ")
    assert terminal.seen.endswith(b"]\r\n")


def test_no_prompt_on_a_terminal_does_not_wait(hotset_bin):
    with Terminal([hotset_bin, "run"]) as terminal:
        assert terminal.finish() == 2
    assert b"no prompt" in terminal.seen


def test_stdout_of_a_pipe_stays_clean_beside_a_terminal(hotset_bin, demo_model):
    words = [hotset_bin, "bench", "-m", str(demo_model), "-p", "8", "-n", "4", "-r", "2", "-o", "csv"]
    with Terminal(words, stdout=subprocess.PIPE) as terminal:
        assert terminal.finish() == 0
        out = terminal.child.stdout.read()
        terminal.child.stdout.close()
    assert b"\r" not in out and b"\x1b" not in out
    assert out.count(b"\n") == 3
    assert b"tg4 2/2" in terminal.seen  # progress is for the person


@pytest.mark.parametrize("stdout", [None, subprocess.DEVNULL], ids=["terminal", "redirected"])
def test_ctrl_c_stops_generation(hotset_bin, demo_model, stdout):
    words = [hotset_bin, "run", "-m", str(demo_model), "-p", "Once", *ENDLESS]
    with Terminal(words, **({} if stdout is None else {"stdout": stdout})) as terminal:
        # On the terminal wait for text, otherwise for the line that comes before it.
        terminal.read_until(lambda seen: b"\n" in seen and (stdout is not None or len(seen.split(b"\n", 1)[1]) > 20))
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert b"| cancelled ]" in terminal.seen


def test_ctrl_c_stops_prefill(hotset_bin, demo_model, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("and then he said to her that " * 20000)
    words = [hotset_bin, "run", "-m", str(demo_model), "-f", str(path), "-c", "200000"]
    with Terminal(words) as terminal:
        terminal.read_until(lambda seen: b", context 200000," in seen)
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert b" + 0 tokens | cancelled ]" in terminal.seen


def test_ctrl_c_stops_a_measurement(hotset_bin, demo_model):
    words = [hotset_bin, "bench", "-m", str(demo_model), "-p", "0", "-n", "64", "-r", "100000"]
    with Terminal(words) as terminal:
        terminal.read_until(lambda seen: b"tg64 2/" in seen)
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert b"error" not in terminal.seen


def test_end_of_input_on_the_terminal_ends_the_text(hotset_bin, demo_model):
    with Terminal([hotset_bin, "tokenize", "-m", str(demo_model), "--no-bos"], stdout=subprocess.PIPE) as terminal:
        terminal.type(b"a b\n\x04")
        assert terminal.finish() == 0
        out = terminal.child.stdout.read()
        terminal.child.stdout.close()
    piped = subprocess.run([hotset_bin, "tokenize", "-m", str(demo_model), "--no-bos"], input=b"a b\n",
                           capture_output=True, check=True)  # fmt: skip
    assert out == piped.stdout
