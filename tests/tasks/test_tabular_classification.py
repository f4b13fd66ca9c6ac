"""Tables: cells, scales, vocabularies, suspicious columns, tokens, new columns, scores, and tiny trainings."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.preprocessing import QuantileTransformer
from transformers import BertConfig, BertModel

import deltatune
from deltatune.core import label_scores, suspects
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.features import ABSENT, SPECIAL, UNSEEN, Feature, Features, Reading, described
from deltatune.core.registry import task
from deltatune.data.check import records_of
from deltatune.data.load import load, rows_of
from deltatune.data.read import read
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.meta import from_config
from deltatune.models.feature_tokens import (
    FeatureTokensConfig,
    FeatureTokensForClassification,
    FeatureTokensForMasking,
    FeatureTokensModel,
)
from deltatune.tasks.tabular_classification import TabularClassification


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval is tested where it is made."""
    monkeypatch.setattr(TabularClassification, "resamples", 5)


# -- a table that can be learnt: the amount and the kind of card decide


def table(count, seed=0):
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        amount, card = round(chance.lognormvariate(3, 1), 2), chance.choice(["blue", "gold", "none"])
        risk = (amount > 20) + 2 * (card == "gold")
        label = "fraud" if risk + chance.random() > 2.4 else "fine"
        place = chance.choice(["", "Oslo", "Rome", "Lima"])
        found.append({"amount": str(amount), "card": card, "place": place, "hour": chance.randint(0, 23), "is": label})
    return found


