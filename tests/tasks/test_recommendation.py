"""Histories, leave last out, ranks against references, models of several families, and tiny trainings."""

import csv
import json
import random

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.modeling_outputs import CausalLMOutput

import deltatune
from cuts import pieces
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, DeltatuneError, SettingsError
from deltatune.core.histories import histories, last_out, seconds
from deltatune.core.rank_scores import item_knn, popularity, rank_scores
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.data.load import load

ITEMS = [f"film {n}" for n in range(24)]
SIZES = {"vocab_size": len(ITEMS) + 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=2, n_positions=16)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, max_position_embeddings=16)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(**SIZES, hidden_size=32, num_hidden_layers=2, state_size=8, use_mambapy=False)
    ),
}


def words(items=ITEMS):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *items])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp(request.param))


def saved(family, path):
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(path)
    words().save_pretrained(path)
    return str(path)


def circles(users, seed=0):
    """Interactions whose next item is the one behind it in a circle; in no order."""
    chance = random.Random(seed)
    rows = []
    for user in range(users):
        start, length = chance.randrange(24), chance.randint(6, 14)
        rows += [
            {"userId": f"u{user}", "movieId": ITEMS[(start + n) % 24], "timestamp": 1000 + n} for n in range(length)
        ]
    chance.shuffle(rows)
    return rows


def file(path, rows):
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def row(user, item, time, **more):
    return {"user": user, "item": item, "time": time, **more}


# -- interactions


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, 12.0),
        ("964982703", 964982703.0),
        ("2018-09-24", 1537747200.0),
        ("2018-09-24T14:27:30Z", 1537799250.0),
        ("2018-09-24 16:27:30+02:00", 1537799250.0),
        ("yesterday", None),
        ("nan", None),
        (True, None),
        ([1], None),
        (None, None),
    ],
)
def test_times_are_numbers_or_iso_dates(value, expected):
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row(None, "a", 1), "user is missing"),
        (row("", "a", 1), "user is missing"),
        (row("u", " ", 1), "item is missing"),
        (row("u", float("nan"), 1), "item is neither a name nor a number (nan)"),
        (row("u", ["a"], 1), "item is neither a name nor a number (['a'])"),
        (row("u", "a", ""), "time is missing"),
        (row("u", "a", "soon"), "time is neither a number nor a date as in 2018-09-24"),
        (row("u", "a", float("inf")), "time is neither a number nor a date"),
        (row("u", "a", 1, rating="good"), "rating is not a number ('good')"),
        (row("u", "a", 1), "rating is not a number (None)"),
    ],
)
def test_rows_that_cannot_be_used_say_why(given, message):
    assert message in task("recommendation", min_rating=3).check(given)


def test_ratings_count_only_where_they_are_asked_for():
    assert task("recommendation").check(row("u", "a", 1, rating="good")) is None
    given = [row("u", "a", 1, rating="2"), row("u", "b", 2, rating="3.5"), row("u", "c", 3, rating="4")]
    assert histories(given, again=False, min_rating=3.5) == {"u": ["b", "c"]}


def test_histories_are_sorted_by_time_and_ties_keep_the_order_of_the_file(caplog):
    given = [row("u", "c", 3), row("v", "x", 9), row("u", "b", 1), row("u", "a", 1), row("u", "b", 5), row(1.0, "z", 0)]
    assert histories(given, again=False, min_rating=None) == {"u": ["b", "a", "c"], "v": ["x"], "1": ["z"]}
    assert "1 of 6 interactions left out: with an item that the user had before" in caplog.text
    assert histories(given, again=True, min_rating=None)["u"] == ["b", "a", "c", "b"]


def test_numbers_and_dates_in_one_file_are_refused():
    with pytest.raises(DataError, match="time is a number in 1 rows and a date in 1"):
        histories([row("u", "a", 1), row("u", "b", "2018-01-01")], again=False, min_rating=None)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 99).map(str), unique=True, max_size=7)))
