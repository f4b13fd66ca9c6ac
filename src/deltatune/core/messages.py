"""Messages: what somebody says in a conversation, checked; content as one text, arguments of tools as objects."""

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")


class Malformed(ValueError):
    """What is wrong with a row."""


def message_of(message: Any, number: int) -> Message:
    """A message whose content is text; what else it has is the template's. Raises `Malformed`."""
    if not isinstance(message, dict):
        raise Malformed(f"a message is not an object (message {number}: {type(message).__name__})")
    found = {name: value for name, value in message.items() if value is not None}
    role = found.get("role")
    if role not in ROLES:
        raise Malformed(f"a role is unknown (message {number}: {role!r}; known: {', '.join(ROLES)})")
    calls = found.get("tool_calls")
    if calls is not None:
        found["tool_calls"] = _calls(calls, role, number)
    content = _joined(found.get("content"), number)
    if not content.strip() and not calls and role in ("user", "assistant"):
        raise Malformed(f"a message is empty (message {number}, {role})")
    return {**found, "content": content}


def _joined(content: Any, number: int) -> str:
    """Content as one text; parts that are texts are put together."""
    if isinstance(content, list):
        texts: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise Malformed(f"a message holds more than text (message {number}: {kind!r})")
            texts.append(part["text"])
        return "".join(texts)
    if content is not None and not isinstance(content, str):
        raise Malformed(f"a message is not text (message {number}: {type(content).__name__})")
    return content or ""


def _calls(calls: Any, role: str, number: int) -> list[Any]:
    """Calls of tools with arguments as objects, which is what templates expect."""
    if role != "assistant":
        raise Malformed(f"only the assistant calls tools (message {number}, {role})")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Malformed(f"tool_calls are not a list of objects (message {number})")
    found = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Malformed(f"a call does not name its tool (message {number})")
        arguments = function.get("arguments")
        parsed = json_object(arguments) if isinstance(arguments, str) else None
        function = function if parsed is None else {**function, "arguments": parsed}
        found.append({**call, "function": function} if "function" in call else function)
    return found


def check_order(messages: Sequence[Message], asked: bool) -> None:
    """Who speaks first and last, else `Malformed`; whether two of a kind may follow each other is the template's."""
    if not messages:
        raise Malformed("there are no messages")
    roles = [message["role"] for message in messages]
    first = next((index for index, role in enumerate(roles) if role not in ROLES[:2]), None)
    if first is None or roles[first] != "user":
        who = "nobody" if first is None else f"the {roles[first]} (message {first + 1})"
        raise Malformed(f"the user does not begin, but {who}")
    if asked:
        return
    if "assistant" not in roles:
        raise Malformed("the assistant says nothing")
    if roles[-1] != "assistant":
        raise Malformed(f"nothing answers the last message ({roles[-1]})")


def tools_of(value: Any) -> list[Any] | None:
    """Tools as a list, which files without nested columns hold as JSON. Raises `Malformed`."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"tools are not valid JSON ({error})") from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Malformed("tools are not a list of objects")
    return value or None


def json_object(text: Any) -> dict[str, Any] | None:
    """The JSON object in a text, or None."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text_of(value: Any, word: str) -> str:
    """A text that says something; raises `Malformed`."""
    if not isinstance(value, str):
        raise Malformed(f"{word} is not text ({type(value).__name__})")
    if not value.strip():
        raise Malformed(f"{word} is empty")
    return value
