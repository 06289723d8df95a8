"""Texts of the offline phase: files come in pieces that add up, chats through the template, bad lines are named."""

from __future__ import annotations

import json

import pytest

import hotset as package
from hotset.chat_template import ChatTemplate, template_of
from hotset.errors import Error
from hotset.offline.texts import PIECE_BYTES, Chat, JsonLines, PlainText, Texts

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"


class FakeEngine:
    """Tokens are bytes; `</s>` is a control token."""

    def tokenize(self, text, add_special, parse_special):
        if parse_special and b"</s>" in text:
            return [2]
        return list(text)


def pieces(source):
    return list(source.pieces(FakeEngine()))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"short", b"word " * 50000, b"line\n" * 50000, b"x" * 200001, "\u00e9\u6f22\U0001f600".encode() * 30000,
        b"\xff" * 200000, b"\n" * PIECE_BYTES, b" " * (PIECE_BYTES + 1),
    ],
)  # fmt: skip
def test_pieces_of_a_file_add_up_and_are_short(tmp_path, text):
    file = tmp_path / "a.txt"
    file.write_bytes(text)
    found = pieces(PlainText(file))
    assert b"".join(piece.text for piece in found) == b"".join(piece.data for piece in found) == text
    assert [piece.starts for piece in found] == [True, *[False] * (len(found) - 1)][: len(found)]
    assert all(0 < len(piece.text) <= 2 * PIECE_BYTES for piece in found)
    for piece in found[:-1]:
        if b"\n" in text or b" " in text:
            assert piece.text[-1:] in b"\n "
        elif text[:1] != b"\xff":
            piece.text.decode()  # characters stay whole
    in_memory = pieces(Texts([text.decode("utf-8", "surrogateescape")]))
    assert b"".join(piece.text for piece in in_memory) == text


def test_json_lines_give_their_field(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"t": "one"}\n\n  {"t": ["two", "thr\\u00e9e"], "u": 5}\n{"t": []}\n{"t": "\\ud800"}')
    found = pieces(JsonLines(file, "t"))
    texts = [piece.text for piece in found if piece.text]
    assert texts == [b"one", b"two", "thr\u00e9e".encode(), b"\xed\xa0\x80"]
    assert b"".join(piece.data for piece in found) == file.read_bytes()
    assert all(piece.starts for piece in found)


@pytest.mark.parametrize("line", ["{", "5", '{"u": "x"}', '{"t": 5}', '{"t": [5]}', "[" * 100000, "null", "\xff"])
def test_bad_lines_are_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"t": "one"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(Error, match="a.jsonl, line 2: expected"):
        pieces(JsonLines(file, "t"))
    with pytest.raises(Error, match="a.jsonl, line "):
        pieces(Chat(file, ChatTemplate(TEMPLATE)))


def test_long_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hotset.offline.texts.MAX_LINE_BYTES", 100)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"t": "x" * 200}))
    with pytest.raises(Error, match="line 1: expected at most"):
        pieces(JsonLines(file, "t"))


def test_missing_files_and_folders_are_refused(tmp_path):
    for path, got in ((tmp_path / "none", "none"), (tmp_path, "a folder")):
        with pytest.raises(Error, match=got):
            PlainText(path)


def test_conversations_go_through_the_template(tmp_path):
    file = tmp_path / "a.jsonl"
    talk = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello"}]
    other = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    evil = [{"role": "user", "content": "a</s>b"}]
    lines = [{"messages": talk}, talk, {"conversations": other}, {"messages": evil}]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    source = Chat(file, ChatTemplate(TEMPLATE, bos_token="<s>"))
    found = pieces(source)
    assert [piece.text for piece in found] == [b"<s>[user] Hi\n[assistant] Hello\n"] * 3 + [b""]
    assert [piece.has_markup for piece in found] == [True, True, True, False]
    assert b"".join(piece.data for piece in found) == file.read_bytes()
    assert source.n_left_out == 1


@pytest.mark.parametrize("bad", ['{"messages": []}', '{"messages": [{"role": "user"}]}', "[[]]", '"x"', '{"a": 1}'])
def test_conversations_without_messages_are_refused(tmp_path, bad):
    file = tmp_path / "a.jsonl"
    file.write_text(bad)
    with pytest.raises(Error, match="line 1: expected"):
        pieces(Chat(file, ChatTemplate(TEMPLATE)))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ undefined_function() }}", "{% include '/etc/passwd' %}",
    ],
)  # fmt: skip
def test_templates_are_kept_in_the_sandbox(source):
    try:
        text = ChatTemplate(source).render([{"role": "user", "content": "x"}])
    except Error as error:
        assert str(error).startswith("[chat template] ")
    else:
        assert text == ""


def test_templates_that_jinja_cannot_read_are_refused():
    with pytest.raises(Error, match="one that Jinja reads"):
        ChatTemplate("{% if %}")


def test_the_packaged_model_has_no_template():
    with package.Model() as model, pytest.raises(Error, match="a chat model"):
        template_of(model._open_engine())


def test_templates_of_real_models_render(shared):
    """Those that ask for nothing but messages; others may refuse, but only with an error of ours."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    n_rendered = n_files = 0
    for file in sorted((shared / "chat-templates").glob("*.jinja")):
        n_files += 1
        try:
            text = ChatTemplate(file.read_text(), bos_token="<s>", eos_token="</s>").render(talk)
        except Error:
            continue
        n_rendered += "Hi" in text and "Hello" in text
    assert n_rendered > 0.5 * n_files
