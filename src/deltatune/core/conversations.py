"""Conversations: rows of every usual shape as messages with roles, or as plain text.

    messages                            {role, content, tool_calls?, ...}: system, developer, user, assistant, tool
    conversations                       {from, value}: system, human, gpt, function_call, observation
    instruction, input?, output         one question, with what it is about below, and its answer
    prompt, completion                  texts, or lists of messages
    question, input?, answer
    text                                no roles

A row has the first of these shapes whose first column has a value. `system` is put in front, `tools` are handed to the
template.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from deltatune.core.messages import ROLES, Malformed, Message, check_order, json_object, message_of, text_of, tools_of
from deltatune.core.task import Row
from deltatune.core.words import words_of

ASKED = "asked"
"""Word that marks a row without its answer."""
SHAPES: Mapping[str, tuple[str, ...]] = {
    "messages": (),
    "conversations": (),
    "instruction": ("output",),
    "prompt": ("completion", "output"),
    "question": ("answer", "output"),
    "text": (),
}
"""First column of every shape, and the columns its answer may stand in."""
NAMES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    **{role: role for role in ROLES},
}
"""Roles as `conversations` call them."""
SHORT = 5
"""First messages of fewer words ("hello", "go on") repeat by chance: they do not tie conversations together."""


class Conversation(NamedTuple):
    """A row as it is learned or answered."""

    messages: list[Message]
    """Empty for plain text."""
    tools: list[Any] | None = None
    text: str | None = None
    asked: bool = False
    """The answer is to be written."""


def problem(row: Row) -> str | None:
    """What is wrong with a row, or None."""
    try:
        conversation(row)
    except Malformed as reason:
        return str(reason)
    return None


def conversation(row: Row) -> Conversation:
    """The conversation of a row; raises `Malformed`.

    >>> conversation({"question": "1 + 1?", "answer": "2"}).messages
    [{'role': 'user', 'content': '1 + 1?'}, {'role': 'assistant', 'content': '2'}]
    """
    shape = next((word for word in SHAPES if row.get(word) is not None), None)
    if shape is None:
        raise Malformed(f"none of the columns {', '.join(SHAPES)} has a value")
    asked = bool(row.get(ASKED))
    if shape == "text":
        return Conversation([], text=text_of(row["text"], "text"), asked=asked)
    messages = _MADE.get(shape, _asked_and_answered)(row, shape)
    system = row.get("system")
    if system is not None and system != "":
        if messages and messages[0].get("role") == "system":
            raise Malformed("a system column and a system message")
        messages = [{"role": "system", "content": text_of(system, "system")}, *messages]
    checked = [message_of(message, number) for number, message in enumerate(messages, 1)]
    check_order(checked, asked)
    return Conversation(checked, tools_of(row.get("tools")), asked=asked)


def question(row: Row) -> Row:
    """A row without its answer, marked: columns of answers and what the assistant says at the end are taken out."""
    answers = {word for words in SHAPES.values() for word in words}
    left: dict[str, Any] = {word: value for word, value in row.items() if word not in answers}
    for word, role in (("messages", "role"), ("conversations", "from"), ("prompt", "role")):
        turns = left.get(word)
        while isinstance(turns, list) and turns and isinstance(turns[-1], dict) and _answers(turns[-1].get(role)):
            turns = left[word] = turns[:-1]
    return {**left, ASKED: True}


def opening(row: Row) -> Hashable:
    """What rows that must not be parted have in common: the first question or the text, case and digits aside.

    None where it has fewer than five words.

    >>> opening({"prompt": "What is 12 + 3 in all?", "completion": "15"})
    ('what', 'is', '00', '+', '0', 'in', 'all', '?')
    """
    found = conversation(row)
    first = next((message["content"] for message in found.messages if message["role"] == "user"), "")
    text = first if found.text is None else found.text
    words = [text[start:end].casefold() for start, end in words_of(text)]
    return tuple("".join("0" if c.isdigit() else c for c in word) for word in words) if len(words) >= SHORT else None


def asked_text(row: Row) -> str:
    """Everything that is not the assistant's, as one text."""
    found = conversation(row)
    return found.text if found.text is not None else _said(found.messages, ("user", "tool"))


def answer_of(row: Row) -> str:
    """The last answer of a labelled row; the whole of a plain text."""
    found = conversation(row)
    return found.text if found.text is not None else str(found.messages[-1].get("content") or "")


def _said(messages: Sequence[Message], roles: Sequence[str]) -> str:
    return "\n".join(str(m.get("content") or "") for m in messages if m["role"] in roles)


# -- shapes


def _given(row: Row, shape: str) -> list[Any]:
    """The list of messages as it is."""
    value = row[shape]
    if not isinstance(value, list):
        raise Malformed(f"{shape} is not a list ({type(value).__name__})")
    return value


def _shared(row: Row, shape: str) -> list[Any]:
    """from and value as role and content; a call of a function is the assistant's."""
    found = []
    for number, turn in enumerate(_given(row, shape), 1):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise Malformed(f"a turn lacks from or value (message {number})")
        if not isinstance(turn["from"], str) or turn["from"] not in NAMES:
            raise Malformed(f"a role is unknown (message {number}: {turn['from']!r}; known: {', '.join(NAMES)})")
        role, said = NAMES[turn["from"]], turn["value"]
        message = {"role": role, "content": said}
        if turn["from"] == "function_call":
            call = json_object(said)
            if call is None:
                raise Malformed(f"a call is no JSON object (message {number})")
            message = {"role": role, "content": "", "tool_calls": [{"type": "function", "function": call}]}
        found.append(message)
    return found


def _instructed(row: Row, shape: str) -> list[Any]:
    """What it is about stands below the instruction or question."""
    more = row.get("input")
    if more is not None and not isinstance(more, str):
        raise Malformed(f"input is not text ({type(more).__name__})")
    asks = text_of(row[shape], shape) + (f"\n\n{more}" if more and more.strip() else "")
    return [{"role": "user", "content": asks}, *_answer(row, shape)]


def _asked_and_answered(row: Row, shape: str) -> list[Any]:
    value = row[shape]
    asks = value if isinstance(value, list) else [{"role": "user", "content": text_of(value, shape)}]
    return [*asks, *_answer(row, shape)]


def _answer(row: Row, shape: str) -> list[Any]:
    word = next((word for word in SHAPES[shape] if row.get(word) is not None), None)
    if row.get(ASKED):
        return []
    if word is None:
        raise Malformed(f"{shape} has no answer ({' or '.join(SHAPES[shape])} is missing)")
    value = row[word]
    return value if isinstance(value, list) else [{"role": "assistant", "content": text_of(value, word)}]


_MADE = {"messages": _given, "conversations": _shared, "instruction": _instructed, "question": _instructed}


def _answers(role: Any) -> bool:
    return isinstance(role, str) and NAMES.get(role) == "assistant"