def save(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def as_rows(rows, label="is"):
    return [
        {"label": row[label], "features": {name: value for name, value in row.items() if name != label}} for row in rows
    ]


def fitted(rows, **fields):
    return task("tabular-classification", **fields).fit(as_rows(rows))


READING = Reading()
COLUMNS = [
    described("amount", [1.0, 2.0, 4.0, 8.0, None], "number", READING, "quantile", 1, 9),
    described("card", ["blue", "gold", "blue", None], "category", READING, "quantile", 1, 9),
    described("hour", [0, 12, 23], "number", READING, "standard", 1, 9),
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def base(path, columns=COLUMNS, seed=0):
    """A random table model in a folder."""
    torch.manual_seed(seed)
    dumped = [column.model_dump(mode="json") for column in columns]
    FeatureTokensModel(FeatureTokensConfig(columns=dumped, **SMALL)).save_pretrained(path)
    return str(path)


# -- cells


@pytest.mark.parametrize(
    ("value", "found"),
    [("12.5", 12.5), (" 3 ", 3.0), ("1e3", 1000.0), ("12,5", None), ("n/a", None), ("inf", None), ("", None)],
)
def test_what_is_no_finite_number_is_none(value, found):
    assert READING.number(value) == found


def test_a_decimal_comma_is_asked_for():
    comma = Reading(decimal=",")
    assert [comma.number(value) for value in ("12,5", "3", 2.5, "1.000,5")] == [12.5, 3.0, 2.5, None]


def test_words_for_missing_values_are_settings():
    own = Reading(missing=("", "unknown"))
    assert [own.word(value) for value in ("Unknown", "?", 2.0, True)] == [None, "?", "2", "True"]


# -- scales and vocabularies


@pytest.mark.parametrize("values", [np.random.default_rng(0).lognormal(size=500), np.repeat([1.0, 2.0, 5.0], 60)])
def test_quantile_scales_are_those_of_scikit_learn(values):
    found = described("x", values.tolist(), "number", READING, "quantile", 1, 9)
    other = QuantileTransformer(n_quantiles=101, output_distribution="normal", subsample=None)
    expected = other.fit_transform(values[:, None])[:, 0]
    inner = (values > values.min()) & (values < values.max())  # the ends are infinitely far there, half a step here
    edge = 2.5
    assert np.allclose(
        np.clip(found.scaled(values), -edge, edge)[inner], np.clip(expected, -edge, edge)[inner], atol=1e-5
    )


def test_scales_keep_what_is_missing_and_bound_what_is_extreme():
    found = described("x", list(range(200)), "number", READING, "quantile", 1, 9)
    low, middle, high, missing = found.scaled([-1e9, 99.5, 1e9, np.nan])
    assert middle == pytest.approx(0, abs=1e-6) and low == -high and 2 < high < 3 and np.isnan(missing)


def test_standard_scales_have_mean_zero_and_spread_one():
    found = described("x", [1.0, 2.0, 6.0, "n/a"], "number", READING, "standard", 1, 9)
    scaled = found.scaled([1.0, 2.0, 6.0])
    assert scaled.mean() == pytest.approx(0, abs=1e-6) and scaled.std() == pytest.approx(1, abs=1e-6)


def test_rare_values_share_the_entry_of_the_unseen():
    values = ["b"] * 3 + ["a"] * 5 + ["c", None]
    found = described("x", values, "category", READING, "quantile", 2, 9)
    assert (found.values, found.size) == (("a", "b"), 4)
    assert found.shares == (0.1, 0.1, 0.5, 0.3)
    assert described("x", values, "category", READING, "quantile", 1, 1).values == ("a",)


def test_columns_are_encoded_by_group_and_kind_and_odd_cells_are_counted():
    columns = Features(COLUMNS[:2], [COLUMNS[2], COLUMNS[1].model_copy(update={"name": "other"})], READING)
    rows = [
        {"amount": "2", "card": "gold", "hour": 12, "other": "blue"},
        {"amount": "two", "card": "red", "other": None},
    ]
    numbers, places, odd = columns.encode(rows)
    assert [feature.name for feature in columns.numbers] == ["amount", "hour"]
    assert places.tolist() == [[SPECIAL + 1, SPECIAL], [UNSEEN, ABSENT]]
    assert columns.offsets == [0, 0] and np.isnan(numbers).tolist() == [[False, False], [True, True]]
    assert {name: dict(counts) for name, counts in odd.items()} == {"amount": {"two": 1}, "card": {"red": 1}}


def test_two_categories_of_a_group_have_places_of_their_own():
    columns = Features([COLUMNS[1], COLUMNS[1].model_copy(update={"name": "other"})], (), READING)
    assert columns.offsets == [0, COLUMNS[1].size]
    assert columns.encode([{"card": "gold", "other": "gold"}])[1].tolist() == [[3, 7]]


# -- suspicious columns


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda i, row: "x", "column 'odd' is left out: it is 'x' in all training rows"),
        (lambda i, row: "", "column 'odd' is left out: it is empty"),
        (lambda i, row: f"customer {i}", "column 'odd' is left out: nearly every row has a value of its own"),
        (lambda i, row: i * 7, "column 'odd' grows from row to row"),
        (lambda i, row: {"fraud": "blocked", "fine": "open"}[row["is"]], "column 'odd' tells the label by itself"),
        (lambda i, row: (row["is"] == "fraud") + i % 7 / 10, "column 'odd' tells the label by itself"),
    ],
)
def test_suspicious_columns_are_named(column, message, caplog):
    rows = [{**row, "odd": column(i, row)} for i, row in enumerate(table(60))]
    found = fitted(rows)
    assert message in caplog.text
    assert ("odd" in found.left_out) is ("left out" in message)
    assert ("odd" in [feature.name for feature in found.features]) is ("left out" not in message)


def test_an_ordinary_table_raises_no_suspicion(caplog):
    found = fitted(table(80))
    assert caplog.text == "" and found.left_out == ()
    assert {f.name: f.kind for f in found.features} == {
        "amount": "number",
        "card": "category",
        "place": "category",
        "hour": "number",
    }


def test_kinds_can_be_told_and_keep_a_column(caplog):
    rows = [{**row, "customer": f"c{i}"} for i, row in enumerate(table(60))]
    found = fitted(rows, kinds={"hour": "category", "customer": "category"}, min_count=1)
    kinds = {feature.name: feature.kind for feature in found.features}
    assert kinds["hour"] == kinds["customer"] == "category" and "left out" not in caplog.text
    with pytest.raises(SettingsError, match=r"task.kinds: no column 'hours'; did you mean hour\?"):
        fitted(rows, kinds={"hours": "category"})


def test_a_table_without_information_is_an_error():
    with pytest.raises(DataError, match="no column besides the label carries information"):
        fitted([{"x": 1, "is": label} for label in "abab"])


