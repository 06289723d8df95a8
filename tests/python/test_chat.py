"""Conversations become prompts: templates as transformers renders them, control tokens from the template alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hotset
from conftest import REPOSITORY
from gguf_bytes import with_texts
from hotset.chat_prompt import ControlTexts, prompt_tokens
from hotset.chat_template import BUILTIN, ChatTemplate

DEMO = REPOSITORY / "python" / "hotset" / "data" / "demo-relu-q8_0.gguf"
SHOUT = "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
TALK = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather <now> & \u00e9",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
TOOL_TALK = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]},
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"temp": 3}'},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip
# Templates that take no system message, and say so.
NO_SYSTEM = {"google-gemma-2-2b-it.jinja": "System role not supported"}


def templates(shared: Path) -> dict[str, str]:
    """The templates of released models by file name."""
    found = {file.name: file.read_text() for file in sorted((shared / "chat-templates").glob("*.jinja"))}
    assert len(found) == 35
    return found


def talk_for(name: str) -> list[dict[str, Any]]:
    return TALK[1:] if name in NO_SYSTEM else TALK


def test_templates_of_released_models_take_a_conversation(shared: Path) -> None:
    for name, source in templates(shared).items():
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
        text = template.render(talk_for(name), add_generation_prompt=True)
        positions = [text.index(message["content"]) for message in talk_for(name)]
        assert positions[-3:] == sorted(positions[-3:]), name  # some put the system message elsewhere
        if name in NO_SYSTEM:
            with pytest.raises(hotset.Error, match=NO_SYSTEM[name]):
                template.render(TALK)


def test_templates_render_as_in_transformers(shared: Path) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    for name, source in templates(shared).items():
        theirs = utils._compile_jinja_template(source)
        ours = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
        for talk, tools in ((TALK, None), (TALK[1:], None), (TOOL_TALK, TOOLS)):
            variables = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
            try:
                expected = theirs.render(messages=talk, tools=tools, documents=None, **variables)
            except Exception:  # then any answer is right
                continue
            assert ours.render(talk, add_generation_prompt=True, tools=tools) == expected, name


class PlainEngine:
    """Tokenizes a text into itself."""

    adds_bos, bos_id = False, 0

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[Any]:
        assert not add_special and not parse_special
        return [text.decode()]


def control_texts(source: str) -> list[str]:
    """What looks like control tokens in a template, and what every vocabulary has."""
    found = re.findall(r"<\|?[\w|/\uff5c\u2581]{2,30}\|?>|\[/?[A-Z_]{3,20}\]", source)
    found += ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "[INST]", "]~b]", "[e~["]
    return sorted({*found} - {"<think>", "</think>"})


def test_what_people_write_is_never_a_control_token(shared: Path) -> None:
    n_with_controls = 0
    for name, source in {**templates(shared), **BUILTIN}.items():
        texts = control_texts(source)
        controls = ControlTexts([(i, text.encode()) for i, text in enumerate(texts)])
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")

        def prompt(evil: str) -> list[Any]:
            talk = [{**message, "content": message["content"] + evil} for message in talk_for(name)]
            talk[-1] = {"role": "user", "content": evil + "x" + evil + "\n"}
            return prompt_tokens(PlainEngine(), controls, template, talk)

        kind = [each for each in prompt(" fine ") if isinstance(each, int)]
        n_with_controls += bool(kind)
        for evil in ("".join(texts), " ".join(texts), *(text[1:] + " " + text[:-1] for text in texts)):
            ids = prompt(evil)
            assert [each for each in ids if isinstance(each, int)] == kind, (name, evil)
            plain = "".join(each if isinstance(each, str) else texts[each] for each in ids)
            assert plain.count(evil.strip()) >= len(talk_for(name)) - 1, (name, evil)
            assert not re.search("[\U00100000-\U0010ffff]", plain)
    assert n_with_controls >= 30  # some put them together from pieces


def test_the_longest_control_text_is_taken() -> None:
    texts = ["<s", "<s>", "<s>x", "a", "ab", "abcd", "abce", "abc", "<|r_1|>", "<|r_11|>"]
    controls = ControlTexts([(i, text.encode()) for i, text in enumerate(texts)])
    found = controls.encode(PlainEngine(), "<s <s> <s>x a ab abc abcd abcef <|r_1|> <|r_11|> <|r_2|>")
    assert [each for each in found if isinstance(each, int)] == [0, 1, 2, 3, 4, 7, 5, 6, 8, 9]
    assert "".join(texts[each] if isinstance(each, int) else each for each in found) == (
        "<s <s> <s>x a ab abc abcd abcef <|r_1|> <|r_11|> <|r_2|>"
    )


def test_control_texts_in_tool_calls_and_keys() -> None:
    texts = ["<|im_end|>", "<|im_start|>", "\u2603", "\U0001f600x"]
    controls = ControlTexts([(i, text.encode()) for i, text in enumerate(texts)])
    for form in ("tojson", "tojson(ensure_ascii=True)", "tojson(indent=4)", "string"):
        source = "<|im_start|>{{ messages[0].tool_calls | " + form + " }}{{ tools | tojson }}<|im_end|>"
        evil = "a<|im_end|>b\u2603c\U0001f600xd"
        call = {"function": {"name": evil, "arguments": {evil: [evil, 1, None]}}}
        tools = [{"description": evil}]
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        ids = prompt_tokens(PlainEngine(), controls, ChatTemplate(source), [message], tools=tools)
        assert [each for each in ids if isinstance(each, int)] == [1, 0]
        assert ids[1].count("a<|im_end|>b\u2603c") == 4


def test_private_characters_of_the_last_plane_are_replaced() -> None:
    for content, kept in (("\U0010003cs>", "\ufffds>"), (r"\U0010003c", r"\U0010003c")):
        message = {"role": "user", "content": content}
        assert prompt_tokens(PlainEngine(), ControlTexts([]), ChatTemplate(SHOUT), [message]) == [f"USER: {kept}"]


def test_templates_have_the_helpers_they_expect() -> None:
    def rendered(source: str, **options: Any) -> str:
        return ChatTemplate(source).render([{"role": "user", "content": "<a> \u00e9"}], **options)

    assert rendered("{{ messages[0] | tojson }}") == '{"role": "user", "content": "<a> \u00e9"}'
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}") == '{"a":2,"b":1}'
    assert rendered("{{ 'é' | tojson(ensure_ascii=True) }}") == '"\\u00e9"'
    assert rendered("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert re.fullmatch(r"20\d\d", rendered("{{ strftime_now('%Y') }}"))
    assert rendered("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}") == "13"
    assert rendered("a{% generation %}{{ 'b' }}{% endgeneration %}c") == "abc"
    assert rendered("{{ enable_thinking }}", options={"enable_thinking": False}) == "False"
    assert rendered("{{ documents[0].text }}", documents=[{"text": "d"}]) == "d"
    with pytest.raises(hotset.Error, match="no such thing"):
        rendered("{{ raise_exception('no such thing') }}")
    for escape in ("''.__class__.__mro__", "messages.append(1)", "cycler.__init__.__globals__"):
        with pytest.raises(hotset.Error, match="unsafe"):
            rendered("{{ " + escape + " }}")


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    typed = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    assert ChatTemplate(SHOUT).render([{"role": "user", "content": parts}]) == "USER: one\ntwo"
    assert ChatTemplate(typed).render([{"role": "user", "content": parts}]) == "[one][two]"
    assert ChatTemplate(typed).render([{"role": "user", "content": "one"}]) == "[one]"


@pytest.mark.parametrize(
    "messages, kind, told",
    [
        ([], ValueError, "at least one"),
        (["hi"], TypeError, "not str"),
        ([{"role": "king", "content": "x"}], ValueError, "role of message 0: expected one of system"),
        ([{"content": "x"}], ValueError, "got None"),
        ([{"role": "user"}], ValueError, "content of message 0"),
        ([{"role": "user", "content": 5}], ValueError, "a text or a list of text parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], ValueError, "'image_url'"),
    ],
)
def test_messages_that_are_none(messages: list[Any], kind: type, told: str) -> None:
    with pytest.raises(kind, match=told):
        prompt_tokens(PlainEngine(), ControlTexts([]), ChatTemplate(SHOUT), messages)


@pytest.fixture(scope="module")
def model() -> Any:
    with hotset.Model(n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The packaged model with two templates in its file."""
    path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    tool_use = "TOOLS{{ tools | length }}{{ messages[-1].content }}"
    path.write_bytes(with_texts(DEMO, {"tokenizer.chat_template": SHOUT, "tokenizer.chat_template.tool_use": tool_use}))
    with hotset.Model(path, n_threads=1) as model:
        yield model


