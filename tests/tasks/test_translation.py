"""Translation: rows, both sides as tokens, losses, generation, scores, languages, tiny trainings on every family."""

import csv
import json
import logging
import random

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.trainer_pt_utils import LabelSmoother

import deltatune
from deltatune.core.config import DataSettings
from deltatune.core.encoder_decoder import DECODER, Written, decoded, write
from deltatune.core.errors import SettingsError
from deltatune.core.languages import set_languages
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.core.translation_scores import translation_scores
from deltatune.data.load import load
from deltatune.evaluate.answer import on_rows
from deltatune.tasks.translation import skeleton

# -- rows that can be learnt: a word for a word, the adjective goes behind

NOUNS = {"house": "haus", "dog": "hund", "tree": "baum", "river": "fluss", "night": "nacht"}
KINDS = {"red": "rot", "old": "alt", "small": "klein", "quiet": "still", "deep": "tief"}
VERBS = {"sees": "sieht", "finds": "findet", "loves": "liebt", "leaves": "verlaesst"}


def rows(count, seed=0):
    """Pairs of sentences; no two are equal."""
    chance = random.Random(seed)
    found = {}
    while len(found) < count:
        first, verb, second = (chance.choice([*words]) for words in (NOUNS, VERBS, NOUNS))
        kind = chance.choice([*KINDS, ""])
        source = " ".join(word for word in (kind, first, verb, second) if word)
        target = " ".join(word for word in (NOUNS[first], KINDS.get(kind), VERBS[verb], NOUNS[second]) if word)
        found[source] = {"source": source, "target": target}
    return list(found.values())


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


# -- models with tokenizers of their kind

SPECIAL = {
    "t5": ["<pad>", "</s>", "<unk>"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>"],
    "marian": ["</s>", "<unk>", "<pad>"],
}
CORPUS = [f"{row['source']} {row['target']}, %s (12)." for row in rows(60)] + ["translate English to German: "] * 3


def tokenizer_of(family):
    """Pieces of sentences, or bytes for BART; what stands around a text is that of the family."""
    names = SPECIAL[family]
    if family == "bart":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=names, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=names, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    around = "<s> $A </s>" if family == "bart" else "$A </s>"
    special = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>") if name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **marks,
        **({"bos_token": "<s>"} if "<s>" in names else {}),
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


LIKE_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "t5": lambda v: tf.T5Config(
        vocab_size=v,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    ),
    "bart": lambda v: tf.BartConfig(
        vocab_size=v, **LIKE_BART, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2
    ),
    "marian": lambda v: tf.MarianConfig(
        vocab_size=v, **LIKE_BART, eos_token_id=0, pad_token_id=2, decoder_start_token_id=2, forced_eos_token_id=0
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    """A random model with its tokenizer."""
    return made(family, tmp_path_factory.mktemp(family))


def made(family, path):
    torch.manual_seed(0)
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(path)
    network = tf.AutoModelForSeq2SeqLM.from_config(FAMILIES[family](len(tokenizer)))
    for name, parameter in network.named_parameters():  # so that answers depend on what is read
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 if family == "t5" or "shared" in name else 1.0)
    if family == "marian":
        network.generation_config.bad_words_ids = [[2]]
    network.save_pretrained(path)
    return str(path)


def loaded(folder, **fields):
    found = task("translation", **fields)
    return found, found.load(folder)


# -- rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": " ", "target": "a"}, "source is empty"),
        ({"source": "a", "target": "\n"}, "target is empty"),
        ({"source": 3, "target": "a"}, "source is not text (int)"),
        ({"source": "a", "target": None}, "target is not text (NoneType)"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row, message):
    assert task("translation").check(row) == message


def test_a_row_to_predict_needs_no_target():
    assert task("translation").check({"source": "a"}) is None
    assert task("translation").asked({"source": "a", "target": "b"}) == {"source": "a"}


def test_rejected_rows_are_named_with_their_line(tmp_path):
    given = [*rows(98), {"source": "again", "target": " "}, {"source": rows(1)[0]["source"].upper(), "target": "x"}]
    file = table(tmp_path / "pairs.csv", given)
    found = load(DataSettings(train=file, max_rejected=0.02), task("translation"), tmp_path)
    reasons = {row.line: row.reason for row in found.rejected}
    assert reasons == {100: "target is empty", 101: "same input as line 2, with another label"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('could not open file "%s"', 'Could not open file "%d"!'),
        ("%.2f of 7 rows in %(name)s", "%lld of 12 rows in %s"),
        ("{} has {count} items", "{0} has {} items"),
        ("%1$s: %2$*3$d MB", "%s: %d mb"),
    ],
)
def test_texts_that_differ_in_what_a_program_fills_in_are_one(one, other):
    assert skeleton(one) == skeleton(other)
    assert skeleton(one) != skeleton(f"{one} again")


