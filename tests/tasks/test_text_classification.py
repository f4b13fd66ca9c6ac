"""Text classification: problems, labels, encoding, losses, metrics."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers.modeling_outputs import SequenceClassifierOutput

from deltatune.core import label_scores
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from words import model_folder, reviews


def fitted(values, **fields):
    rows = [{"text": f"t {i}", "label": value} for i, value in enumerate(values)]
    return task("text-classification", **fields).fit(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("labels", "problem", "names"),
    [
        (["b", "a", "b"], "single", ("a", "b")),
        ([10, 9, 1], "single", ("1", "9", "10")),
        (["1.0", "0.0"], "single", ("0.0", "1.0")),
        ([1.0, 0.0], "single", ("0", "1")),
        ([True, False], "single", ("False", "True")),
        ([["x", "y"], ["y"], []], "multi-label", ("x", "y")),
        ([{"x": 1, "y": None}, {"x": "", "y": "0"}], "multi-label", ("x", "y")),
        ([0.5, 1, 2], "regression", ()),
        (["0.5", "1.25"], "regression", ()),
    ],
)
def test_the_problem_follows_from_the_labels(labels, problem, names):
    found = fitted(labels)
    assert (found.problem, found.labels) == (problem, names)
    assert found.metric == {"single": "accuracy", "multi-label": "micro_f1", "regression": "pearson"}[problem]


def test_given_labels_keep_their_order():
    assert fitted(["a", "b"], labels=("b", "a")).labels == ("b", "a")
    for kind in ("text-classification", "token-classification", "object-detection"):
        with pytest.raises(SettingsError, match=r"labels: 'a' is named twice"):
            task(kind, labels=("a", "b", "a"))


def test_numbers_can_be_asked_for():
    assert fitted([1, 2, 3], problem="regression").problem == "regression"
    with pytest.raises(DataError, match="only one class"):
        fitted(["a", "a"])


@pytest.mark.parametrize(
    ("value", "problem", "message"),
    [
        ("x", "regression", "not a number"),
        (float("nan"), "auto", "not a finite number"),
        ("", "auto", "missing"),
        (["a"], "single", "a list where one class"),
        ({"a": 1}, "single", "a mapping where one class"),
        ({"a": "yes"}, "auto", "neither 1 nor 0"),
        ({1: 1}, "auto", "names are not text"),
        ({"a": None, "b": ""}, "auto", "missing for every class"),
    ],
)
def test_labels_that_do_not_fit_are_named(value, problem, message):
    assert message in task("text-classification", problem=problem).check({"text": "t", "label": value})


def test_the_head_is_new_and_the_rest_is_not(folder):
    loaded = fitted(["a", "b"]).load(folder)
    assert loaded.new == ("classifier",)
    assert loaded.model.config.id2label == {0: "a", 1: "b"}


@pytest.mark.parametrize("name", ["./no/such/folder", "/nowhere"])
def test_a_missing_model_folder_is_an_error(name):
    with pytest.raises(SettingsError, match="does not exist"):
        fitted(["a", "b"]).load(name)


def test_a_hub_name_that_cannot_be_had_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        SettingsError, match="not in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it; name"
    ):
        fitted(["a", "b"]).load("nobody/nothing")
    with pytest.raises(SettingsError, match="cannot be loaded as a text classifier"):
        fitted(["a", "b"]).load("no name of the hub")


def test_texts_are_cut_to_the_limit_and_counted(folder):
    found = fitted(["a", "b"], max_length=6)
    loaded = found.load(folder)
    examples = found.encode([{"text": "film " * 20, "label": "a"}, {"text": "film", "label": "b"}], loaded.processor)
    assert [(e["length"], e["truncated"], e["label"]) for e in examples] == [(6, True, 0), (3, False, 1)]
    assert found.truncated(examples) == 1


def test_the_models_own_limit_holds_too(folder):
    found = fitted(["a", "b"], max_length=500)
    loaded = found.load(folder)
    (example,) = found.encode([{"text": "film " * 99}], loaded.processor)
    assert example["length"] == 32
    assert loaded.model(**found.collate([example], loaded.processor)).logits.shape == (1, 2)


def test_padding_does_not_change_the_answer(folder):
    found = fitted(["a", "b"])
    loaded = found.load(folder)
    loaded.model.eval()
    rows = reviews(9)
    examples = found.encode([{"text": row["text"]} for row in rows], loaded.processor)
    with torch.no_grad():
        together = loaded.model(**found.collate(examples, loaded.processor)).logits
        alone = torch.cat([loaded.model(**found.collate([e], loaded.processor)).logits for e in examples])
    assert torch.allclose(together, alone, atol=1e-5)


def test_two_texts_are_read_as_a_pair(folder):
    found = fitted(["a", "b"])
    loaded = found.load(folder)
    (example,) = found.encode([{"text": "the film", "text_pair": "a plot"}], loaded.processor)
    assert example["length"] == 7


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])


def test_losses_are_those_of_torch():
    output = SequenceClassifierOutput(logits=LOGITS)
    single = fitted(["a", "b", "c"])
    labels = torch.tensor([0, 2])
    expected = torch.nn.functional.cross_entropy(LOGITS, labels)
    assert single.loss(output, {"labels": labels}) == expected
    multi = fitted([["a"], ["b"], ["c"]])
    wanted = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    assert torch.isclose(
        multi.loss(output, {"labels": wanted}), torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, wanted)
    )
    number = fitted([0.5, 1.5], standardize=False)
    assert torch.isclose(number.loss(output, {"labels": torch.tensor([1.0, 0.1])}), torch.tensor(0.5))


def test_numbers_are_learned_in_units_of_their_spread_and_read_in_their_own():
    output = SequenceClassifierOutput(logits=LOGITS)
    number = fitted([10.5, 11.5])
    labels = torch.tensor([12.0, 10.0])
    assert torch.isclose(number.loss(output, {"labels": labels}), ((LOGITS[:, 0] - (labels - 11) / 0.5) ** 2).mean())
    assert [a["value"] for a in number.read(output, {})] == pytest.approx([12.0, 11.05])


def test_class_weights_focal_factor_and_smoothing_follow_their_formulas():
    output, labels = SequenceClassifierOutput(logits=LOGITS), torch.tensor([0, 2])
    chances = LOGITS.softmax(-1)[torch.arange(2), labels]
    balanced = fitted(["a", "a", "b", "c", "c", "c"], class_weights="balanced")
    assert balanced.class_weights == pytest.approx({"a": 1.0, "b": 2.0, "c": 2 / 3})
    weights = torch.tensor([1.0, 2 / 3])
    assert torch.isclose(balanced.loss(output, {"labels": labels}), (weights * -chances.log()).mean())
    focal = fitted(["a", "b", "c"], focal_gamma=2)
    assert torch.isclose(focal.loss(output, {"labels": labels}), ((1 - chances) ** 2 * -chances.log()).mean())
    smooth = fitted(["a", "b", "c"], label_smoothing=0.3)
    expected = torch.nn.functional.cross_entropy(LOGITS, labels, label_smoothing=0.3)
    assert torch.isclose(smooth.loss(output, {"labels": labels}), expected)


def test_rare_labels_beside_others_weigh_more():
    found = fitted([["a"], ["a"], ["a", "b"], []], class_weights="balanced")
    assert found.class_weights == pytest.approx({"a": 1 / 3, "b": 3.0})
    wanted = torch.tensor([[1.0, 0], [0, 1]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        LOGITS[:, :2], wanted, pos_weight=torch.tensor([1 / 3, 3.0])
    )
    assert torch.isclose(found.loss(SequenceClassifierOutput(logits=LOGITS[:, :2]), {"labels": wanted}), expected)


PARTLY = [{"a": 1, "b": None, "c": 0}, {"a": "0", "b": "1", "c": ""}, {"a": True, "b": 0.0}]


def test_labels_that_are_not_known_count_nowhere():
    found = fitted(PARTLY, class_weights="balanced")
    assert found.class_weights == {"a": 0.5, "b": 1.0, "c": 1.0}
    wanted = torch.tensor([found.target(value) for value in PARTLY[:2]])
    known = ~wanted.isnan()
    output = SequenceClassifierOutput(logits=LOGITS)
    entries = torch.nn.functional.binary_cross_entropy_with_logits(
        LOGITS[known], wanted[known], pos_weight=torch.tensor([0.5, 1, 1]).expand(2, 3)[known], reduction="none"
    )
    assert torch.isclose(found.loss(output, {"labels": wanted}), entries.sum() / 6)
    other = SequenceClassifierOutput(logits=LOGITS.where(known, torch.tensor(77.0)))
    assert found.loss(other, {"labels": wanted}) == found.loss(output, {"labels": wanted})
    scores = found.score([{"labels": ["a", "b"]}, {"labels": ["c"]}, {"labels": []}], [{"label": v} for v in PARTLY])
    assert scores == pytest.approx({"micro_f1": 2 / 4, "macro_f1": (2 / 3 + 0 + 0) / 3, "subset_accuracy": 1 / 3})
    assert found.baseline([{"label": v} for v in PARTLY], [{"label": PARTLY[0]}])[1]["micro_f1"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_several_labels_are_those_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    wanted, given = (torch.rand(20, 3, generator=generator) > 0.6 for _ in range(2))
    chances = torch.rand(20, 3, generator=generator).numpy()
    found = label_scores.multi_label(wanted.double().numpy(), given.numpy())
    for average in ("micro", "macro"):
        expected = metrics.f1_score(wanted, given, average=average, zero_division=0.0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    assert found["subset_accuracy"] == metrics.accuracy_score(wanted, given)
    ranked = label_scores.ranking_of_several(wanted.double().numpy(), chances)
    assert ranked["auc"] == pytest.approx(metrics.roc_auc_score(wanted, chances))
    assert ranked["average_precision"] == pytest.approx(metrics.average_precision_score(wanted, chances))


def test_what_has_no_effect_or_no_class_is_an_error():
    with pytest.raises(SettingsError, match="focal_gamma has no effect on numbers"):
        fitted([0.5, 1.5], focal_gamma=2)
    with pytest.raises(SettingsError, match="class_weights: no class 'bb'"):
        fitted(["a", "b"], class_weights={"bb": 2})


def test_answers_carry_probabilities_that_sum_to_one():
    first, second = fitted(["a", "b", "c"]).read(SequenceClassifierOutput(logits=LOGITS), {})
    assert (first["label"], second["label"]) == ("a", "b")
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["score"] == first["probabilities"]["a"]
    assert fitted([["a"], ["b"], ["c"]]).read(SequenceClassifierOutput(logits=LOGITS), {})[0]["labels"] == ["a", "c"]


def test_metrics_are_those_of_scikit_learn():
    wanted, given = ["a", "b", "b", "c"], ["a", "b", "c", "c"]
    found = fitted(["a", "b", "c"]).score([{"label": g} for g in given], [{"label": w} for w in wanted])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(wanted, given, average="macro"))
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(wanted, given))
    assert found["confusion"]["counts"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert [c["rows"] for c in found["per_class"]] == [1, 2, 1]


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_ranking_and_calibration_of_probabilities_are_those_of_scikit_learn(classes):
    generator = np.random.default_rng(0)
    wanted = list(generator.choice(classes, 60))
    chances = generator.dirichlet([1] * len(classes), 60)
    answers = [
        {"label": classes[row.argmax()], "probabilities": dict(zip(classes, row.tolist(), strict=True))}
        for row in chances
    ]
    found = fitted(list(classes)).score(answers, [{"label": label} for label in wanted])
    given = chances[:, 1] if len(classes) == 2 else chances
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(wanted, given, multi_class="ovr", labels=classes))
    truth = np.array([[label == name for name in classes] for label in wanted])
    asked = [1] if len(classes) == 2 else range(3)
    expected = np.mean([metrics.average_precision_score(truth[:, c], chances[:, c]) for c in asked])
    assert found["average_precision"] == pytest.approx(expected)
    assert found["brier"] == pytest.approx(((truth - chances) ** 2).sum(1).mean())
    assert found["brier"] == pytest.approx(
        metrics.brier_score_loss(wanted, chances, labels=classes, scale_by_half=False)
    )
    gaps, place = 0.0, np.ceil(chances.max(1) * 15)
    for number in range(1, 16):
        own = place == number
        if own.any():
            gap = chances.max(1)[own].mean() - truth[np.arange(60), chances.argmax(1)][own].mean()
            gaps += own.mean() * abs(gap)
    assert found["ece"] == pytest.approx(gaps)


def test_probabilities_of_a_class_without_rows_have_no_rank():
    answers = [{"label": "a", "probabilities": {"a": 0.9, "b": 0.1}}] * 2
    found = fitted(["a", "b"]).score(answers, [{"label": "a"}] * 2)
    assert "auc" not in found and found["ece"] == pytest.approx(0.1)


def test_constant_answers_have_no_correlation_and_raise_no_warning():
    found = fitted([0.5, 1.5]).score([{"value": 1.0}] * 3, [{"label": 1.0}, {"label": 2.0}, {"label": 3.0}])
    assert (found["pearson"], found["mae"]) == (0.0, 1.0)


def test_baselines_never_look_at_the_input():
    train = [{"label": "a"}, {"label": "b"}, {"label": "b"}]
    assert fitted(["a", "b"]).baseline(train, train)[1]["accuracy"] == pytest.approx(2 / 3)
    name, found = fitted([0.5, 1.5]).baseline([{"label": 1.0}, {"label": 2.0}], [{"label": 1.0}, {"label": 2.0}])
    assert (name, found["mse"]) == ("mean", 0.25)
