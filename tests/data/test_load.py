"""From files to checked rows: columns, rejected rows, splits, overlap."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from deltatune.core.task import Column
from deltatune.data.check import Placed
from deltatune.data.columns import match
from deltatune.data.load import content_hash, load, rows_of
from deltatune.data.read import read
from deltatune.data.split import sample, split
from deltatune.data.table import Table
from deltatune.tasks.text_classification import TextClassification

TASK = task("text-classification")


def rows(count=40, start=0, labels=("good", "bad")):
    return [{"text": f"sentence number {i}", "label": labels[i % len(labels)]} for i in range(start, start + count)]


def save(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path.name


def loaded(tmp_path, records, **settings):
    return load(DataSettings(train=save(tmp_path / "train.jsonl", records), **settings), TASK, tmp_path)


def test_rows_are_split_by_label_and_all_accounted_for(tmp_path):
    found = loaded(tmp_path, rows(100))
    sizes = [len(part) for part in (found.train, found.validation, found.test)]
    assert sizes == [80, 10, 10]
    assert sum(row["label"] == "good" for row in found.test) == 5
    assert found.task.labels == ("bad", "good")


def test_the_same_seed_gives_the_same_split(tmp_path):
    first, again, other = (loaded(tmp_path, rows(60), split_seed=seed) for seed in (1, 1, 2))
    assert first.test == again.test != other.test
    assert first.fingerprint == again.fingerprint != other.fingerprint


BAD = [
    ({"text": "", "label": "good"}, "text is empty"),
    ({"text": 5, "label": "good"}, "text is not text"),
    ({"label": "good"}, "text is missing"),
    ({"text": "no label"}, "label is missing"),
    ({"text": "x", "label": " "}, "label is missing"),
    ({"text": "x", "label": ["a", None]}, "label is a list with a name that is missing"),
    ({"text": "x", "label": [""]}, "label is a list with a name that is missing"),
    ({"text": "sentence number 1", "label": "bad"}, "same input as line 2"),
    ({"text": " Sentence  NUMBER 1", "label": "good"}, "same input as line 2, with another label"),
    ({"text": "x", "label": [["a"]]}, "label is neither a name nor a list"),
    ({"text": "x", "label": {"a": 3}}, "label is a mapping of names to 1, 0 or nothing (3 is neither 1 nor 0)"),
    ({"text": "x", "label": {"a": None}}, "label is missing for every class"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_row_is_rejected_with_line_and_reason(tmp_path, bad, reason):
    found = loaded(tmp_path, [*rows(40), bad], max_rejected=0.1)
    (rejected,) = found.rejected
    assert (rejected.line, rejected.row) == (41, bad)
    assert reason in rejected.reason
    assert len(found.train) + len(found.validation) + len(found.test) + 1 == 41


def test_too_many_bad_rows_stop_with_places_and_reasons(tmp_path):
    with pytest.raises(DataError, match=r"3 of 43 rows rejected \(3 x text is empty\).*train.jsonl:41.*max_rejected"):
        loaded(tmp_path, [*rows(40), *[{"text": " ", "label": "good"}] * 3])


def test_repeated_rows_whose_labels_disagree_are_counted_apart(tmp_path):
    with pytest.raises(DataError, match=r"\(2 x same input, 1 x same input with another label\)"):
        loaded(tmp_path, [*rows(40), *rows(2), {"text": "sentence number 5", "label": "good"}])


def test_what_makes_two_rows_the_same_input_is_the_tasks_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(type(TASK), "identity", lambda self, row: row["text"])
    found = loaded(tmp_path, [*rows(40), {"text": "SENTENCE number 1", "label": "bad"}])
    assert not found.rejected
    with pytest.raises(DataError, match="2 rows of validation or test stand in the training rows"):
        loaded(tmp_path, rows(), test=save(tmp_path / "test.jsonl", [*rows(2), {"text": "SENTENCE", "label": "bad"}]))


def test_an_unknown_label_in_the_test_file_is_rejected(tmp_path):
    test = save(tmp_path / "test.jsonl", [*rows(10, start=200), {"text": "odd", "label": "gud"}])
    with pytest.raises(DataError, match=r"test.jsonl:11: label is unknown \('gud'\)"):
        loaded(tmp_path, rows(), test=test)


def test_rows_that_stand_in_two_splits_stop_unless_allowed(tmp_path):
    files = {
        "test": save(tmp_path / "test.jsonl", rows(4, start=38)),
        "validation": save(tmp_path / "validation.jsonl", rows(4, start=100)),
    }
    with pytest.raises(DataError, match=r"2 rows of validation or test stand in the training rows.*train.jsonl:39"):
        loaded(tmp_path, rows(), **files)
    assert len(loaded(tmp_path, rows(), allow_overlap=True, **files).test) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"no column for 'text' \(columns: review_text, stars\); name it: .*\{text: review_text or stars\}"),
        ({"text": "review"}, r"no column 'review' \(data.columns.text\); did you mean review_text"),
        ({"txt": "stars"}, r"data.columns.txt: the task has no such word; did you mean text"),
    ],
)
def test_a_wrong_column_shows_the_line_to_write(tmp_path, columns, message):
    records = [{"review_text": f"a {i}", "stars": "x"} for i in range(5)]
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, records, columns=columns)


def test_the_label_may_be_missing_from_rows_to_predict_whatever_it_is_called():
    table, wanted = Table("f", ("source",), []), {word: Column((word,)) for word in ("source", "target")}
    assert match(table, wanted, {}, unlabelled="target") == {"source": "source"}
    with pytest.raises(DataError, match="no column for 'target'"):
        match(table, wanted, {})


def test_several_columns_are_one_label_and_an_empty_cell_is_not_known(tmp_path):
    """A wide file, as multi-task data sets are published."""
    lines = ["text,nr-ar,sr-p53,id", *(f"t {i},{i % 2},{'' if i % 3 else (i // 3) % 2},{i}" for i in range(60))]
    (tmp_path / "wide.csv").write_text("\n".join(lines) + "\n")
    columns = {"label": ["nr-ar", "sr-p53"]}
    found = load(DataSettings(train="wide.csv", columns=columns), TASK, tmp_path)
    assert (found.task.problem, found.task.labels) == ("multi-label", ("nr-ar", "sr-p53"))
    first = next(row for row in found.train if row["text"] == "t 1")
    assert first["label"] == {"nr-ar": "1", "sr-p53": ""}
    assert not found.rejected
    with pytest.raises(DataError, match=r"no column 'sr-p35' \(data.columns.label\); did you mean sr-p53"):
        load(DataSettings(train="wide.csv", columns={"label": ["nr-ar", "sr-p35"]}), TASK, tmp_path)


def test_columns_are_found_by_their_usual_names_whatever_the_case(tmp_path):
    found = loaded(tmp_path, [{"Review": f"a {i}", "Sentiment": "ab"[i % 2]} for i in range(30)])
    assert found.train[0].keys() == {"text", "label"}


def test_one_class_and_too_few_rows_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"only one class .*good"):
        loaded(tmp_path, rows(40, labels=("good",)))
    with pytest.raises(DataError, match="too few to split off"):
        loaded(tmp_path, rows(4))


@pytest.mark.parametrize("column", [None, "text"])
def test_shares_that_leave_nothing_to_train_on_are_an_error(tmp_path, column):
    with pytest.raises(
        SettingsError, match="validation_fraction 0.5 and data.test_fraction 0.5 leave no rows to train"
    ):
        loaded(tmp_path, rows(40), validation_fraction=0.5, test_fraction=0.5, group_column=column)


def test_a_column_of_free_text_is_no_label(tmp_path):
    with pytest.raises(DataError, match="different labels.*is it the right column"):
        loaded(tmp_path, [{"text": f"t {i}", "label": f"name {i}"} for i in range(60)])


def test_many_rare_classes_are_learned_where_they_are_named():
    """A few rows of each of many intents are no mistake, and the hint says what to write."""
    names = [f"name {i}" for i in range(40)]
    with pytest.raises(DataError, match="named in task.labels"):
        TASK.fit(rows(60, labels=names))
    assert task("text-classification", labels=names).fit(rows(60, labels=names)).label_names == tuple(names)


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path):
    found = loaded(tmp_path, rows(100), max_rows=20)
    numbers = [int(row["text"].split()[-1]) for row in found.train]
    assert len(numbers) == 20
    assert numbers == sorted(numbers)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=80), st.integers(0, 9))
def test_a_split_is_a_partition_in_order_and_repeatable(labels, seed):
    items = list(range(len(labels)))
    parts = split(items, labels, [0.2, 0.1], seed)
    assert sorted(sum(parts, [])) == items
    assert all(part == sorted(part) for part in parts)
    assert parts == split(items, labels, [0.2, 0.1], seed)
    assert abs(len(parts[1]) - 0.2 * len(items)) <= 2


def test_numbers_are_stratified_by_deciles():
    values = [float(i) for i in range(100)]
    _, part = split(values, values, [0.2], seed=0)
    assert all(sum(low <= v < low + 10 for v in part) == 2 for low in range(0, 100, 10))


def test_numbers_of_a_csv_file_are_numbers():
    values = [f"{i}.25" for i in range(100)]
    parts = [split(range(100), values, [0.2], seed)[1] for seed in (0, 1)]
    assert parts[0] != parts[1]
    assert all(sum(low <= v < low + 10 for v in part) == 2 for low in range(0, 100, 10) for part in parts)


@pytest.mark.parametrize("label", [str, lambda i: [f"a{i}", f"b{i}"], lambda i: {"a": 1, f"b{i}": 0}])
def test_labels_of_one_row_each_are_drawn_by_the_seed(label):
    labels = [label(i) for i in range(100)]
    parts = [split(range(100), labels, [0.1, 0.1], seed) for seed in (0, 1)]
    assert [len(part) for part in parts[0]] == [80, 10, 10]
    assert parts[0][1] != parts[1][1] and parts[0][2] != parts[1][2]


def test_a_sample_of_everything_is_everything():
    assert sample([1, 2, 3], 9, seed=0) == [1, 2, 3]


class Wide(TextClassification):
    """Reads every column, and rows may repeat."""

    rest = "others"
    repeats = True
    key = ("text", "others")


WIDE = [{"text": f"t {i % 30}", "kind": "good" if i % 2 else "bad", "age": i % 30, "group": i} for i in range(60)]


def test_all_other_columns_arrive_as_one_mapping(tmp_path):
    settings = DataSettings(
        train=save(tmp_path / "train.jsonl", [*WIDE, {"text": "t", "kind": "good"}]),
        columns={"label": "kind"},
        group_column="group",
        max_rejected=0.5,
    )
    found = load(settings, Wide(), tmp_path)
    assert found.train[0]["others"] == {"age": WIDE[0]["age"]}
    assert {"text", "label", "group", "others"} == set(found.train[0])


def test_rows_that_may_repeat_are_kept_and_their_overlap_is_a_warning(tmp_path, caplog):
    settings = DataSettings(train=save(tmp_path / "train.jsonl", WIDE), columns={"label": "kind", "text": "text"})
    for row in (found := load(settings, Wide(), tmp_path)).train:
        assert set(row["others"]) == {"age", "group"}
    assert found.rejected == []
    same = [{name: row[name] for name in ("text", "kind", "age")} for row in WIDE]
    settings = settings.model_copy(update={"train": save(tmp_path / "same.jsonl", same)})
    found = load(settings, Wide(), tmp_path)
    assert len(found.train) + len(found.validation) + len(found.test) == 60
    assert "stand in the training rows too" in caplog.text


@pytest.mark.parametrize("labelled", [True, False])
def test_rows_to_predict_need_no_label_and_never_show_it(tmp_path, labelled):
    plain = [{"text": "a", "age": 3, **({"kind": "good"} if labelled else {})}]
    table = read(save(tmp_path / "new.jsonl", plain), tmp_path)
    (place,) = rows_of(table, Wide(), {"label": "kind"}, labelled=False)
    assert isinstance(place, Placed) and place.row == {"text": "a", "others": {"age": 3}}
    if not labelled:
        with pytest.raises(DataError, match="no column 'kind'"):
            rows_of(table, Wide(), {"label": "kind"}, labelled=True)


def test_the_hash_of_rows_is_of_what_stands_in_them_and_not_of_where_files_lie():
    images = task("image-classification")
    here = [{"path": "/here/cats/1.png", "label": "cat"}, {"path": "/here/dogs/2.png", "label": "dog"}]
    moved = [{**row, "path": row["path"].replace("/here", "/there/on")} for row in here]
    turned = [{**row, "label": "dog"} for row in here]
    assert content_hash(here, images) == content_hash(moved, images)
    assert content_hash(turned, images) != content_hash(here, images) != content_hash(here[::-1], images)
    assert content_hash([{"text": "/a/b"}], TASK) != content_hash([{"text": "/c/b"}], TASK)
