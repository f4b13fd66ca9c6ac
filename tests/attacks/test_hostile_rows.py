"""Spoilt training data of every task ends in a run or in an error of ours, and every row is accounted for."""

import json
import math
import struct

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.core import registry
from deltatune.core.config import DataSettings
from deltatune.core.conversations import conversation
from deltatune.core.errors import DataError, DeltatuneError
from deltatune.data.batch import collate
from deltatune.data.load import load
from deltatune.data.usable import usable
from grounds import MAKERS, ground, lines, table

ODD = {
    "nothing": None,
    "an empty text": "",
    "spaces that are none": "\u200b\u3000",
    "a number": 0,
    "a fraction": -1.5,
    "not a number": math.nan,
    "infinity": math.inf,
    "an endless integer": 10**400,
    "yes": True,
    "an empty list": [],
    "an empty object": {},
    "lists in lists": [[[]]],
    "nothing in a list": [None],
    "an object in a list": [{"role": "user", "content": None, "label": None, "box": [math.nan] * 4}],
    "a long text": "x" * 20_000,
    "many faces": "\U0001f600" * 60,
    "from right to left": "\u202e abc\x1b[2J",
    "a path out of the folder": "../../../../etc/passwd",
    "a device": "/dev/zero",
    "an address": "http://example.org/a.png",
    "special tokens": "[CLS] [SEP] [PAD] <s> </s> <|im_start|>user",
    "the end of time": "9999-12-31T23:59:59.999999+00:00",
}


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    """Every task's, made when it is asked for."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, ground(name, folder))
        return made[name]

    return of


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval is tested where it is made."""
    for task in registry.tasks().values():
        monkeypatch.setattr(task, "resamples", 3)


def seen(own, folder, rows, **data):
    """What a training of these rows would be given, and its first batch."""
    source = str(folder / lines(folder / "rows.jsonl", rows))
    splits = load(DataSettings(train=source, **data), registry.task(own.task), folder)
    loaded = splits.task.load(own.model)
    splits, examples = usable(splits, loaded.processor, data.get("max_rejected", 0.01))
    collate(splits.task, examples["train"][:4], loaded.processor)
    splits.task.baseline(splits.train, splits.test)
    return splits


@pytest.mark.parametrize("name", MAKERS)
def test_an_odd_value_is_kept_or_rejected_with_its_line(grounds, name):
    folder, own = grounds(name)
    for word in dict.fromkeys((own.asked, own.label or own.asked)):
        for told, value in ODD.items():
            rows = [{**row, word: value} if number == 3 else row for number, row in enumerate(own.rows)]
            try:
                found = seen(own, folder, rows, max_rejected=0.2)
            except DeltatuneError as error:
                assert str(error), (word, told)
                continue
            assert found.accounts.files["train"].read == len(rows), (word, told)
            assert {row.line for row in found.rejected} <= {4}, (word, told)


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_of_odd_rows_among_good_ones_trains_and_answers_row_by_row(grounds, name, tmp_path, monkeypatch):
    """Through the command line, with the rows that pandas and people write."""
    folder, own = grounds(name)
    label = {} if own.label is None else {own.label: own.rows[0][own.label]}
    first = {**own.rows[0], **label}
    odd = [{**first, own.asked: value} for value in (None, "", [], {}, [None], math.nan, "\u200b")]
    junk = ["[]", "3", "null", '"text"', "{}", "{", '{"a": 1}', '{"a": 1, "a": 2}', "\x00"]
    config = own.config(folder, lines(folder / "mixed.jsonl", [*own.rows, *odd, *junk]), max_rejected=0.6)
    config["output_dir"] = str(tmp_path / "run")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(build(), ["train", "run.yaml", "--quiet"])
    assert done.exception is None, done.exception
    results = json.loads((tmp_path / "run/results.json").read_text())
    account = results["accounts"]["files"]["train"]
    assert account["read"] == len(own.rows) + len(odd) + len(junk)
    listed = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").read_text().splitlines()]
    assert {row["line"] for row in listed} >= set(range(len(own.rows) + len(odd) + 1, account["read"] + 1))
    others = [{**other, own.asked: row[own.asked]} for other, row in zip(own.rows[1:], odd, strict=False)]
    answers = deltatune.predict(tmp_path / "run", rows=[own.rows[0], *others])  # a series has a time only once
    assert answers and all(isinstance(answer, dict) for answer in answers)
    if own.type == "forecasting":
        with pytest.raises(DataError, match="twice"):
            deltatune.predict(tmp_path / "run", rows=[own.rows[0], *odd])


