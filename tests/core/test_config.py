"""Settings from a file: what is wrong with it is said with its place."""

import pytest

from deltatune.core import registry
from deltatune.core.config import DataSettings, read_yaml
from deltatune.core.errors import SettingsError


def read(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path)


def test_a_file_is_a_mapping(tmp_path):
    assert read(tmp_path / "a.yaml", "a: {b: 1}\nc: [x]") == {"a": {"b": 1}, "c": ["x"]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", r"not valid YAML: key 'c' is given twice .*line 3"),
        ("a: [1", r"not valid YAML: .*line 1"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        ("- a", "expected `key: value` lines, found list"),
        ("", "expected `key: value` lines, found NoneType"),
        (b"a: \xff", "not UTF-8 text .* at byte 3"),
    ],
)
def test_what_is_none_says_why_and_where(tmp_path, content, why):
    with pytest.raises(SettingsError, match=why):
        read(tmp_path / "a.yaml", content)


def test_a_file_that_is_not_there_is_said_with_one_that_is_near(tmp_path):
    with pytest.raises(SettingsError, match="no such file") as error:
        read_yaml(tmp_path / "run.yaml")
    assert error.value.hint is None
    (tmp_path / "runs.yml").touch()
    with pytest.raises(SettingsError, match="no such file") as error:
        read_yaml(tmp_path / "run.yaml")
    assert "runs.yml" in error.value.hint


def test_another_name_of_a_key_is_read_with_a_word_and_both_at_once_are_refused(caplog):
    assert registry.method("lora", rank=3).r == 3
    assert "method.rank is read as method.r" in caplog.text
    for one, other in (("r", "rank"), ("rank", "r")):
        with pytest.raises(SettingsError, match=rf"method.r is given twice \(as {one} and as {other}\); keep one"):
            registry.method({"type": "lora", one: 3, other: 3})


def test_every_wrong_key_is_named_with_its_place():
    with pytest.raises(SettingsError, match=r"data.train: is required.*data.tset: unknown key, did you mean test"):
        DataSettings.parse({"tset": "a.csv"}, "data")
