"""Chat templates: the Jinja text of a model's file turns a conversation into a prompt."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import Error, error_text

Message = Mapping[str, Any]

# Templates for models whose file has none, by name; texts that end an answer where the vocabulary has no such token.
BUILTIN = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}
BUILTIN_STOPS = {"chatml": ("<|im_end|>",)}

_MOST_BYTES = 1 << 20  # of a template in a file of its own
_NEEDLE = "needle-in-haystack"
# Characters from here on stand for others while a template is rendered, see hotset.chat_prompt.
FIRST_MARK = 0x100000
_ESCAPED_MARK = re.compile(r"\\udb[c-f][0-9a-f]\\ud[c-f][0-9a-f]{2}")


class ChatTemplate:
    """A compiled template. Rendering runs in Jinja's sandbox: a file cannot reach more than its own variables.

    It has the helpers that templates expect: `raise_exception`, `strftime_now`, `tojson` without HTML escapes, `break`
    and `continue`, and the tag `generation`, whose inside is rendered as it is.

    Args:
        source: the template, as `tokenizer.chat_template` of a model file has it.
        bos_token: text of the begin token.
        eos_token: text of the end token.

    Raises:
        Error: it is no Jinja template.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        import jinja2

        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._takes_parts: bool | None = None
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise Error(error_text("chat template", "template", "one that Jinja reads", error, "convert the model "
                                   "again with its tokenizer")) from None  # fmt: skip

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the prompt of a conversation.

        Args:
            messages: each with "role" and "content", a text or a list of text parts.
            add_generation_prompt: end with what comes before an answer.
            tools: what the model may call, each as the JSON object of the OpenAI interface.
            documents: texts to answer from, for templates that know them.
            options: more variables of the template, such as `enable_thinking`.

        Raises:
            Error: the template refuses them, for example because of a role that it does not know.
        """
        variables: dict[str, Any] = {
            "messages": [self._message(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
            **(options or {}),
        }
        try:
            try:
                return self._template.render(variables)
            except TypeError:  # a template for tools alone may walk through them unasked; then it has none to walk
                if variables["tools"] is not None:
                    raise
                return self._template.render({**variables, "tools": []})
        except Exception as error:  # a template may do anything that Python expressions can
            raise Error(error_text("chat template", "messages", "some that the template takes", error,
                                   "correct roles and contents")) from None  # fmt: skip

    def _message(self, message: Message) -> dict[str, Any]:
        """The message with its content in the form that the template reads."""
        out = dict(message)
        content = out.get("content")
        if self._takes_parts is None:
            self._takes_parts = not self._shows(_NEEDLE) and self._shows([{"type": "text", "text": _NEEDLE}])
        if isinstance(content, str) and self._takes_parts:
            out["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, (list, tuple)) and not self._takes_parts:
            out["content"] = "\n".join(part["text"] for part in content)
        return out

    def _shows(self, content: object) -> bool:
        """Whether a user's content in this form is in the prompt."""
        message = {"role": "user", "content": content}
        try:
            return _NEEDLE in self._template.render(
                {"messages": [message], "add_generation_prompt": True, "tools": None, "documents": None, **self._tokens}
            )
        except Exception:  # as in render
            return False


def template_of(engine: Any, wanted: str | os.PathLike[str] | None = None, *, has_tools: bool = False) -> ChatTemplate:
    """Returns the chat template of a loaded model (`_core.Engine`).

    Args:
        engine: the model.
        wanted: name of one of the file's templates, "chatml", a path, or the text of a template; None = the file's: of
            several "tool_use" where there are tools, else "default".
        has_tools: see above.

    Raises:
        Error: the file has none, or none that is meant.
        ValueError: there is no template `wanted`.
    """
    source = template_text(engine, wanted, has_tools=has_tools)

    def text(token: int | None) -> str:
        return "" if token is None else engine.detokenize([token], True).decode("utf-8", "replace")

    return ChatTemplate(source, bos_token=text(engine.bos_id), eos_token=text(engine.eos_id))


def template_text(engine: Any, wanted: str | os.PathLike[str] | None, *, has_tools: bool) -> str:
    """The template that `template_of` compiles."""
    own = {name.decode("utf-8", "replace"): text.decode("utf-8", "replace") for name, text in engine.chat_templates}
    if wanted is None:
        name = "tool_use" if has_tools and "tool_use" in own else "default"
        if name in own:
            return own[name]
        got = f"only those named {', '.join(sorted(own))}" if own else "none"
        raise Error(error_text("chat template", f"model {engine.name!r}", "a file with a chat template", got,
                               "use a chat model, or name a template (chatml, or a file)"))  # fmt: skip
    if isinstance(wanted, str):
        if wanted in own or wanted in BUILTIN:
            return own.get(wanted) or BUILTIN[wanted]
        if "{{" in wanted or "{%" in wanted:
            return wanted
    path = Path(wanted)
    if not path.is_file():
        names = ", ".join(sorted({*own, *BUILTIN}))
        raise ValueError(error_text("chat template", "template", f"one of {names}, or a file", repr(str(wanted)),
                                    "name one of these"))  # fmt: skip
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(error_text("chat template", f"file {path}", f"at most {_MOST_BYTES} bytes",
                                    path.stat().st_size, "name a Jinja template"))  # fmt: skip
    return path.read_text(encoding="utf-8", errors="replace")


def _environment() -> Any:
    """A sandbox with the settings and helpers that templates are written for."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}..{% endgeneration %} marks what an assistant says, for training."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    environment.filters["from_json"] = json.loads
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    # What stands for another character must still do so afterwards.
    return _ESCAPED_MARK.sub(lambda match: json.loads(f'"{match[0]}"'), text)