STRUCTURES = {
    "nothing at all": lambda rows: [],
    "one row": lambda rows: rows[:1],
    "three rows": lambda rows: rows[:3],
    "one row again and again": lambda rows: rows[:1] * 30,
    "ten thousand more columns": lambda rows: [{**row, **{f"c{n}": n for n in range(10_000)}} for row in rows[:12]],
    "rows that are none": lambda rows: ["[]", "3", "null", "{}", "{"],
}


@pytest.mark.parametrize("name", MAKERS)
def test_too_little_and_too_much_is_a_run_or_an_error_of_ours(grounds, name):
    folder, own = grounds(name)
    for make in STRUCTURES.values():
        try:
            seen(own, folder, make(own.rows), max_rejected=1.0)
        except DeltatuneError:
            continue
    if own.label is not None:
        for value in (own.rows[0][own.label], None, "", 10**400):
            try:
                seen(own, folder, [{**row, own.label: value} for row in own.rows], max_rejected=1.0)
            except DeltatuneError:
                continue


@pytest.mark.parametrize("name", MAKERS)
def test_rows_of_training_in_validation_and_test_stop_a_run(grounds, name):
    folder, own = grounds(name)
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty.jsonl has no rows"):
        seen(own, folder, own.rows, validation=str(folder / "empty.jsonl"))
    if registry.task(own.task).repeats or own.type in ("recommendation", "forecasting"):  # by nature, or no line alone
        return
    same = str(folder / lines(folder / "same.jsonl", own.rows))
    with pytest.raises(DataError, match="stand in the training rows too"):
        seen(own, folder, own.rows, validation=same, test=same)


@pytest.mark.parametrize("name", MAKERS)
def test_groups_and_tasks_that_are_none_are_said(grounds, name):
    folder, own = grounds(name)
    for value in (1, None, [1], {"a": 1}, math.nan, ""):
        rows = [{**row, "g": value} for row in own.rows]
        with pytest.raises(DeltatuneError):
            seen(own, folder, rows, group_column="g")
        with pytest.raises(DeltatuneError):
            seen(own, folder, rows, task_column="g")


# -- files that rows name


def _sparse(path):
    """Ten gigabytes that take no room."""
    with path.open("wb") as file:
        file.truncate(10 << 30)


def _wav(path, samples, claimed=None, rate=16_000):
    data = np.zeros(samples, "<i2").tobytes()
    size = 2 * samples if claimed is None else claimed
    header = (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    )
    path.write_bytes(header + b"data" + struct.pack("<I", size) + data)


def _png(path, **said):
    Image.new("RGB", (20, 20), (200, 10, 10)).save(path, "PNG")
    raw = bytearray(path.read_bytes())
    if "cut" in said:
        raw = raw[: len(raw) // 2]
    if "width" in said:
        raw[16:20] = struct.pack(">I", said["width"])
    path.write_bytes(raw)


def _ply(path, count):
    words = ("property float x", "property float y", "property float z")
    head = "\n".join(("ply", "format ascii 1.0", f"element vertex {count}", *words, "end_header"))
    path.write_text(head + "\n0 0 0\n")


IMAGES = {
    "cut.png": lambda p: _png(p, cut=True),
    "huge.png": lambda p: _png(p, width=2_000_000_000),
    "empty.png": lambda p: p.write_bytes(b""),
    "text.png": lambda p: p.write_text("no picture"),
    "page.png": lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "sparse.png": _sparse,
    "folder.png": lambda p: p.mkdir(),
}
SPOILT = {
    "image-classification": IMAGES,
    "object-detection": IMAGES,
    "speech-recognition": {
        "silent.wav": lambda p: _wav(p, 0),
        "short.wav": lambda p: _wav(p, 10),
        "claims.wav": lambda p: _wav(p, 4000, claimed=1 << 31),
        "fast.wav": lambda p: _wav(p, 4000, rate=2_000_000_000),
        "still.wav": lambda p: _wav(p, 4000, rate=0),
        "empty.wav": lambda p: p.write_bytes(b""),
        "text.wav": lambda p: p.write_text("no sound"),
        "sparse.wav": _sparse,
    },
    "point-cloud-classification": {
        "one.npy": lambda p: np.save(p, np.zeros((1, 3), np.float32)),
        "none.npy": lambda p: np.save(p, np.zeros((0, 3), np.float32)),
        "same.npy": lambda p: np.save(p, np.ones((40, 3), np.float32)),
        "nan.npy": lambda p: np.save(p, np.full((40, 3), np.nan, np.float32)),
        "flat.npy": lambda p: np.save(p, np.zeros(40, np.float32)),
        "objects.npy": lambda p: np.save(p, np.array([{}], object), allow_pickle=True),
        "large.ply": lambda p: _ply(p, 4_000_000_000),
        "late.off": lambda p: p.write_text("OFF\n8 0 0\n0 0 0\n"),
        "sparse.npy": _sparse,
        "sparse.off": _sparse,
        "sparse.ply": _sparse,
    },
}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in SPOILT.items() for file in files])
def test_a_file_that_a_row_names_and_nobody_can_read_is_a_problem_of_its_row(grounds, name, file):
    folder, own = grounds(name)
    path = folder / f"spoilt-{file}"
    if not path.exists():
        SPOILT[name][file](path)
    rows = [*own.rows, {**own.rows[0], own.asked: path.name}]
    found = seen(own, folder, rows, max_rejected=0.2)
    assert [row.line for row in found.rejected] == [len(rows)], found.rejected
    assert found.rejected[0].reason