def test_the_last_item_is_the_test_and_the_one_before_it_validation(found):
    parts = last_out(found, ["validation", "test"])
    enough = {user: items for user, items in found.items() if len(items) >= 3}
    for name, end in (("validation", -1), ("test", None)):
        assert [(r["user"], r["items"]) for r in parts[name]] == [(u, items[:end]) for u, items in enough.items()]
        assert all(r["known"] == len(r["items"]) - 1 for r in parts[name])
    train = {r["user"]: r["items"] for r in parts["train"]}
    assert all(train[user] == items[:-2] for user, items in enough.items() if len(items) > 3)
    assert {user for user in train if user not in enough} == {u for u, items in found.items() if len(items) == 2}


def test_users_with_too_few_items_are_named(caplog):
    last_out({"ann": ["a", "b", "c"], "bob": ["a"], "eve": ["a", "b"]}, ["validation", "test"])
    assert "2 users with fewer than 3 items are in no part but train: bob, eve" in caplog.text
    task("recommendation").compose([row("bob", "a", 1), row("ann", "a", 1), row("ann", "b", 2)])
    assert "1 users have one item, with none to predict, and are left out: bob" in caplog.text
    with pytest.raises(DataError, match="none of the 1 users has two items"):
        task("recommendation").compose([row("bob", "a", 1)])


# -- files


def test_a_file_is_divided_by_time_within_users_and_rejected_rows_are_named(tmp_path):
    rows = [*circles(30), {"userId": "u0", "movieId": "film 3", "timestamp": "soon"}]
    rows.append(rows[0])
    found = load(DataSettings(train=file(tmp_path / "a.csv", rows)), task("recommendation"), tmp_path)
    assert [(r.line, r.reason.partition(" (")[0]) for r in found.rejected] == [
        (len(rows), "time is neither a number nor a date as in 2018-09-24 or 2018-09-24T14:27:30"),
        (len(rows) + 1, "same input as line 2"),
    ]
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 30, 30)
    assert not found.near
    for train, test in zip(sorted(found.train, key=str), sorted(found.test, key=str)):
        assert train["items"] == test["items"][:-2]
    shuffled = [*circles(30)]
    random.Random(9).shuffle(shuffled)
    again = load(DataSettings(train=file(tmp_path / "b.csv", shuffled)), task("recommendation"), tmp_path)
    by_user = [{r["user"]: r["items"] for r in part.test} for part in (found, again)]
    assert by_user[0] == by_user[1]


def test_whole_users_are_held_out_by_group_and_near_ones_are_listed(tmp_path):
    rows = circles(40)
    rows += [{**r, "userId": "copy"} for r in rows if r["userId"] == "u0"]
    settings = DataSettings(train=file(tmp_path / "a.csv", rows), group_column="userId")
    found = load(settings, task("recommendation"), tmp_path)
    users = [{r["user"] for r in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, users)) == len(set.union(*users)) == 41
    assert all(r["known"] == 1 for part in (found.train, found.test) for r in part)


