"""Chat templates: the Jinja text of a model's file turns a conversation into a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Error, error_text

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. Rendering runs in Jinja's sandbox: a file cannot reach more than its own variables.

    Args:
        source: the template, as `tokenizer.chat_template` of a model file has it.
        bos_token: text of the begin token.
        eos_token: text of the end token.

    Raises:
        Error: it is no Jinja template.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        # The settings that templates are written for.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise Error(error_text("chat template", "template", "one that Jinja reads", error, "convert the model "
                                   "again with its tokenizer")) from None  # fmt: skip

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Returns the prompt of a conversation.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: end with what comes before an answer.

        Raises:
            Error: the template refuses them, for example because of a role that it does not know.
        """
        try:
            variables = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **self._tokens}
            return self._template.render(variables)
        except Exception as error:  # a template may do anything that Python expressions can
            raise Error(error_text("chat template", "messages", "some that the template takes", error,
                                   "correct roles and contents")) from None  # fmt: skip


def template_of(engine: Any) -> ChatTemplate:
    """Returns the chat template of a loaded model (`_core.Engine`).

    Raises:
        Error: its file has none.
    """
    if not engine.chat_template:
        raise Error(error_text("chat template", f"model {engine.name!r}", "a file with a chat template", "none",
                               "use a chat model, or texts instead of conversations"))  # fmt: skip

    def text(token: int | None) -> str:
        return "" if token is None else engine.detokenize([token], True).decode("utf-8", "replace")

    return ChatTemplate(engine.chat_template, bos_token=text(engine.bos_id), eos_token=text(engine.eos_id))