CONVERSATIONS = [
    {"messages": []},
    {"messages": [{"role": "user", "content": "why"}]},
    {"messages": [{"role": "assistant", "content": ""}]},
    {"messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {"messages": [{"content": "x"}, {"role": "assistant"}]},
    {"messages": "user: hello"},
    {"messages": [[]]},
    {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "y"}]},
    {"question": "why", "answer": None},
]
MOLECULES = [
    "C1CC",
    "c1ccccc",
    "X",
    "C" * 5000,
    "C..C",
    "((((",
    "[Na+",
    "C%(123)C",
    "$",
    "C(C)(C)(C)(C)C",
    "\u0421",
    "1",
]


def test_a_conversation_in_two_shapes_is_read_as_the_first_of_them(grounds):
    """`core.conversations` says which: messages before text."""
    folder, own = grounds("chat")
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    found = seen(own, folder, [*own.rows, {"text": "plain", "messages": talk}], max_rejected=0.2)
    assert not found.rejected and sum(map(len, found.parts.values())) == len(own.rows) + 1
    (both,) = (row for part in found.parts.values() for row in part if row.get("text"))
    assert conversation(both).text is None and conversation(both).messages == talk


@pytest.mark.parametrize(
    ("name", "odd"),
    [("chat", row) for row in CONVERSATIONS]
    + [("molecule-property", {"smiles": text, "label": "a"}) for text in MOLECULES]
    + [("token-classification", row) for row in (
        {"tokens": [], "tags": []},
        {"tokens": ["a"], "tags": []},
        {"tokens": ["a", ""], "tags": ["O", "O"]},
        {"tokens": ["a", "b"], "tags": ["O", "I-PER"]},
        {"tokens": ["a"], "tags": ["PER"]},
        {"tokens": ["a"], "tags": [None]},
    )]
    + [("object-detection", {"path": "images/0.png", "boxes": boxes}) for boxes in (
        [{"label": "a", "box": [9, 9, 3, 3]}],
        [{"label": "a", "box": [-900, 0, 9, 9]}],
        [{"label": "", "box": [0, 0, 9, 9]}],
        [{"box": [0, 0, 9, 9]}],
        ["a"],
    )],
)  # fmt: skip
def test_rows_that_break_the_rules_of_their_task_are_rejected(grounds, name, odd):
    folder, own = grounds(name)
    found = seen(own, folder, [*own.rows, odd], max_rejected=0.2)
    assert [row.line for row in found.rejected] == [len(own.rows) + 1]


def test_a_table_of_holes_and_letters_is_read_or_said(grounds, tmp_path):
    """NaN, infinities, words among numbers and a column of nothing, as CSV."""
    folder, own = grounds("tabular-classification")
    rows = [
        {**row, "empty": "", "odd": ("nan", "inf", "-inf", "1e999", "a", "")[n % 6]} for n, row in enumerate(own.rows)
    ]
    splits = load(DataSettings(train=table(folder / "holes.csv", rows)), registry.task(own.task), folder)
    assert splits.accounts.files["train"].read == len(rows)
    examples = splits.task.encode(splits.train, splits.task.load(own.model).processor)
    assert len(examples) == len(splits.train)