def test_files_of_other_users_have_their_last_item_ranked(tmp_path):
    names = {name: file(tmp_path / f"{name}.csv", circles(5, seed)) for seed, name in enumerate(("train", "test"))}
    found = load(DataSettings(**names), task("recommendation"), tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (5, 5, 5)
    assert all(r["known"] == len(r["items"]) - 1 for r in found.validation)


# -- ranks


@settings(deadline=None)
@given(st.lists(st.permutations(range(15)), min_size=1, max_size=5), st.integers(1, 15))
def test_rank_scores_are_those_of_scikit_learn(orders, k):
    wanted = np.zeros((len(orders), 15))
    wanted[:, 0] = 1
    scores = np.array(orders, dtype=float)
    ranks = [int((row >= row[0]).sum()) for row in scores]
    found = rank_scores(ranks, k)
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(wanted, scores, k=k))
    assert found["mrr"] == pytest.approx(label_ranking_average_precision_score(wanted, scores))
    assert found[f"hr@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))


def some_histories(seed=0, users=30, items=50):
    chance = np.random.default_rng(seed)
    return [
        {"user": str(n), "items": [f"i{i}" for i in chance.permutation(items)[: chance.integers(2, 30)]], "known": 1}
        for n in range(users)
    ]


@pytest.mark.parametrize("recent", [None, 3])
def test_nearest_items_are_those_of_the_formula(recent):
    rows = some_histories()
    names = sorted({item for r in rows for item in r["items"]})
    had = np.array([[name in r["items"] for name in names] for r in rows], dtype=float)
    together = had.T @ had
    cosine = together / np.sqrt(np.outer(np.diag(together), np.diag(together)))
    np.fill_diagonal(cosine, 0)
    for line in cosine:  # the 20 nearest of every item
        line[np.argsort(-line, kind="stable")[20:]] = 0
    ranker = item_knn(rows, recent)
    for history in some_histories(1):
        *given, wanted = history["items"]
        places = [names.index(item) for item in given]
        expected = cosine[places[-recent:] if recent else places].sum(0)
        assert np.allclose(ranker.scores([ranker.columns[item] for item in given]), expected)
        open_ = [n for n in range(len(names)) if n not in places]
        rank = 1 + sum(expected[n] >= expected[names.index(wanted)] for n in open_ if names[n] != wanted)
        assert ranker.rank(given, wanted, again=False) == rank


def test_popular_items_are_those_of_most_users():
    rows = [{"items": list(items)} for items in ("ab", "ac", "abd")]
    found = popularity(rows)
    assert [found.rank([], item, again=False) for item in "abcd"] == [1, 2, 4, 4]  # ties count against the item
    assert found.rank(["a"], "b", again=False) == 1
    assert found.rank(["a"], "b", again=True) == 2
    assert found.rank(["a"], "z", again=False) is None
    assert item_knn(rows).rank([], "a", again=False) == 4  # nothing to go by


# -- models


def batch_of(found, tokenizer, *given, known=None):
    rows = [{"user": f"u{n}", "items": items, "known": known or len(items) - 1} for n, items in enumerate(given)]
    return found.collate(found.encode(rows, tokenizer), tokenizer)


def answers_of(found, loaded, batch):
    with torch.no_grad():
        output = found.run(loaded.model.eval(), batch)
    return found.read(found.decode(output, loaded.processor), batch)


def test_every_item_is_ranked_but_those_of_the_history(folder):
    found = task("recommendation", top_k=5)
    loaded = found.load(folder)
    history = [ITEMS[n] for n in (3, 7, 1, 20, 5)]
    (answer,) = answers_of(found, loaded, batch_of(found, loaded.processor, history))
    ids = torch.tensor([[loaded.processor.get_vocab()[item] for item in history]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0]
    before, after = ({item: float(line[n + 2]) for n, item in enumerate(ITEMS)} for line in (logits[-2], logits[-1]))
    order = sorted((item for item in ITEMS if item not in history[:-1]), key=lambda item: -before[item])
    assert answer["rank"] == 1 + order.index(history[-1])
    best = sorted((item for item in ITEMS if item not in history), key=lambda item: -after[item])
    assert [entry["item"] for entry in answer["items"]] == best[:5]
    chances = torch.tensor([after[item] for item in best]).softmax(0)[:5]
    assert [entry["score"] for entry in answer["items"]] == pytest.approx(chances.tolist(), abs=1e-5)
    assert answer["user"] == "u0"


def test_a_row_does_not_depend_on_its_neighbours(folder):
    found = task("recommendation", max_length=10)
    loaded = found.load(folder)
    rows = [ITEMS[:3], ITEMS[4:20], ITEMS[9:11], [ITEMS[0], "new", ITEMS[2]]]
    together = answers_of(found, loaded, batch_of(found, loaded.processor, *rows))
    for own, answer in zip(rows, together):
        (alone,) = answers_of(found, loaded, batch_of(found, loaded.processor, own))
        assert alone["rank"] == answer["rank"]
        assert [e["item"] for e in alone["items"]] == [e["item"] for e in answer["items"]]


def test_the_rank_is_the_place_among_the_items_predicted_one_before(folder):
    found = task("recommendation", top_k=24)
    loaded = found.load(folder)
    history = ITEMS[2:9]
    (whole,) = answers_of(found, loaded, batch_of(found, loaded.processor, history))
    asked = batch_of(found, loaded.processor, history[:-1], known=6)
    assert "labels" not in asked
    (before,) = answers_of(found, loaded, asked)
    assert "rank" not in before
    assert before["items"][whole["rank"] - 1]["item"] == history[-1]


def test_a_model_that_has_flown_off_ranks_nothing_in_front(folder):
    """Comparing with NaN says no to everything: the rank would be 0, and NDCG infinite."""
    found = task("recommendation")
    loaded = found.load(folder)
    batch = batch_of(found, loaded.processor, ITEMS[:5])
    output = CausalLMOutput(logits=torch.full((1, 5, 26), torch.nan))
    (answer,) = found.read(found.decode(output, loaded.processor), batch)
    assert answer["rank"] == 26 and answer["items"] == []


def test_items_may_come_again_where_that_is_allowed(tmp_path):
    folder = saved("gpt2", tmp_path)
    found = task("recommendation", top_k=24, again=True)
    loaded = found.load(folder)
    (answer,) = answers_of(found, loaded, batch_of(found, loaded.processor, [ITEMS[0], ITEMS[1], ITEMS[0]]))
    assert {entry["item"] for entry in answer["items"]} == set(ITEMS)
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[2, 3]])).logits[0, -1, 2:]
    assert answer["rank"] == int((logits >= logits[0]).sum())