def test_leaks_need_several_rows_to_a_word():
    assert not suspects.tells([str(i) for i in range(40)], ["a", "b"] * 20)
    assert not suspects.separates([0.0, 1.0] * 20, ["a", "b", "b", "a"] * 10)
    assert not suspects.separates([float(i) for i in range(40)], ["a"] * 10 + ["b"] * 20 + ["a"] * 10)


# -- rows


def test_rows_that_cannot_be_used_say_why():
    found = fitted(table(40))
    full = {"amount": 1, "card": "blue", "place": None, "hour": 3}
    assert found.check({"features": full}) is None
    assert found.check({"features": {**full, "more": 1}}) is None
    short = {name: value for name, value in full.items() if name not in ("hour", "card")}
    assert "columns are missing ('card', 'hour'" in found.check({"features": short})
    assert "a value is a list (column 'card')" in found.check({"features": {**full, "card": ["blue"]}})
    assert found.check({"features": dict.fromkeys(full, " NA ")}) == "every value is missing"
    assert "label is unknown" in found.check({"features": full, "label": "other"})


@pytest.mark.parametrize(("label", "columns"), [("survived", {"label": "survived"}), ("target", {})])
def test_a_column_that_is_called_like_a_label_is_none_where_the_label_is_missing(tmp_path, label, columns):
    """The passenger's class, or a `y` beside the `target`: rows to predict come without the label only."""
    lines = [f"{'abc'[i % 3]},{i % 7},{i % 2}" for i in range(40)]
    (tmp_path / "train.csv").write_text("\n".join([f"class,y,{label}", *lines]) + "\n")
    (tmp_path / "new.csv").write_text("class,y\nb,3\n")
    fitted = load(DataSettings(train="train.csv", columns=columns), task("tabular-classification"), tmp_path).task
    (place,) = rows_of(read("new.csv", tmp_path), fitted, columns, labelled=False)
    assert place.row == {"features": {"class": "b", "y": "3"}}
    (given,) = rows_of(records_of([{"class": "b", "y": 3}]), fitted, {}, labelled=False)
    assert given.row == {"features": {"class": "b", "y": 3}}


def test_the_positive_class_is_the_rarer_one_or_the_one_that_is_named():
    rows = [{**row, "is": "yes" if i % 3 else "no"} for i, row in enumerate(table(60))]
    assert fitted(rows).positive == "no"
    assert fitted(rows, positive="yes").positive == "yes"
    with pytest.raises(SettingsError, match="no class 'ja'"):
        fitted(rows, positive="ja")
    three = [{**row, "is": "abc"[i % 3]} for i, row in enumerate(table(60))]
    assert (fitted(three).positive, fitted(three).metric) == (None, "accuracy")
    with pytest.raises(SettingsError, match="no effect without two classes"):
        fitted(three, positive="a")


def test_rows_with_the_same_values_are_near_and_others_are_not():
    found = fitted(table(40))
    one, other = as_rows(table(2))
    assert found.sketch(one) == found.sketch({"features": dict(one["features"])}) != found.sketch(other)


# -- the network


def test_tokens_are_those_of_the_formula():
    torch.manual_seed(0)
    network = FeatureTokensModel(FeatureTokensConfig(columns=[c.model_dump() for c in COLUMNS], **SMALL)).eval()
    own = network.embeddings.columns
    tokens = network.embeddings(torch.tensor([[0.5, float("nan")]]), torch.tensor([[3]]))[0]
    assert torch.equal(tokens[0], network.embeddings.cls_token[0, 0])
    assert torch.allclose(tokens[1], 0.5 * own.weight[0] + own.bias[0])
    assert torch.allclose(tokens[2], own.missing[1] + own.bias[1])
    assert torch.allclose(tokens[3], own.values.weight[3] + own.bias[2])


def test_the_order_of_columns_does_not_matter(tmp_path):
    """Columns have no positions: the same parameters in another order give the same answer."""
    network = FeatureTokensForClassification.from_pretrained(base(tmp_path / "m", COLUMNS), num_labels=2).eval()
    swapped = FeatureTokensForClassification.from_pretrained(
        base(tmp_path / "n", [COLUMNS[2], COLUMNS[0], COLUMNS[1]]), num_labels=2
    ).eval()
    swapped.load_state_dict(network.state_dict())
    own = swapped.encoder.embeddings.columns
    for tensor in (own.weight, own.missing):
        tensor.data = tensor.data[[1, 0]]
    own.bias.data = own.bias.data[[1, 0, 2]]
    numbers, places = torch.tensor([[0.3, -1.0]]), torch.tensor([[2]])
    assert torch.allclose(network(numbers, places).logits, swapped(numbers[:, [1, 0]], places).logits, atol=1e-6)


