"""What is read from an adapter folder, up to each limit and not beyond."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltatune.core.errors import AdapterError
from deltatune.store import files

MIB = 1 << 20


def nested(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


def settings(path, text: str):
    path.write_text(text)
    return files.read_json(path)


def test_settings_have_at_most_eight_mebibytes(tmp_path):
    words = '{"a": 1}'
    assert settings(tmp_path / "a.json", words.ljust(8 * MIB)) == {"a": 1}
    with pytest.raises(AdapterError, match="8388609 bytes; settings have at most 8388608"):
        settings(tmp_path / "a.json", words.ljust(8 * MIB + 1))


def test_objects_and_lists_are_at_most_32_deep(tmp_path):
    assert settings(tmp_path / "a.json", nested(32))
    for text in (nested(33), nested(32).replace("{}", "[{}]"), nested(32).replace("{}", '{"b": []}')):
        with pytest.raises(AdapterError, match="nested more than 32 deep"):
            settings(tmp_path / "a.json", text)
    with pytest.raises(AdapterError, match="nested too deeply"):
        settings(tmp_path / "a.json", nested(100_000))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "expected an object, found list"),
        ("1e999", "1e999 is larger than any number can be"),
        ("-1e999", "-1e999 is larger"),
        ("NaN", "NaN is no number of JSON"),
        ('{"a": 1, "b": 2, "c": 3, "b": 4}', "'b' is given twice"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_no_object_with_finite_values_is_refused(tmp_path, text, why):
    with pytest.raises(AdapterError, match=why):
        settings(tmp_path / "a.json", text)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(AdapterError, match="not UTF-8 text .* at byte 7"):
        files.read_json(tmp_path / "a.json")


def test_a_word_is_short_printable_text_or_none():
    assert files.word_of({"a": "x" * 512}, "a", "f") == "x" * 512
    assert [files.word_of(each, "a", "f") for each in ({}, {"a": None}, {"a": ""})] == [None] * 3
    for wrong in ("x" * 513, 3, ["x"], "a\nb"):
        with pytest.raises(AdapterError, match="f: a .* is no name"):
            files.word_of({"a": wrong}, "a", "f")


def test_a_plain_name_has_one_to_64_printable_characters():
    assert files.plain_name("x" * 64) and files.plain_name("a b-c.d")
    assert not any(map(files.plain_name, ("x" * 65, "", ".", "..", "a/b", "a\\b", "a:b", "a\nb")))


def test_a_link_may_stay_in_its_folder_and_nowhere_else(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "real.json").write_text("{}")
    (tmp_path / "out.json").write_text("{}")
    (tmp_path / "in" / "a.json").symlink_to("real.json")
    (tmp_path / "in" / "b.json").symlink_to(tmp_path / "out.json")
    assert files.read_json(tmp_path / "in" / "a.json") == {}
    with pytest.raises(AdapterError, match="is a link to .*out.json, outside of its folder"):
        files.read_json(tmp_path / "in" / "b.json")
    with pytest.raises(AdapterError, match="is not a file"):
        files.read_json(tmp_path / "in")


def test_tensors_come_with_their_metadata_and_values(tmp_path):
    found = {"a": torch.arange(3.0), "x" * 512: torch.ones(2)}
    save_file(found, tmp_path / "a", metadata={"who": "me"})
    metadata, tensors = files.read_tensors(tmp_path / "a")
    assert metadata == {"who": "me"} and tensors.keys() == found.keys()
    assert all(torch.equal(tensors[key], found[key]) for key in found)
    save_file(found, tmp_path / "a")
    assert files.read_tensors(tmp_path / "a")[0] == {}


@pytest.mark.parametrize("name", ["x" * 513, "", "a\nb"])
def test_a_tensor_has_a_name_of_one_to_512_printable_characters(tmp_path, name):
    save_file({name: torch.ones(1)}, tmp_path / "a")
    with pytest.raises(AdapterError, match="names have 1 to 512 printable characters"):
        files.read_tensors(tmp_path / "a")


def test_a_file_holds_at_most_20000_tensors(tmp_path):
    found = {f"t{number}": torch.zeros(0) for number in range(20_000)}
    save_file(found, tmp_path / "a")
    assert len(files.read_tensors(tmp_path / "a")[1]) == 20_000
    save_file({**found, "more": torch.zeros(0)}, tmp_path / "a")
    with pytest.raises(AdapterError, match="20001 tensors; an adapter has at most 20000"):
        files.read_tensors(tmp_path / "a")


def test_a_header_has_at_most_eight_mebibytes(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(8 * MIB).encode()
    for more, why in ((b"", None), (b" ", "header of 8388609 bytes; an adapter's has at most 8388608")):
        size = (len(header) + len(more)).to_bytes(8, "little")
        (tmp_path / "a").write_bytes(size + header + more + bytes(4))
        if why is None:
            assert files.read_tensors(tmp_path / "a")[1]["a"].tolist() == [0.0]
            continue
        with pytest.raises(AdapterError, match=why):
            files.read_tensors(tmp_path / "a")


def test_a_cut_file_is_damaged(tmp_path):
    save_file({"a": torch.ones(9)}, tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(AdapterError, match="is damaged: .*") as error:
        files.read_tensors(tmp_path / "a")
    assert error.value.hint == "copy or download it again"
