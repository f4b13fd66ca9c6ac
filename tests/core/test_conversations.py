"""Rows of every shape as conversations, and what is wrong with others."""

import pytest

from deltatune.core.conversations import answer_of, asked_text, conversation, opening, problem, question

ASKS, SAYS = {"role": "user", "content": "What is 2 + 2 now?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "x"}
CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}


def shared(*turns):
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


SHAPES = [
    {"messages": [ASKS, SAYS]},
    shared(("human", ASKS["content"]), ("gpt", "4")),
    {"instruction": ASKS["content"], "input": " ", "output": "4"},
    {"instruction": ASKS["content"], "output": "4"},
    {"prompt": ASKS["content"], "completion": "4"},
    {"prompt": [ASKS], "completion": [SAYS]},
    {"prompt": ASKS["content"], "output": "4"},
    {"question": ASKS["content"], "answer": "4"},
    {
        "messages": [
            {**ASKS, "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2 now?"}]},
            SAYS,
        ]
    },
    {"messages": [ASKS, {**SAYS, "tool_calls": None}], "text": "is not read", "prompt": "neither"},
]


@pytest.mark.parametrize("row", SHAPES)
def test_every_shape_is_the_same_conversation(row):
    found = conversation(row)
    assert found.messages == [ASKS, SAYS]
    assert (found.text, found.tools, found.asked) == (None, None, False)
    assert (answer_of(row), asked_text(row)) == ("4", ASKS["content"])
    assert problem(row) is None


def test_input_stands_below_and_system_in_front():
    row = {"instruction": "Sum up.", "input": "A long text.", "output": "Short.", "system": "Be brief."}
    roles = [(message["role"], message["content"]) for message in conversation(row).messages]
    assert roles == [("system", "Be brief."), ("user", "Sum up.\n\nA long text."), ("assistant", "Short.")]
    assert conversation({"text": "plain"}) == ([], None, "plain", False)


def test_calls_of_tools_are_objects_whatever_the_file_holds():
    row = shared(
        ("human", "2 + 2?"), ("function_call", '{"name": "add", "arguments": {"a": 2, "b": 2}}'), ("observation", "4")
    )
    row["conversations"].append({"from": "gpt", "value": "It is 4."})
    called = {"type": "function", "function": CALL}
    assert conversation(row).messages[1] == {"role": "assistant", "content": "", "tool_calls": [called]}
    assert conversation(row).messages[2]["role"] == "tool"
    text = {"type": "function", "function": {**CALL, "arguments": '{"a": 2, "b": 2}'}}
    other = {
        "messages": [ASKS, {"role": "assistant", "content": None, "tool_calls": [text]}],
        "tools": '[{"name": "add"}]',
    }
    assert conversation(other).messages[1]["tool_calls"] == [called]
    assert conversation(other).tools == [{"name": "add"}]


BAD = [
    ({"system": "x"}, "none of the columns messages, conversations"),
    ({"messages": "hello"}, "messages is not a list (str)"),
    ({"messages": []}, "there are no messages"),
    ({"messages": ["hello"]}, "a message is not an object (message 1: str)"),
    ({"messages": [{"role": "human", "content": "x"}]}, "a role is unknown (message 1: 'human'"),
    ({"messages": [{"content": "x"}]}, "a role is unknown (message 1: None"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "a role is unknown (message 1"),
    ({"messages": [ASKS, {"role": "assistant", "content": " "}]}, "a message is empty (message 2, assistant)"),
    ({"messages": [ASKS, {"role": "assistant"}]}, "a message is empty (message 2, assistant)"),
    ({"messages": [ASKS, {"role": "assistant", "content": 4}]}, "a message is not text (message 2: int)"),
    ({"messages": [{**ASKS, "content": [{"type": "image"}]}, SAYS]}, "more than text (message 1: 'image')"),
    ({"messages": [ASKS]}, "the assistant says nothing"),
    ({"messages": [ASKS, SAYS, ASKS]}, "nothing answers the last message (user)"),
    ({"messages": [SAYS]}, "the user does not begin, but the assistant (message 1)"),
    ({"messages": [SYSTEM, SAYS]}, "the user does not begin, but the assistant (message 2)"),
    ({"messages": [SYSTEM]}, "the user does not begin, but nobody"),
    ({"messages": [{**ASKS, "tool_calls": [CALL]}, SAYS]}, "only the assistant calls tools (message 1, user)"),
    ({"messages": [ASKS, {**SAYS, "tool_calls": CALL}]}, "tool_calls are not a list of objects (message 2)"),
    ({"messages": [ASKS, {**SAYS, "tool_calls": [{"function": {}}]}]}, "a call does not name its tool (message 2)"),
    ({"messages": [ASKS, SAYS], "tools": "{"}, "tools are not valid JSON"),
    ({"messages": [ASKS, SAYS], "tools": ["add"]}, "tools are not a list of objects"),
    ({"messages": [SYSTEM, ASKS, SAYS], "system": "y"}, "a system column and a system message"),
    (shared(("human", "x"), ("bot", "y")), "a role is unknown (message 2: 'bot'"),
    (shared((["human"], "x")), "a role is unknown (message 1"),
    (shared(("human", "x"), ("gpt", "")), "a message is empty (message 2, assistant)"),
    (shared(("gpt", "x")), "the user does not begin"),
    (shared(("human", "x"), ("function_call", "add")), "a call is no JSON object (message 2)"),
    ({"conversations": [{"value": "x"}]}, "a turn lacks from or value (message 1)"),
    ({"instruction": "x", "output": ""}, "output is empty"),
    ({"instruction": " ", "output": "y"}, "instruction is empty"),
    ({"instruction": "x"}, "instruction has no answer (output is missing)"),
    ({"instruction": "x", "input": 3, "output": "y"}, "input is not text (int)"),
    ({"prompt": "x", "completion": None}, "prompt has no answer (completion or output is missing)"),
    ({"question": "x", "answer": 5}, "answer is not text (int)"),
    ({"text": ""}, "text is empty"),
    ({"text": 5}, "text is not text (int)"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_what_is_no_conversation_says_why(row, message):
    assert message in problem(row)


@pytest.mark.parametrize("row", SHAPES)
def test_a_row_without_its_answer_ends_with_the_question(row):
    asked = question(row)
    assert conversation(asked).messages == [ASKS]
    assert conversation(asked).asked and problem(asked) is None


def test_only_what_comes_last_is_taken_out_of_a_row():
    row = {"messages": [ASKS, SAYS, ASKS, SAYS, SAYS]}
    assert conversation(question(row)).messages == [ASKS, SAYS, ASKS]
    assert row["messages"][-1] == SAYS
    assert problem(question({"messages": [SAYS]})) == "there are no messages"
    assert problem(question({"messages": "x"})) == "messages is not a list (str)"


def test_questions_that_differ_in_case_and_digits_open_alike():
    first = {"question": "What are 12 and 30 in all?", "answer": "42"}
    second = {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "what ARE 99 and 11 in all?"},
            SAYS,
        ]
    }
    assert opening(first) == opening(second) is not None
    assert opening({"question": "Go on.", "answer": "No."}) is None
    assert opening({"text": "one two three four five"}) == ("one", "two", "three", "four", "five")