def test_columns_of_one_kind_only_are_enough():
    for columns in (COLUMNS[:1], COLUMNS[1:2]):
        network = FeatureTokensModel(FeatureTokensConfig(columns=[c.model_dump() for c in columns], **SMALL))
        assert network(**network.dummy_inputs).last_hidden_state.shape == (3, 2, 16)


def test_the_anatomy_knows_the_network_without_its_weights(tmp_path):
    anatomy = Anatomy.of(from_config(base(tmp_path / "m")))
    assert len(anatomy.attentions()) == len(anatomy.main_stack.blocks) == 2
    assert len(anatomy.sublayers(["attention", "mlp"])) == 4
    assert anatomy.inputs()[0].width == 16


def test_masked_columns_are_learnt_from_the_others():
    """The card follows from the sign of the amount, and is told when it is hidden."""
    torch.manual_seed(0)
    columns = [COLUMNS[0], COLUMNS[1]]
    model = FeatureTokensForMasking(FeatureTokensConfig(columns=[c.model_dump() for c in columns], **SMALL))
    numbers = torch.randn(256, 1)
    places = (numbers > 0).long() + SPECIAL
    hide = torch.tensor([[False, True]]).expand(256, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.loss(numbers, places, hide).item()
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(numbers, places, hide).backward()
        optimizer.step()
    assert model.eval().loss(numbers, places, hide).item() < 0.1 < first


def test_hidden_numbers_without_a_value_count_nothing():
    model = FeatureTokensForMasking(FeatureTokensConfig(columns=[COLUMNS[0].model_dump()], **SMALL))
    hide, no = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.long)
    assert model.loss(torch.full((2, 1), float("nan")), no, hide) == 0


# -- a model meets a table


def test_known_columns_keep_their_scale_and_new_ones_get_tokens(tmp_path, caplog):
    folder = base(tmp_path / "m")
    found = fitted(table(60))
    loaded = found.load(folder)
    assert loaded.new == ("classifier", "encoder.embeddings.added")
    assert "1 columns are new to the model and get new tokens: place" in caplog.text
    assert [f.name for f in loaded.processor.numbers] == ["amount", "hour"]
    assert loaded.processor.numbers[0] == COLUMNS[0]
    tokens = loaded.model.encoder.embeddings(**loaded.model.dummy_inputs)
    assert tokens.shape == (3, 1 + 4, 16)


def test_columns_that_the_table_lacks_are_said_and_read_as_missing(tmp_path, caplog):
    rows = [{name: row[name] for name in ("amount", "card", "is")} for row in table(60)]
    found = fitted(rows)
    loaded = found.load(base(tmp_path / "m"))
    assert "1 columns of the model are not in the table: hour" in caplog.text
    assert loaded.new == ("classifier",)
    (example, *_) = found.encode(as_rows(rows), loaded.processor)
    assert np.isnan(example["numbers"]).tolist() == [False, True]


def test_a_table_of_other_columns_only_works_too(tmp_path):
    rows = [{"p": i % 7, "q": "uvw"[i % 3], "is": "ab"[i % 2]} for i in range(40)]
    found = fitted(rows)
    loaded = found.load(base(tmp_path / "m"))
    batch = found.collate(found.encode(as_rows(rows[:2]), loaded.processor), loaded.processor)
    assert loaded.model(batch["numbers"], batch["categories"]).logits.shape == (2, 2)


def test_words_where_the_model_has_numbers_are_an_error(tmp_path):
    rows = [{**row, "amount": "much" if i % 2 else "little"} for i, row in enumerate(table(60))]
    with pytest.raises(SettingsError, match="column 'amount' is one of numbers to the model"):
        fitted(rows).load(base(tmp_path / "m"))