def test_what_is_no_item_is_never_recommended(tmp_path):
    found = task("recommendation", top_k=100)
    loaded = found.load(saved("gpt2", tmp_path))
    batch = batch_of(found, loaded.processor, ITEMS[:3])
    logits = torch.zeros(1, 3, 26)
    logits[..., :2] = 50.0
    (answer,) = found.read(found.decode(CausalLMOutput(logits=logits), loaded.processor), batch)
    assert {entry["item"] for entry in answer["items"]} == set(ITEMS[3:])
    assert answer["rank"] == 22  # all tied: the last of what is open


def test_unknown_items_are_read_as_one_and_count_as_missed(caplog):
    tokenizer = words()
    found = task("recommendation")
    given = [
        {"user": "a", "items": [ITEMS[0], "new", ITEMS[1]], "known": 1},
        {"user": "b", "items": [ITEMS[0], "new"], "known": 1},
        {"user": "c", "items": ["new", "newer", ITEMS[0]], "known": 2},
        {"user": "d", "items": ["[PAD]", "[UNK]"], "known": 2},
    ]
    examples = found.encode(given, tokenizer)
    assert "6 of 10 interactions are with 4 items that the model does not know" in caplog.text
    assert [found.unusable(example) for example in examples] == [
        None,
        None,
        "user c: the model knows no item of the history",
        "user d: the model knows no item of the history",
    ]
    batch = found.collate(examples[:2], tokenizer)
    assert batch["input_ids"].tolist() == [[2, 1, 3], [2, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [-100, -100, -100]]
    output = found.decode(CausalLMOutput(logits=torch.randn(2, 3, 26)), tokenizer)
    answers = found.read(output, batch)
    assert answers[1]["rank"] is None
    scores = found.score(answers, given[:2])
    assert scores["unknown_items"] == 1 and scores["mrr"] == pytest.approx(0.5 / answers[0]["rank"])


def test_the_loss_is_the_mean_over_the_items_that_are_learned():
    tokenizer = words()
    found = task("recommendation")
    rows = [{"user": "a", "items": ITEMS[:4], "known": 1}, {"user": "b", "items": ITEMS[4:7], "known": 2}]
    batch = found.collate(found.encode(rows, tokenizer), tokenizer)
    assert found.weight(batch) == 4
    logits = torch.randn(2, 4, 26)
    places = [(0, 0, 3), (0, 1, 4), (0, 2, 5), (1, 1, 8)]
    expected = -sum(logits[row, place].log_softmax(0)[word] for row, place, word in places) / 4
    assert torch.isclose(found.loss(CausalLMOutput(logits=logits), batch), expected)


def test_long_histories_are_read_from_the_end_and_learned_in_stretches():
    tokenizer = words()
    found = task("recommendation", max_length=6)
    (example,) = found.encode([{"user": "a", "items": ITEMS[:20], "known": 1}], tokenizer)
    assert found.truncated([example]) == 1
    batch = found.collate([example], tokenizer)
    assert batch["input_ids"].tolist() == [list(range(16, 22))]
    assert batch["labels_had"].shape == (1, 20)  # nothing of it is recommended
    seen = set()
    for step in range(200):
        shown = found.collate([found.augment(example, np.random.default_rng((0, step, 0)))], tokenizer)
        ids = shown["input_ids"][0].tolist()
        assert ids == list(range(ids[0], ids[0] + 6)) and shown["labels"][0, 1:].tolist() == ids[1:]
        assert (shown["labels"][0, 0] == -100) == (ids[0] == 2)
        seen |= set(ids)
    assert seen == set(range(2, 22))
    (short,) = found.encode([{"user": "a", "items": ITEMS[:5], "known": 1}], tokenizer)
    assert found.augment(short, np.random.default_rng(0)) is short


def test_the_model_is_told_items_and_mask_only():
    batch = batch_of(task("recommendation"), words(), ITEMS[:3])
    assert set(inputs_of(batch)) == {"input_ids", "attention_mask"}


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    config = tf.BertConfig(**SMALL, max_position_embeddings=16, is_decoder=False)
    tf.BertLMHeadModel(config).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="sees the items that it shall predict; take a causal one"):
        task("recommendation").load(str(tmp_path))