def test_percent_signs_in_a_text_are_no_placeholders():
    assert "of" in skeleton("100% of the rows")
    assert skeleton("???") != skeleton("!!!")


def test_a_split_keeps_sources_together_that_differ_in_numbers_and_placeholders():
    given = [{"source": f"page %s of {n}", "target": str(n)} for n in range(10)] + rows(90)
    parts = task("translation").divide(given, {"validation": 0.2, "test": 0.2}, seed=1)
    assert sum(map(len, parts.values())) == 100
    assert sorted(sum(row["source"].startswith("page") for row in part) for part in parts.values()) == [0, 0, 10]


# -- scores

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat.", "Zwei", "北京", "12,5", "%s"]), max_size=9)
TEXTS = WORDS.map(" ".join)


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.sampled_from(["13a", "intl", "zh", "char", "none"])
)
def test_scores_are_those_of_sacrebleu(pairs, tokenizer):
    ours, wanted = [list(texts) for texts in zip(*pairs)]
    found = translation_scores(ours, wanted, tokenizer)
    assert found["bleu"] == pytest.approx(BLEU(tokenize=tokenizer).corpus_score(ours, [wanted]).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(ours, [wanted]).score, abs=1e-9)
    assert found["exact_match"] == sum(a == b for a, b in pairs) / len(pairs)
    assert f"tok:{tokenizer}" in found["signatures"]["bleu"] and found["signatures"]["chrf"].startswith("nrefs:1|")


def test_an_exact_match_is_one_but_for_white_space():
    assert translation_scores(["a  b", "a B"], ["a b\n", "a b"], "13a")["exact_match"] == 0.5


def test_unfinished_answers_are_counted():
    found = task("translation")
    given = [{"translation": "a", "finished": True}, {"translation": "b b b", "finished": False}]
    assert found.score(given, [{"target": "a"}, {"target": "b"}])["unfinished"] == 0.5


def test_baselines_are_the_source_and_the_target_of_the_nearest_training_source():
    found = task("translation")
    train = rows(40)
    name, copied = found.baseline(train, train)
    assert (name, copied["exact_match"]) == ("copy of the source", 0)
    assert found.baseline(train, [{"source": "Linux 6.1", "target": "Linux 6.1"}])[1]["chrf"] == 100
    (scores,) = found.baselines(train, train).values()
    assert scores["exact_match"] == 1
    near = [{"source": f"{row['source']} again", "target": row["target"]} for row in train]
    (scores,) = found.baselines(train, near).values()
    assert scores["exact_match"] > 0.9
    assert list(found.baselines(train, [{"source": "zzz", "target": "q"}]).values())[0]["exact_match"] == 0


def test_without_the_library_of_the_scores_there_is_no_training(monkeypatch):
    from deltatune.core import translation_scores as module

    def missing(*_):
        raise SettingsError("sacrebleu is not installed", hint="pip install 'deltatune[text]'")

    monkeypatch.setattr(module, "extra", missing)
    module._metric.cache_clear()
    with pytest.raises(SettingsError, match=r"deltatune\[text\]"):
        task("translation").fit(rows(3))


# -- both sides as tokens