def test_another_kind_of_model_is_an_error(tmp_path):
    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(SettingsError, match="is of type bert, which reads no tables"):
        fitted(table(40)).load(str(tmp_path / "bert"))
    with pytest.raises(SettingsError, match="does not exist"):
        fitted(table(40)).load(str(tmp_path / "nowhere"))


def test_odd_cells_and_unknown_columns_are_counted(tmp_path, caplog):
    found = fitted(table(60))
    loaded = found.load(base(tmp_path / "m"))
    caplog.clear()
    row = {"amount": "12,5", "card": "black", "place": "Oslo", "hour": 3, "weather": "fine"}
    found.encode([{"features": row}], loaded.processor)
    assert "no numbers and are read as missing: amount 1 (such as '12,5')" in caplog.text
    assert "rare or unseen and share one entry: card 1 (such as 'black')" in caplog.text
    assert "columns that the training rows do not have are not read: weather" in caplog.text


def test_a_rows_answer_does_not_depend_on_its_neighbours(tmp_path):
    found = fitted(table(60))
    loaded = found.load(base(tmp_path / "m"))
    loaded.model.eval()
    examples = found.encode(as_rows(table(7)), loaded.processor)
    with torch.no_grad():
        together = found.run(loaded.model, found.collate(examples, None)).logits
        alone = torch.cat([found.run(loaded.model, found.collate([e], None)).logits for e in examples])
    assert torch.allclose(together, alone, atol=1e-6)


# -- augmentation


def test_varied_rows_have_values_of_their_columns(tmp_path):
    found = fitted(table(60), augmentation={"swap": 0.9, "noise": 0.0})
    loaded = found.load(base(tmp_path / "m"))
    (example, *_) = found.encode(as_rows(table(3)), loaded.processor)
    shown = [found.augment(example, np.random.default_rng((1, step))) for step in range(200)]
    assert found.augment(example, np.random.default_rng((1, 0)))["numbers"].tolist() == shown[0]["numbers"].tolist()
    places = np.stack([one["categories"] for one in shown])
    card = COLUMNS[1]
    assert set(places[:, 0].tolist()) <= set(range(card.size)) and len(set(places[:, 0].tolist())) > 1
    share = np.mean(places[:, 0] == SPECIAL)
    assert abs(share - card.shares[SPECIAL] * 0.9) < 0.15 or example["categories"][0] == SPECIAL
    allowed = set(COLUMNS[0].scaled(COLUMNS[0].quantiles).tolist()) | {float(example["numbers"][0])}
    assert set(np.stack([one["numbers"] for one in shown])[:, 0].tolist()) <= allowed
    assert found.collate(shown[:2], None)["numbers"].shape == (2, 2)


def test_noise_is_added_to_numbers_only_and_off_means_the_row_itself(tmp_path):
    found = fitted(table(60), augmentation={"swap": 0.0, "noise": 0.5})
    loaded = found.load(base(tmp_path / "m"))
    (example, *_) = found.encode(as_rows(table(3)), loaded.processor)
    moved = np.stack([found.augment(example, np.random.default_rng(s))["numbers"] for s in range(400)])
    assert np.allclose((moved - example["numbers"]).std(0), 0.5, atol=0.08)
    assert found.augment(example, np.random.default_rng(0))["categories"].tolist() == example["categories"].tolist()
    assert fitted(table(60)).augment(example, np.random.default_rng(0)) is example


# -- scores


def test_scores_are_those_of_scikit_learn():
    rows = table(200)
    found = fitted(rows)
    chance = np.random.default_rng(0)
    given = chance.random(200).round(2)
    answers = [{"label": "fraud" if p >= 0.5 else "fine", "probabilities": {"fine": 1 - p, "fraud": p}} for p in given]
    scores = found.score(answers, as_rows(rows))
    truth = [row["is"] == "fraud" for row in rows]
    assert found.positive == "fraud" and found.metric == "auc"
    assert scores["auc"] == pytest.approx(metrics.roc_auc_score(truth, given))
    assert scores["average_precision"] == pytest.approx(metrics.average_precision_score(truth, given))
    rates, recalls, _ = metrics.roc_curve(truth, given)
    assert scores["recall_at_false_positive_rate"] == pytest.approx(max(recalls[rates <= 0.05]))
    assert scores["brier"] == pytest.approx(2 * metrics.brier_score_loss(truth, given))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1 / 3), (0.49, 1 / 3), (0.5, 2 / 3), (0.99, 2 / 3), (1.0, 1.0)])
