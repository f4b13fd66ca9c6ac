"""Text augmentation: words dropped, moved and replaced as groups of tokens, labels with them."""

from collections import Counter

import numpy as np
import pytest

import deltatune
from cuts import CUTS
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from deltatune.core.text_augmentation import TextAugmentation, augmented, movable
from words import csv_file, model_folder, reviews

TEXT = "anna smith went quietly to oslo"


def example(tokenizer, *texts, synonyms=None, limit=64):
    encoded = tokenizer(*texts)
    rows = [{**encoded, "length": len(encoded["input_ids"])}]
    return movable(tokenizer, rows, [texts], synonyms or {}, limit)[0]


def shown(tokenizer, one):
    return tokenizer.decode(one["input_ids"], skip_special_tokens=True)


def varied(one, draws=40, **settings):
    given = TextAugmentation(**settings)
    return [augmented(one, given, np.random.default_rng(draw)) for draw in range(draws)]


@pytest.fixture(params=CUTS)
def tokenizer(request):
    return CUTS[request.param]()


def words(tokenizer, one):
    """Groups of tokens, in their order."""
    groups = {}
    for token, owner in zip(one["input_ids"], one["owned"], strict=True):
        groups.setdefault(owner, []).append(token)
    groups.pop(-1, None)
    return [tuple(group) for group in groups.values()]


def test_dropping_leaves_whole_words_in_their_order(tokenizer):
    one = example(tokenizer, TEXT)
    whole = words(tokenizer, one)
    lengths = set()
    for other in varied(one, word_dropout=0.4, swap=0):
        inner = other["input_ids"][1:-1]
        assert (other["input_ids"][0], other["input_ids"][-1]) == (one["input_ids"][0], one["input_ids"][-1])
        for word in whole:  # what is left is a subsequence of the words
            if tuple(inner[: len(word)]) == word:
                inner = inner[len(word) :]
        assert inner == []
        assert other["length"] == len(other["input_ids"]) == len(other["attention_mask"])
        lengths.add(other["length"])
    assert len(lengths) > 2


def test_one_word_always_stays(tokenizer):
    assert all(other["length"] > 2 for other in varied(example(tokenizer, "anna went"), word_dropout=0.95, swap=0))


def test_swapping_keeps_every_word(tokenizer):
    one = example(tokenizer, TEXT)
    others = varied(one, word_dropout=0, swap=1)
    assert all(Counter(other["input_ids"]) == Counter(one["input_ids"]) for other in others)
    assert len({tuple(other["input_ids"]) for other in others}) > 5


def test_words_of_a_pair_stay_in_their_text(tokenizer):
    one = example(tokenizer, "anna smith went", "quietly to oslo")
    split = one["input_ids"].index(tokenizer.sep_token_id)
    for other in varied(one, word_dropout=0, swap=1):
        assert Counter(other["input_ids"][:split]) == Counter(one["input_ids"][:split])
        assert other["input_ids"][split] == tokenizer.sep_token_id


def test_the_same_generator_gives_the_same_text(tokenizer):
    one, given = example(tokenizer, TEXT), TextAugmentation(word_dropout=0.3)
    first, second = (augmented(one, given, np.random.default_rng((7, 3, 1))) for _ in range(2))
    assert first == second


def test_a_synonym_is_encoded_as_it_would_be_in_the_text(tokenizer):
    one = example(tokenizer, "anna went to oslo", synonyms={"went": ["quietly"]})
    (other,) = varied(one, draws=1, word_dropout=0, swap=0, synonyms="x", synonym_rate=1)
    assert other["input_ids"] == tokenizer("anna quietly to oslo")["input_ids"]


def test_a_capital_stays_one():
    tokenizer = CUTS["byte level"]()
    one = example(tokenizer, "she Went", synonyms={"went": ["saw near"]})
    (other,) = varied(one, draws=1, word_dropout=0, swap=0, synonyms="x", synonym_rate=1)
    assert shown(tokenizer, other) == "she Saw near"


def test_a_text_grows_no_further_than_the_limit():
    tokenizer = CUTS["byte level"]()
    length = len(tokenizer("anna went")["input_ids"])
    synonyms = {"went": ["incomprehensibilities"]}
    for limit, grows in ((length, False), (length + 30, True)):
        one = example(tokenizer, "anna went", synonyms=synonyms, limit=limit)
        (other,) = varied(one, draws=1, word_dropout=0, swap=0, synonyms="x", synonym_rate=1)
        assert (other["length"] > length) is grows


@pytest.mark.parametrize("name", CUTS)
def test_labels_of_entities_go_along(name, tmp_path):
    (tmp_path / "words.txt").write_text("# ours\nSmith\tweber weber\nwent\tsaw, went near\n")
    row = {"tokens": TEXT.split(), "label": ["B-PER", "I-PER", "O", "O", "O", "B-LOC"]}
    settings = {"word_dropout": 0.3, "swap": 0.8, "synonyms": str(tmp_path / "words.txt"), "synonym_rate": 0.7}
    found = task("token-classification", augmentation=settings).fit([row])
    tokenizer = CUTS[name]()
    (one,) = found.encode([row], tokenizer)
    texts = set()
    for draw in range(40):
        (window,) = found.augment(one, np.random.default_rng(draw))["windows"]
        named = [found.labels[label] for label in window["labels"] if label != -100]
        assert [name for name in named if name != "O"] == ["B-PER", "I-PER", "B-LOC"]
        assert named.index("I-PER") == named.index("B-PER") + 1
        assert len(window["labels"]) == len(window["input_ids"])
        first = window["labels"].index(found.labels.index("B-LOC"))
        assert tokenizer.decode(window["input_ids"][first:]).strip().startswith("oslo"[:1])
        texts.add(tuple(window["input_ids"]))
    assert len(texts) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [("went saw\n", ":1: expected a word, a tab"), ("a\tb\nwent\t ,\n", ":2: expected a word, a tab")],
)
def test_a_file_of_synonyms_is_read_strictly(tmp_path, text, message):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        TextAugmentation(synonyms=str(tmp_path / "words.txt")).read()
    with pytest.raises(DataError, match="no such file"):
        TextAugmentation(synonyms=str(tmp_path / "none.txt")).read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"synonym_rate": 0.5}, "no effect without synonyms"), ({"word_dropout": 0, "swap": 0}, "nothing is varied")],
)
def test_settings_without_effect_are_errors(settings, message):
    with pytest.raises(SettingsError, match=message):
        task("text-classification", augmentation=settings)


def test_text_classification_trains_on_varied_texts_and_scores_plain_ones(tmp_path):
    run = deltatune.finetune(
        task={"type": "text-classification", "augmentation": {}},
        model=str(model_folder(tmp_path / "model")),
        data={"train": str(csv_file(tmp_path / "rows.csv", reviews(120)))},
        method="bitfit",
        training={"max_steps": 12, "learning_rate": 1e-2},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    assert run.results["validation"]["loss"] < run.results["before"]["loss"]
    scored = [deltatune.evaluate(run.folder, str(tmp_path / "rows.csv"))["loss"] for _ in range(2)]
    assert scored[0] == scored[1]