def test_the_decoder_reads_what_transformers_gives_it(folder):
    found, base = loaded(folder)
    batch = found.collate(found.encode(rows(5), base.processor), base.processor)
    labels = batch["labels"]
    assert (labels == -100).any() and not (batch[DECODER] == -100).any()
    with torch.no_grad():
        theirs = base.model(**{n: batch[n] for n in ("input_ids", "attention_mask")}, labels=labels.clone())
        ours = base.model(**inputs_of(batch))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    assert torch.isclose(found.loss(ours, batch), theirs.loss, atol=1e-5)
    assert found.weight(batch) == int((labels != -100).sum())


def test_targets_end_with_the_end_token_and_come_back_as_texts(folder):
    found, base = loaded(folder)
    given = rows(6)
    examples = found.encode(given, base.processor)
    end = base.tokenizer.eos_token_id
    assert all(example["labels"][-1] == end and example["labels"].count(end) == 1 for example in examples)
    written = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(e["labels"]) for e in examples], True, base.tokenizer.pad_token_id
    )
    texts = decoded(Written(None, written, (True,) * 6), base.processor).texts
    assert list(texts) == [row["target"] for row in given]


def test_what_is_cut_off_is_counted_and_still_ends(folder):
    found, base = loaded(folder, max_source_length=12, max_target_length=5)
    long = {"source": "red house sees dog " * 9, "target": "haus rot sieht hund " * 9}
    short = {"source": "dog", "target": "a"}
    examples = found.encode([long, short, {**short, "source": long["source"]}], base.processor)
    assert [bool(example["truncated"]) for example in examples] == [True, False, True]
    assert found.truncated(examples) == 2
    assert (len(examples[0]["input_ids"]), len(examples[0]["labels"])) == (12, 5)
    assert examples[0]["labels"][-1] == base.tokenizer.eos_token_id
    assert examples[0]["length"] == 17


def test_the_prefix_stands_before_every_source_and_must_leave_room(folder):
    found, base = loaded(folder, prefix="translate English to German: ")
    (example,) = found.encode(rows(1), base.processor)
    text = base.tokenizer.decode(example["input_ids"], skip_special_tokens=True)
    assert text == f"translate English to German: {rows(1)[0]['source']}"
    found, base = loaded(folder, prefix="translate English to German: ", max_source_length=4)
    with pytest.raises(SettingsError, match="before every source takes .* of 4 in all"):
        found.encode(rows(1), base.processor)


def test_targets_the_model_cannot_write_are_counted(folder, family, caplog):
    found, base = loaded(folder)
    with caplog.at_level(logging.WARNING, "deltatune"):
        found.encode([{"source": "dog", "target": "Ω"}, *rows(2)], base.processor)
    assert ("1 of 3 targets hold characters this model has no token for" in caplog.text) is (family != "bart")


def test_rows_without_targets_have_no_labels(folder):
    found, base = loaded(folder)
    batch = found.collate(found.encode([{"source": "dog"}], base.processor), base.processor)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert write(base.model.eval(), batch).logits is None


# -- losses


def test_the_loss_is_the_mean_over_tokens_with_the_smoothing_of_transformers():
    labels = torch.tensor([[4, 1, -100], [2, 3, 1]])
    logits = torch.randn(2, 3, 7)
    output = tf.modeling_outputs.Seq2SeqLMOutput(logits=logits)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.isclose(task("translation").loss(output, {"labels": labels}), plain)
    theirs = LabelSmoother(0.2)({"logits": logits}, labels)
    assert torch.isclose(task("translation", label_smoothing=0.2).loss(output, {"labels": labels}), theirs)


def test_padding_and_neighbours_change_nothing(folder):
    found, base = loaded(folder, max_new_tokens=9)
    base.model.double().eval()
    given = [rows(1)[0], {"source": "old " * 20, "target": "alt " * 15}, *rows(5)[1:]]
    batch = found.collate(found.encode(given, base.processor), base.processor)
    together = found.run(base.model, batch)
    texts = decoded(together, base.processor).texts
    for index, row in enumerate(given):
        alone = found.collate(found.encode([row], base.processor), base.processor)
        output = found.run(base.model, alone)
        size = int((alone["labels"] != -100).sum())
        assert torch.allclose(output.logits[0, :size], together.logits[index, :size], atol=1e-9)
        assert decoded(output, base.processor).texts[0] == texts[index]