def test_recall_at_a_rate_takes_the_best_threshold_within_it(rate, expected):
    wanted, scores = [True, False, True, False, True], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert label_scores.recall_at(wanted, scores, rate) == pytest.approx(expected)
    assert label_scores.recall_at([True, True], [0.1, 0.2], rate) is None


def test_baselines_learn_and_majority_knows_nothing():
    train, rows = as_rows(table(300)), as_rows(table(100, seed=1))
    found = fitted(table(300))
    beside = found.baselines(train, rows)
    assert set(beside) == {"gradient boosting", "logistic regression"}
    assert all(scores["auc"] > 0.8 for scores in beside.values())
    assert found.baseline(train, rows)[1]["auc"] == 0.5


def test_numbers_have_baselines_too():
    rows = [{**row, "is": float(row["hour"]) * 2 + 0.5} for row in table(120)]
    found = fitted(rows)
    assert found.problem == "regression"
    beside = found.baselines(as_rows(rows), as_rows(rows[:40]))
    assert set(beside) == {"gradient boosting", "ridge regression"}
    assert all(scores["r2"] > 0.8 for scores in beside.values())


def test_a_category_of_many_values_is_left_to_the_linear_model():
    rows = [{**row, "shop": f"s{i % 290}"} for i, row in enumerate(table(600))]
    found = fitted(rows, min_count=1)
    assert max(feature.size for feature in found.features) > 255
    assert set(found.baselines(as_rows(rows), as_rows(rows[:60]))) == {"gradient boosting", "logistic regression"}


# -- trainings


def train(tmp_path, method, steps, **fields):
    rows = table(320)
    return deltatune.finetune(
        task={"type": "tabular-classification", **fields},
        model=base(tmp_path / "model"),
        data={
            "train": save(tmp_path / "train.csv", rows[:200]),
            "validation": save(tmp_path / "validation.csv", rows[200:260]),
            "test": save(tmp_path / "test.csv", rows[260:]),
            "columns": {"label": "is"},
        },
        method=method,
        training={
            "max_steps": steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 16,
            "lr_scheduler_type": "constant",
            "early_stopping_patience": None,
            "bf16": False,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


def test_a_model_learns_by_lora_and_answers_from_its_folder(tmp_path):
    run = train(
        tmp_path,
        {"type": "lora", "r": 4, "target_modules": "all-linear"},
        60,
        class_weights="balanced",
        focal_gamma=1.0,
        augmentation={"swap": 0.05, "noise": 0.1},
    )
    assert run.results["validation"]["loss"] < 0.9 * run.results["before"]["loss"]
    assert run.results["test"]["auc"] > 0.8
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.csv"))
    assert scored["auc"] == pytest.approx(run.results["test"]["auc"], abs=1e-6)
    new = [{"amount": "80", "card": "gold", "place": "Oslo", "hour": 3}, {"amount": "80", "card": "gold"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new[:1]))
    (answer,) = deltatune.predict(run.folder, file=str(tmp_path / "new.jsonl"))
    assert answer["label"] == "fraud" and set(answer["probabilities"]) == {"fine", "fraud"}
    (error,) = deltatune.predict(run.folder, rows=new[1:])
    assert "columns are missing ('place', 'hour'" in error["error"]


METHODS = [
    {"type": "ia3"},
    {"type": "adapter"},
    {"type": "bitfit"},
    {"type": "prefix", "num_virtual_tokens": 3},
    {"type": "prompt", "num_virtual_tokens": 3},
    {"type": "linear-probe"},
    {"type": "full"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["type"])
def test_methods_of_every_kind_of_site_train(tmp_path, method):
    found = train(tmp_path, method, 2)
    assert found.results["train"]["steps"] == 2
    scored = deltatune.evaluate(found.folder, str(tmp_path / "test.csv"))
    assert scored["loss"] == pytest.approx(found.results["test"]["loss"], abs=1e-6)


def test_features_are_settings_that_survive_the_file():
    found = fitted(table(60))
    again = task("tabular-classification", **json.loads(found.model_dump_json()))
    assert again == found and isinstance(again.features[0], Feature)
