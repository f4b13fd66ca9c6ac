"""What a file may say of itself: its format, and how many patterns its settings hold."""

import pytest

from deltatune.core import registry
from deltatune.core.errors import AdapterError
from deltatune.store.record import Record, check_globs

SOUND = {"format": 1, "type": "lora"}


def test_a_record_says_its_type_and_the_rest_has_a_default():
    record = Record.of(SOUND, "file")
    assert (record.type, record.name, record.fingerprint, record.parts) == ("lora", "default", "", [])


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1", None])
def test_a_format_is_a_number_from_one(number):
    with pytest.raises(AdapterError, match="file has no format that deltatune wrote"):
        Record.of({**SOUND, "format": number}, "file")


def test_a_later_format_names_both_and_says_to_update():
    with pytest.raises(AdapterError, match="file has format 2, this deltatune reads 1") as error:
        Record.of({**SOUND, "format": 2}, "file")
    assert error.value.hint.startswith("update deltatune")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"name": "x" * 512}, {"name": "x" * 513}),
        ({"parts": ["a"] * 64}, {"parts": ["a"] * 65}),
        ({"fingerprint": "0" * 64}, {"fingerprint": "0" * 63}),
        ({"facts": {"task": {"type": "x"}}}, {"facts": {"task": "x"}}),
        ({"facts": {"columns": {"text": ["a", "b"]}}}, {"facts": {"columns": {"text": 3}}}),
        ({"facts": {"anything": [1]}}, {"anything": [1]}),
    ],
)
def test_values_are_taken_up_to_their_limit(good, bad):
    Record.of({**SOUND, **good}, "file")
    with pytest.raises(AdapterError, match="file: "):
        Record.of({**SOUND, **bad}, "file")


def lora(**fields):
    return registry.method("lora", **fields)


def test_a_thousand_globs_of_200_characters_load_and_no_more():
    check_globs(lora(target_modules=[f"*{number}" for number in range(1000)]))
    check_globs(lora(target_modules=["*" * 200, "x" * 300]))
    with pytest.raises(AdapterError, match="hold 1001 globs of up to 5 characters; at most 1000 of 200 load"):
        check_globs(lora(target_modules=[f"*{number}" for number in range(1001)]))
    with pytest.raises(AdapterError, match="hold 1 globs of up to 201 characters"):
        check_globs(lora(target_modules=["*" * 201]))


def test_globs_are_counted_in_keys_too():
    patterns = {f"*{number}": 4 for number in range(1001)}
    with pytest.raises(AdapterError, match="hold 1001 globs"):
        check_globs(lora(target_modules=["query"], rank_pattern=patterns))