def test_a_vocabulary_of_texts_is_refused(tmp_path):
    FAMILIES["gpt2"]().save_pretrained(tmp_path)
    pieces().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"has no vocabulary of items \(its tokenizer is WordPiece\)"):
        task("recommendation").load(str(tmp_path))


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    FAMILIES["gpt2"]().save_pretrained(tmp_path)
    words([*ITEMS, "one more"]).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="27 words, the model 26"):
        task("recommendation").load(str(tmp_path))


# -- trainings

SHORT = {"type": "prompt", "num_virtual_tokens": 4}
METHODS = ["lora", "ia3", "adapter", "bitfit", "prefix", SHORT, "full"]


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_trains(method, tmp_path):
    run = deltatune.finetune(
        task={"type": "recommendation", "max_length": 8},
        model=saved("gpt2", tmp_path / "model"),
        data={"train": file(tmp_path / "a.csv", circles(12))},
        method=method,
        training={"max_steps": 2, "per_device_train_batch_size": 4, "bf16": False},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    assert run.results["train"]["steps"] == 2
    if method == "lora":  # the vocabulary of the base is not trained
        assert run.results["trainable_parameters"] == 2 * 8 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert 0 <= run.results["test"]["ndcg@10"] <= 1
    assert run.results["baseline"]["name"] == "most popular"
    assert set(run.results["baselines"]) == {"item k-NN", "item k-NN, last 10 items"}


@pytest.mark.parametrize("method", ["prefix", "p-tuning-v2"])
def test_a_model_without_attention_takes_no_prefix(method, tmp_path):
    with pytest.raises(DeltatuneError, match="attention"):
        deltatune.finetune(
            task="recommendation",
            model=saved("mamba", tmp_path / "model"),
            data={"train": file(tmp_path / "a.csv", circles(12))},
            method=method,
            output_dir=tmp_path / "run",
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_circle_is_learned_scored_and_continued(tmp_path):
    data = file(tmp_path / "a.csv", circles(60))
    run = deltatune.finetune(
        task="recommendation",
        model=saved("llama", tmp_path / "model"),
        data={"train": data},
        method="full",
        training={"num_train_epochs": 30, "learning_rate": 5e-3, "bf16": False, "eval_steps": 30},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    found = run.results
    assert found["test"]["loss"] < 0.8 * found["before"]["loss"]
    assert found["test"]["hr@10"] > found["baseline"]["hr@10"] + 0.2
    scored = deltatune.evaluate(run.folder, data)
    assert scored["ndcg@10"] == pytest.approx(found["test"]["ndcg@10"], abs=1e-6)
    rows = [row("neu", ITEMS[n], f"2020-01-0{n + 1}") for n in range(5)] + [row("x", "unheard", "2020-01-01")]
    answers = deltatune.predict(run.folder, rows=[*rows, row("neu", "film 1", "never")])
    assert answers[0]["user"] == "neu" and len(answers[0]["items"]) == 10
    assert not {entry["item"] for entry in answers[0]["items"]} & set(ITEMS[:5])
    assert answers[1] == {"error": "user x: the model knows no item of the history"}
    assert "time is neither" in answers[2]["error"]
    assert json.loads((run.folder / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
