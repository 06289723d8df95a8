"""`Session`: a conversation whose keys and values stay in memory between calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from . import _core
from .arguments import INT64_MAX, checked_bool, checked_int, checked_path, keywords, reject_unknown, token_ids
from .errors import error_text
from .generation import Completion, Request, TokenStream, collect

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .generation import GenerateOptions
    from .model import Model


class Session:
    """A conversation: its tokens with their keys and values, so that each call computes only what is new.

    Made by `Model.session` and `Model.load_session`; also a context manager. Threads may share one, but it serves one
    call at a time, and none besides while a stream of it is open: a second call is a ValueError. Closing the model closes
    its sessions.

        with model.session() as session:
            session.append("Once upon a time")
            print(session.generate(max_tokens=20), session.generate(" The end", max_tokens=5))
            session.save("story.hseq")
    """

    def __init__(self, model: Model, native: _core.Session) -> None:
        """For `Model`: takes the native half."""
        self._model = model
        self._native: _core.Session | None = native
        with model._lock:
            model._sessions.add(self)
            closed = model.closed
        if closed:  # by another thread, before it could see this session
            self.close()

    @property
    def tokens(self) -> list[int]:
        """Ids of all tokens so far, of prompts and of what was generated; end tokens are not kept."""
        return self._open().tokens()

    @property
    def n_past(self) -> int:
        """How many of the tokens are computed: all but the one sampled last, which the next call computes."""
        return self._open().n_past()

    @overload
    def generate(
        self,
        prompt: str | Sequence[int] = (),
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: str | Sequence[int] = (), *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> TokenStream: ...
    def generate(
        self, prompt: str | Sequence[int] = (), *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Completion | TokenStream:
        """Adds a prompt and generates what follows, which becomes part of the session; keywords as `Model.generate`.

        Args:
            prompt: text or token ids; nothing = go on where it is. Begin tokens are added to the first text only.
            stream: give tokens as they come. What was generated when the stream ends or is closed is kept.

        Returns:
            A `Completion`, or with `stream` an iterator of `Token`. Their statistics count as prompt what had to be
            added: the prompt, and the token sampled last by the call before.

        Raises:
            ContextLengthError: the prompt does not fit behind what is held, or the end of the context was reached; in
                the second case `partial` of the error holds what was generated.
            ValueError: there is nothing to go on from, an argument is out of range, or the session is in use or closed.
                After these and all other errors before the first token the session is as it was.
        """
        native = self._open()
        checked_bool("stream", stream)
        defaults = keywords(type(self._model).generate)
        del defaults["stream"]
        reject_unknown("generate", options, defaults)
        engine = self._model._open_engine()
        tokens = self._model._start(Request.make(engine, [self._encode(prompt)], {**defaults, **options}, native))
        if stream:
            return tokens
        completion = collect(tokens, 1, single=True)
        assert isinstance(completion, Completion)
        return completion

    def append(self, prompt: str | Sequence[int]) -> None:
        """Adds and computes a prompt, as `generate` would, without generating.

        Raises:
            ContextLengthError: it does not fit; the session stays as it was.
            ValueError: a token is not of the vocabulary, or the session is in use or closed.
        """
        self._open().append(self._encode(prompt))

    def truncate(self, n_tokens: int) -> None:
        """Forgets everything from token n_tokens on; computes nothing.

        Raises:
            ValueError: it has fewer tokens, or is in use or closed.
        """
        self._open().truncate(checked_int("session", "n_tokens", n_tokens, 0, INT64_MAX))

    def fork(self, n_tokens: int | None = None) -> Session:
        """Returns a second session with the first n_tokens of this one, None = all; computes nothing.

        Their memory is shared as far as they stay the same.

        Raises:
            ValueError: it has fewer tokens, or is in use or closed.
        """
        n = None if n_tokens is None else checked_int("session", "n_tokens", n_tokens, 0, INT64_MAX)
        return Session(self._model, self._open().fork(n))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session to a file that `Model.load_session` reads; the file is replaced as a whole or not at all.

        Raises:
            Error: it cannot be written.
            ValueError: the session is in use or closed.
        """
        self._open().save(checked_path("session", "path", path))

    def close(self) -> None:
        """Frees the memory, once no call or stream uses it. May be called again; nothing else may be."""
        self._native = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<hotset.Session of {self._model.name!r}{', closed' if self._native is None else ''}>"

    def _open(self) -> _core.Session:
        native = self._native
        if native is None:
            raise ValueError(error_text("session", "use", "an open session", "a closed one", "open another"))
        return native

    def _encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Turns a prompt into token ids; begin tokens only where nothing was said before."""
        if isinstance(prompt, str):
            return self._model.tokenize(prompt, add_special=not self.tokens)
        return token_ids(prompt)