# -- generation

NO_BIASES = ("t5", "bitfit")
"""BitFit has nothing to train there, and says so."""


def greedy(network, batch, steps, banned=()):
    """The likeliest token at every step, everything computed anew."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    written = torch.full((len(batch["input_ids"]), 1), network.config.decoder_start_token_id)
    ended = torch.zeros(len(written), dtype=torch.bool)
    for _ in range(steps):
        logits = network(**given, decoder_input_ids=written).logits[:, -1]
        logits[:, list(banned)] = -torch.inf
        token = logits.argmax(-1).masked_fill(ended, network.config.pad_token_id)
        ended |= token == network.config.eos_token_id
        written = torch.cat([written, token[:, None]], 1)
    return written[:, 1:], ended


@pytest.mark.parametrize("method", [None, "lora", "prefix", "prompt", "adapter", "bitfit", "ia3", "p-tuning-v2"])
@torch.no_grad()
def test_generation_is_greedy_decoding_with_the_adapter(folder, family, method):
    found, base = loaded(folder, max_new_tokens=7)
    network = base.model.eval()
    network.generation_config.forced_bos_token_id = None
    batch = found.collate(found.encode(rows(5), base.processor), base.processor)
    before = network(**inputs_of(batch)).logits
    if (family, method) == NO_BIASES:
        method = "layernorm"
    if method:
        disturbed(network, method)
        assert not torch.allclose(network(**inputs_of(batch)).logits, before, atol=1e-3)
    expected, ended = greedy(network, batch, 7, banned=[2] if family == "marian" else ())
    output = write(network, batch)
    size = output.written_BT.shape[1]
    assert output.written_BT.tolist() == expected[:, :size].tolist()
    assert output.finished == tuple(ended.tolist())
    assert (expected[:, size:] == network.config.pad_token_id).all()
    assert torch.allclose(output.logits, network(**inputs_of(batch)).logits, atol=1e-5)


def disturbed(network, method):
    """An adapter that is no identity any more."""
    short = {"num_virtual_tokens": 3} if method in ("prompt", "prefix", "p-tuning-v2") else {}
    adapter = deltatune.attach(network, deltatune.method(method, **short), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return adapter


@pytest.mark.parametrize("method", ["lora", "ia3", "layernorm"])
@torch.no_grad()
def test_a_merged_adapter_writes_the_same(folder, method):
    found, base = loaded(folder, max_new_tokens=7, num_beams=2)
    adapter = disturbed(base.model.eval(), method)
    apart = on_rows(base.model, found, base.processor, rows(5))
    adapter.merge()
    assert on_rows(base.model, found, base.processor, rows(5)) == apart
    adapter.unmerge()
    with adapter.disabled():
        assert on_rows(base.model, found, base.processor, rows(5)) != apart


@torch.no_grad()
def test_settings_of_the_search_are_those_of_transformers(folder, family):
    fields = {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "max_new_tokens": 8}
    found, base = loaded(folder, **fields)
    batch = found.collate(found.encode(rows(5), base.processor), base.processor)
    ours = write(base.model.eval(), batch).written_BT
    theirs = tf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    theirs.generation_config.forced_eos_token_id = None
    first = base.model.generation_config.forced_bos_token_id
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = theirs.generate(**given, **fields, do_sample=False, forced_bos_token_id=first)[:, 1:]
    assert ours.tolist() == expected.tolist()
    plain, _ = loaded(folder, max_new_tokens=8)
    assert write(plain.load(folder).model.eval(), batch).written_BT.tolist() != ours.tolist()


def test_what_the_checkpoint_says_of_lengths_and_beams_does_not_count(family, tmp_path):
    path = made(family, tmp_path)
    own = tf.GenerationConfig.from_pretrained(path)
    own.update(min_length=30, max_length=40, num_beams=4, length_penalty=3.0, no_repeat_ngram_size=3)
    own.save_pretrained(path)
    found, base = loaded(path, max_target_length=6)
    base.model.eval()
    (answer,) = on_rows(base.model, found, base.processor, [{"source": "dog"}])
    assert base.model.generation_config.num_beams == 1
    batch = found.collate(found.encode([{"source": "dog"}], base.processor), base.processor)
    assert write(base.model, batch).written_BT.shape[1] <= 6
    assert set(answer) == {"translation", "finished"}


def test_bart_begins_answers_as_it_learns_targets(tmp_path):
    found, base = loaded(made("bart", tmp_path), max_new_tokens=3)
    batch = found.collate(found.encode(rows(2), base.processor), base.processor)
    assert batch["labels"][:, 0].tolist() == [0, 0]
    assert write(base.model.eval(), batch).written_BT[:, 0].tolist() == [0, 0]


# -- languages

CODES = ["ar_AR", "cs_CZ", "de_DE", "en_XX"]


def pieces_of(*more):
    letters = sorted({letter for text in CORPUS for letter in text if letter != " "} | {"▁"})
    return [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")] + [(x, -3.0) for x in letters] + list(more)


def coded(kind):
    """Tokenizers that mark texts with their language, in the three ways there are."""
    if kind == "mbart":
        codes = tf.models.mbart.tokenization_mbart.FAIRSEQ_LANGUAGE_CODES
        return tf.MBartTokenizer(vocab=pieces_of(*[(code, 0.0) for code in codes], ("<mask>", 0.0)))
    if kind == "mbart50":
        codes = tf.models.mbart50.tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
        return tf.MBart50Tokenizer(vocab=pieces_of(*[(code, 0.0) for code in codes], ("<mask>", 0.0)))
    vocab = {name: index for index, (name, _) in enumerate(pieces_of())}
    return tf.NllbTokenizer(vocab=vocab, merges=[])


LANGUAGES = {"mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE"), "nllb": ("eng_Latn", "deu_Latn")}


def coded_folder(kind, path):
    torch.manual_seed(0)
    tokenizer = coded(kind)
    tokenizer.save_pretrained(path)
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    size = {"vocab_size": len(tokenizer), **LIKE_BART, **special}
    start = {"decoder_start_token_id": 2} if kind != "mbart" else {}
    config = tf.M2M100Config(**size, **start) if kind == "nllb" else tf.MBartConfig(**size, **start)
    network = tf.AutoModelForSeq2SeqLM.from_config(config)
    if kind != "mbart":
        network.generation_config.forced_bos_token_id = 5  # another language: that of the task counts
    network.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_answers_begin_with_the_language_as_targets_do(kind, tmp_path):
    source, target = LANGUAGES[kind]
    path = coded_folder(kind, tmp_path)
    found, base = loaded(path, source_language=source, target_language=target, max_new_tokens=4)
    code = base.tokenizer.convert_tokens_to_ids
    (example,) = found.encode(rows(1), base.processor)
    batch = found.collate([example], base.processor)
    labels = example["labels"]
    begins = base.model.generation_config
    if kind == "mbart":
        assert labels[-2:] == [2, code(target)] and example["input_ids"][-2:] == [2, code(source)]
        assert (begins.decoder_start_token_id, begins.forced_bos_token_id) == (code(target), None)
    else:
        assert (labels[0], labels[-1], example["input_ids"][0]) == (code(target), 2, code(source))
        assert (begins.decoder_start_token_id, begins.forced_bos_token_id) == (2, code(target))
    reads = batch[DECODER][0].tolist()
    assert reads[0] == begins.decoder_start_token_id
    assert reads[1 : len(labels)] == labels[:-1]
    written = write(base.model.eval(), batch).written_BT[0].tolist()
    assert kind == "mbart" or written[0] == code(target)
    text = decoded(Written(None, torch.tensor([labels]), (True,)), base.processor).texts[0]
    assert text == rows(1)[0]["target"]


def test_languages_that_are_missing_or_unknown_are_named(tmp_path):
    path = coded_folder("mbart50", tmp_path)
    with pytest.raises(SettingsError, match="target_language is missing: MBart50Tokenizer knows 52 languages"):
        loaded(path, source_language="en_XX")
    with pytest.raises(SettingsError, match=r"source_language: MBart50Tokenizer does not know 'en'.*en_XX"):
        loaded(path, source_language="en", target_language="de_DE")


def test_languages_have_no_effect_on_models_that_are_told_none(folder):
    with pytest.raises(SettingsError, match="target_language has no effect.*"):
        loaded(folder, target_language="de")
    with pytest.raises(SettingsError, match="source_language has no effect"):
        loaded(folder, source_language="en")


class ManyTargets:
    """What a Marian tokenizer of several targets says of its languages."""

    src_lang = None
    supported_language_codes = (">>deu<<", ">>nld<<")


def test_marian_is_told_the_target_by_a_word_before_the_source():
    assert set_languages(ManyTargets(), None, "deu") == ">>deu<< "
    with pytest.raises(SettingsError, match="does not know 'ger'"):
        set_languages(ManyTargets(), None, "ger")
    with pytest.raises(SettingsError, match="target_language is missing"):
        set_languages(ManyTargets(), None, None)


# -- models and settings that cannot be used


def test_a_model_that_writes_nothing_is_refused(tmp_path):
    tokenizer = tokenizer_of("t5")
    tokenizer.save_pretrained(tmp_path)
    tf.BertModel(
        tf.BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="cannot be loaded as an encoder-decoder"):
        loaded(str(tmp_path))


def test_a_model_without_weights_to_write_with_is_refused(tmp_path):
    tokenizer = tokenizer_of("t5")
    tokenizer.save_pretrained(tmp_path)
    tf.T5EncoderModel(FAMILIES["t5"](len(tokenizer))).save_pretrained(tmp_path)
    config = FAMILIES["t5"](len(tokenizer))
    config.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="no trained encoder-decoder: it has no weights for decoder"):
        loaded(str(tmp_path))


def test_a_model_that_does_not_say_what_answers_begin_with_is_refused(tmp_path):
    path = made("t5", tmp_path)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / name).read_text())
        values.pop("decoder_start_token_id", None)
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(SettingsError, match="does not say what its answers begin with"):
        loaded(path)


def test_a_tokenizer_whose_library_is_missing_is_an_error_of_ours(tmp_path, monkeypatch):
    path = made("t5", tmp_path)

    def missing(*_, **__):
        raise ImportError("\nThe tokenizer requires the SentencePiece library")

    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(SettingsError, match="cannot be loaded as a model for text: The tokenizer requires the Senten"):
        loaded(path)


def test_settings_that_cannot_act_are_refused(folder):
    with pytest.raises(SettingsError, match="length_penalty has no effect without num_beams"):
        task("translation", length_penalty=2.0)
    with pytest.raises(SettingsError, match="max_new_tokens: 100 are more than the 64 tokens"):
        loaded(folder, max_new_tokens=100)


# -- augmentation


def test_only_the_source_behind_the_prefix_is_varied(folder, tmp_path):
    (tmp_path / "words.txt").write_text("river\tstream\ntranslate\tdog\n")
    fields = {"word_dropout": 0.3, "swap": 0.5, "synonyms": str(tmp_path / "words.txt"), "synonym_rate": 0.5}
    found = task("translation", prefix="translate: ", augmentation=fields).fit(rows(5))
    base = found.load(folder)
    examples = found.encode(rows(12), base.processor)
    generator = np.random.default_rng(0)
    changed = [found.augment(example, generator) for example in examples for _ in range(5)]
    texts = {base.tokenizer.decode(example["input_ids"], skip_special_tokens=True) for example in changed}
    assert all(text.startswith("translate:") for text in texts)
    assert any("stream" in text for text in texts)
    assert len(texts) > 24
    for index, example in enumerate(changed):
        assert example["labels"] == examples[index // 5]["labels"]
        assert example["length"] == len(example["input_ids"]) + len(example["labels"])
    found.collate(changed[:4], base.processor)


def test_a_source_of_one_word_keeps_it_behind_a_prefix(folder):
    found, base = loaded(folder, prefix="translate English: ", augmentation={"word_dropout": 0.9, "swap": 0.0})
    (example,) = found.encode([{"source": "river", "target": "fluss"}], base.processor)
    generator = np.random.default_rng(0)
    assert all(found.augment(example, generator)["input_ids"] == example["input_ids"] for _ in range(20))


def test_rows_are_shown_as_they_are_read_and_the_target_counts(folder):
    found, base = loaded(folder, prefix="translate: ")
    (source, no), (target, yes) = found.shown({"source": "river", "target": "fluss"}, base.processor)
    assert (no, yes) == (False, True)
    assert "translate: river" in source and source.endswith("</s>")
    assert "fluss" in target and target.endswith("</s>")


# -- trainings


def train(tmp_path, model, method, steps, **fields):
    """A short run on files."""
    given = rows(150)
    return deltatune.finetune(
        task={"type": "translation", "max_target_length": 24, **fields},
        model=model,
        data={
            "train": table(tmp_path / "train.csv", given[:120]),
            "validation": table(tmp_path / "validation.csv", given[120:130]),
            "test": table(tmp_path / "test.csv", given[130:]),
        },
        method=method,
        training={
            "max_steps": steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "constant",
            "bf16": False,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


def test_every_family_learns_by_lora_and_answers_from_its_folder(tmp_path, folder):
    run = train(tmp_path, folder, {"type": "lora", "r": 8, "target_modules": "all-linear"}, 40)
    assert run.results["validation"]["loss"] < 0.9 * run.results["before"]["loss"]
    assert set(run.results["baselines"]) == {"target of the nearest training source (TF-IDF)"}
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.csv"))
    for name in ("chrf", "bleu", "exact_match", "unfinished", "loss"):
        assert scored[name] == pytest.approx(run.results["test"][name], abs=1e-5)
    low, high = run.results["test"]["interval"]
    assert low <= run.results["test"]["chrf"] <= high
    first, second = deltatune.predict(run.folder, texts=["red house sees dog", " "])
    assert isinstance(first["translation"], str) and isinstance(first["finished"], bool)
    assert second["error"].endswith("source is empty")
    (tmp_path / "new.csv").write_text("source\nred house sees dog\n")
    assert deltatune.predict(run.folder, file=str(tmp_path / "new.csv")) == [first]


def test_the_words_of_a_language_are_kept_with_the_adapter(tmp_path):
    path = coded_folder("mbart50", tmp_path / "model")
    fields = {"source_language": "en_XX", "target_language": "de_DE", "num_beams": 2}
    run = train(tmp_path, path, "bitfit", 2, **fields)
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.csv"))
    assert scored["chrf"] == pytest.approx(run.results["test"]["chrf"])


METHODS = [
    {"type": "lora"},
    {"type": "ia3"},
    {"type": "adapter"},
    {"type": "bitfit"},
    {"type": "prefix", "num_virtual_tokens": 3},
    {"type": "prompt", "num_virtual_tokens": 3},
    {"type": "p-tuning-v2", "num_virtual_tokens": 3},
    {"type": "full"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["type"])
def test_steps_of_every_method_lower_the_loss_on_every_family(folder, family, method):
    found, base = loaded(folder)
    if (family, method["type"]) == NO_BIASES:
        with pytest.raises(SettingsError, match="trains biases and this model has none"):
            deltatune.attach(base.model, deltatune.method(method))
        return
    batch = found.collate(found.encode(rows(8), base.processor), base.processor)
    adapter = deltatune.attach(base.model, deltatune.method(method), seed=0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = found.loss(base.model(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_vocabulary_of_the_base_is_no_head_that_is_trained(tmp_path, folder):
    run = train(tmp_path, folder, "layernorm", 1)
    names = load_file(run.adapter / "adapter_model.safetensors")
    assert names and not any("head" in name or "shared" in name for name in names)