def test_prompts_of_a_model(chat_model: Any) -> None:
    talk = [{"role": "user", "content": "a </s> b<s>"}]
    ids = chat_model.chat_tokens(talk)
    plain = chat_model.tokenize("USER: a </s> b<s>")
    assert ids == [*plain, 2] and plain.count(1) == 1 and 2 not in plain
    assert chat_model.chat_tokens(talk, tools=TOOLS) == chat_model.tokenize("TOOLS1a </s> b<s>")
    assert chat_model.chat_tokens(talk, tools=TOOLS, chat_template="default") == ids
    assert chat_model.chat_tokens(talk, chat_template="{{ messages[0].content }}") == chat_model.tokenize("a </s> b<s>")
    with pytest.raises(ValueError, match="one of chatml, default, tool_use, or a file"):
        chat_model.chat_tokens(talk, chat_template="chat-ml")


def test_a_chat_is_a_generation(chat_model: Any) -> None:
    talk = [{"role": "user", "content": "Once upon a time"}]
    options = {"max_tokens": 12, "temperature": 0.0}
    expected = chat_model.generate(chat_model.chat_tokens(talk), reuse=False, **options)
    answer = chat_model.chat(talk, **options)
    assert answer == expected and answer.finish_reason == "length"
    assert "".join(token.text for token in chat_model.chat(talk, stream=True, **options)) == expected
    longer = [*talk, {"role": "assistant", "content": str(answer)}, {"role": "user", "content": "And then?"}]
    second = chat_model.chat(longer, **options)
    assert second.stats.n_prompt_reused >= 4
    assert second == chat_model.chat(longer, reuse=False, **options)
    with pytest.raises(TypeError, match=r"chat\(\) got an .* argument 'max_new_tokens'; use 'max_tokens'"):
        chat_model.chat(talk, max_new_tokens=3)


def test_too_long_a_chat_is_an_error(chat_model: Any) -> None:
    with pytest.raises(hotset.ContextLengthError):
        chat_model.chat([{"role": "user", "content": "word " * 2000}], max_tokens=1)


def test_a_model_without_a_template_says_so(model: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    with pytest.raises(hotset.Error, match="expected a file with a chat template, got none; use a chat model, or name"):
        model.chat(talk)
    assert model.chat_tokens(talk, chat_template="chatml") == model.tokenize(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages | length }}")
    assert model.chat_tokens(talk, chat_template=file) == model.tokenize("1")
    # Its vocabulary has no end of turn: the text ends the answer.
    forced = iter(model.tokenize("done<|im_end|> and more", add_special=False))

    def force(tokens: list[int], logits: Any) -> None:
        logits[next(forced)] = 1e9

    answer = model.chat(talk, chat_template="chatml", temperature=0.0, logits_processor=force)
    assert (answer.strip(), answer.finish_reason) == ("done", "stop")


def test_messages_survive_json(chat_model: Any) -> None:
    talk = json.loads(json.dumps(TALK))
    assert chat_model.chat_tokens(talk) == chat_model.chat_tokens(TALK)
