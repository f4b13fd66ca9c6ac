"""Chat template: a conversation as the text that the model reads, and which characters of it the model learns.

What an answer is follows from two renderings by the template: the conversation before it with the prompt for an answer,
and the conversation up to it. What the second one has more is the answer, with the token that ends it. No marks inside
of the template are needed; most templates have none.

Where a template writes an earlier answer otherwise once others follow (Qwen3 leaves thoughts out), a rendering of the
whole conversation is not what the model saw when it gave that answer. Such answers are learned from renderings of their
own, cut off behind them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jinja2

from deltatune.core.conversations import Conversation
from deltatune.core.errors import SettingsError
from deltatune.core.messages import Message
from deltatune.core.words import Range

TrainOn = Literal["answers", "last-answer", "everything"]

DEFAULT = r"""{% for message in messages -%}
{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"""
"""For a tokenizer that brings none: a heading per message, answers end with the end token."""
PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


class Refused(ValueError):
    """Why a template cannot write a conversation so that it can be learned."""


class Written(NamedTuple):
    """One text the model reads."""

    text: str
    taught: list[Range]
    """Characters the loss counts."""
    plain: bool = False
    """No template wrote it: the tokenizer adds its own first tokens."""


@dataclass(frozen=True)
class ChatTemplate:
    """How one tokenizer writes conversations."""

    tokenizer: Any
    source: str | None
    """A template instead of the tokenizer's own."""
    ends: tuple[str, ...]
    """Tokens that may end an answer: all special ones."""
    stops: tuple[int, ...]
    """Ids that end an answer when one is written."""
    controls: re.Pattern[str]
    """Tokens that the template writes itself: in what somebody says they would be taken for the template's."""

    @classmethod
    def of(cls, tokenizer: Any, source: str | None) -> "ChatTemplate":
        """The settings' template, the tokenizer's, or the default; raises `SettingsError` without an end token."""
        if source is None and not tokenizer.chat_template:
            if tokenizer.eos_token is None:
                raise SettingsError(
                    "the tokenizer has neither a chat template nor an end token: answers would never end",
                    hint="set task.chat_template, or give the tokenizer an eos_token",
                )
            source = ("{{ bos_token }}" if begins(tokenizer) else "") + DEFAULT
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        named = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
        ends = tuple(dict.fromkeys([*named, *special]))
        bare = cls(tokenizer, source, ends, (), re.compile(r"(?!)"))
        try:
            text = bare.render(PROBE)
        except Refused:
            text = ""
        written = [token for token in ends if token in text] or named
        last = _first_of(ends, text.rpartition(PROBE[-1]["content"])[2])
        stops = [token for token in (last, tokenizer.eos_token) if token]
        ids = tuple(dict.fromkeys(tokenizer.convert_tokens_to_ids(stops)))
        return cls(tokenizer, source, ends, ids, re.compile("|".join(map(re.escape, written)) or r"(?!)"))

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, *, prompt: bool = False) -> str:
        """The text of a conversation, with the prompt for an answer or without; raises `Refused`."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise Refused(f"the chat template refuses it ({str(error).strip() or type(error).__name__})") from None
        return text

    def prompt(self, talk: Conversation) -> str:
        """The text that asks for the last answer, whether the conversation has it already or not; raises `Refused`."""
        messages = talk.messages if talk.asked else talk.messages[:-1]
        if talk.asked:
            self._check(messages, talk.tools)
        return self.render(messages, talk.tools, prompt=True)

    def write(self, talk: Conversation, train_on: TrainOn) -> list[Written]:
        """The texts a conversation is learned from, the whole one first; raises `Refused`."""
        if talk.text is not None:
            return [Written(talk.text, [(0, len(talk.text))], plain=True)]
        self._check(talk.messages, talk.tools)
        if train_on == "everything":
            whole = self.render(talk.messages, talk.tools)
            return [Written(whole, [(0, len(whole))])]
        answers = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
        found: list[Written] = []
        for index in answers[-1:] if train_on == "last-answer" else reversed(answers):
            before = self.render(talk.messages[:index], talk.tools, prompt=True)
            text = self.render(talk.messages[: index + 1], talk.tools)
            if not text.startswith(before):
                raise Refused(
                    f"the chat template begins an answer otherwise than it asks for it (message {index + 1}: "
                    f"{_difference(before, text)})"
                )
            home = next((other for other in found if other.text.startswith(text)), None)
            if home is None:
                found.append(home := Written(text, []))
            home.taught.insert(0, (len(before), self._end(text)))
        return found

    def ended(self, text: str) -> bool:
        """Whether a text ends with a token that ends an answer."""
        return text.rstrip().endswith(self.ends) if self.ends else False

    def _end(self, text: str) -> int:
        """Where an answer ends: behind the token that ends it; blanks after that are nobody's to learn."""
        return len(text.rstrip()) if self.ended(text) else len(text)

    def _check(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Raises `Refused` for control tokens in what is said, and for what the template leaves out."""
        for number, message in enumerate(messages, 1):
            token = self.controls.search(message["content"])
            if token is not None:
                raise Refused(f"a message holds a control token of the model (message {number}: {token[0]!r})")
        whole = self.render(messages, tools)
        if tools and self.render(messages) == whole:
            raise Refused("the chat template has no place for tools")
        for number, message in enumerate(messages, 1):
            calls = "tool_calls" in message
            if message["role"] in ("user", "assistant") and not calls:
                continue
            other = {name: value for name, value in message.items() if name != "tool_calls"}
            other |= {} if calls else {"content": f"{message['content']} and more"}
            if self._same(whole, [*messages[: number - 1], other, *messages[number:]], tools):
                what = "calls of tools" if calls else "a message"
                raise Refused(f"the chat template leaves {what} out (message {number}, {message['role']})")

    def _same(self, whole: str, messages: Sequence[Message], tools: list[Any] | None) -> bool:
        """Whether other messages are written alike."""
        try:
            return self.render(messages, tools) == whole
        except Refused:
            return False


def begins(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its first token in front of a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _first_of(tokens: Sequence[str], text: str) -> str | None:
    """The token that comes first in a text."""
    return min((token for token in tokens if token in text), key=text.index, default=None)


def _difference(asked: str, written: str) -> str:
    """Where two texts part, from a little before."""
    same = next(
        (i for i, (a, b) in enumerate(zip(asked, written, strict=False)) if a != b), min(len(asked), len(written))
    )
    start = max(0, same - 10)
    return f"{asked[start : same + 20]!r} against {written[start : same + 20]!r}"
