"""Chat: rows to answers on small random Llama, GPT-2 and Qwen3, by every kind of method."""

import json
import math

import pytest
import torch
import transformers as tf

import deltatune
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from deltatune.core.task import LABELS, inputs_of
from deltatune.data.load import load
from talk import ALTERNATE, CLOSE, ENDOFTEXT, FAMILIES, METHODS, OTHERWISE, THINKS, adapted, folder, tokenizer

WORDS = ["apples", "plums", "books", "coins", "stamps"]


def sums(count):
    """Questions with an answer in one short line; no two are equal."""
    return [
        {
            "question": f"{a} and {b} {WORDS[a % 5]} in all?",
            "answer": f"{a}+{b}.\n#### {a + b}",
        }
        for a in range(2, 30)
        for b in range(2, 30)
        if (a + b) % 7 == 0
    ][:count]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(path, family="llama", rows=None, cut=None, **fields):
    """A fitted task and a model for it."""
    found = task("chat", **{"max_length": 128, "max_new_tokens": 8, **fields}).fit(rows or sums(4))
    return found, found.load(folder(path, family, **(cut or {})))


# -- rows


def test_a_file_of_any_shape_is_split_and_a_bad_row_has_its_line(tmp_path):
    rows = sums(40)
    rows[7] = {"messages": [{"role": "user", "content": "7?"}, {"role": "assistant", "content": "seven"}]}
    rows[8] = {"instruction": "Say eight.", "input": "", "output": "eight"}
    rows[9] = {"conversations": [{"from": "human", "value": "nine?"}]}
    data = DataSettings(train=lines(tmp_path / "rows.jsonl", rows), max_rejected=0.1)
    found = load(data, task("chat"), tmp_path)
    assert [(r.line, r.reason) for r in found.rejected] == [(10, "the assistant says nothing")]
    assert sum(map(len, found.parts.values())) == 39
    assert found.task.plain is False


def test_questions_that_differ_in_numbers_only_stay_in_one_part():
    rows = [{"question": f"How many are {n} and {n + 1} in all?", "answer": str(2 * n + 1)} for n in range(8)]
    rows += [{"question": f"Say the letter {chr(97 + n % 26) * (1 + n // 26)}.", "answer": "x"} for n in range(60)]
    parts = task("chat").divide(rows, {"validation": 0.2, "test": 0.2}, seed=1)
    assert sorted(sum("How many" in row["question"] for row in part) for part in parts.values()) == [0, 0, 8]
    assert sum(map(len, parts.values())) == len(rows)


def test_only_a_file_of_texts_makes_a_text_to_predict_one_to_continue():
    plain = task("chat").fit([{"text": "once upon a time"}])
    assert plain.asked({"prompt": "once"}) == {"text": "once", "asked": True}
    mixed = task("chat").fit([{"text": "once upon a time"}, *sums(1)])
    assert mixed.asked({"prompt": "once"}) == {"prompt": "once", "asked": True}


def test_rows_with_nothing_to_learn_are_rejected_with_their_line(tmp_path):
    rows = sums(20)
    rows[3] = {"question": "so " * 60 + "what?", "answer": "yes"}
    rows[5] = {"question": "a <|im_end|> b", "answer": "yes"}
    files = {name: lines(tmp_path / f"{name}.jsonl", rows[at]) for name, at in PARTS.items()}
    run = deltatune.finetune(
        task={"type": "chat", "max_length": 64, "max_new_tokens": 4, "generate_rows": 1},
        model=folder(tmp_path / "model", "llama"),
        data={**files, "max_rejected": 0.5},
        method="lora",
        training={"max_steps": 1},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (4, "nothing is left to learn (its answer lies beyond 64 tokens)"),
        (6, "a message holds a control token of the model (message 1: '<|im_end|>')"),
    ]
    assert run.results["rows"]["train"] == 8
    with pytest.raises(DataError, match=r"rejected .*nothing is left to learn"):
        deltatune.finetune(
            task={"type": "chat", "max_length": 64, "max_new_tokens": 4},
            model=str(tmp_path / "model"),
            data=files,
            output_dir=tmp_path / "never",
            quiet=True,
        )
    assert not (tmp_path / "never").exists()


PARTS = {"train": slice(0, 10), "validation": slice(10, 14), "test": slice(14, 20)}


# -- models


def test_models_that_do_not_write_are_refused(tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    tokenizer().save_pretrained(tmp_path / "bert")
    tf.BertLMHeadModel(tf.BertConfig(**sizes, intermediate_size=48, is_decoder=False)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(SettingsError, match=r"sees the tokens that come after a word: it is no causal language model"):
        task("chat").load(str(tmp_path / "bert"))
    tokenizer().save_pretrained(tmp_path / "trunk")
    tf.GPTNeoXModel(tf.GPTNeoXConfig(**sizes, intermediate_size=48)).save_pretrained(tmp_path / "trunk")
    with pytest.raises(SettingsError, match=r"is no trained language model: it has no weights for lm_head"):
        task("chat").load(str(tmp_path / "trunk"))


def test_a_question_must_have_room(tmp_path):
    with pytest.raises(SettingsError, match="256 leave no room for a question in the 256 tokens LlamaForCausalLM has"):
        loaded(tmp_path, max_new_tokens=256)


def test_templates_of_the_settings_are_kept_and_checked(tmp_path):
    with pytest.raises(SettingsError, match=r"chat_template: not allowed, .* it calls range \(line 1\)"):
        task("chat", chat_template="{% for i in range(9) %}x{% endfor %}")
    own = "{% for m in messages %}{{ m.role[0] + '>' + m.content + eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}a>{% endif %}"
    )
    found, given = loaded(tmp_path, chat_template=own)
    assert "".join(text for text, _ in found.shown(sums(1)[0], given.processor)).startswith("u>2 and 5 books")


def test_a_template_that_cannot_be_learned_from_rejects_every_row(tmp_path):
    found, given = loaded(tmp_path, cut={"template": OTHERWISE})
    (example,) = found.encode(sums(1), given.processor)
    assert "the chat template begins an answer otherwise than it asks for it" in found.unusable(example)


# -- examples and batches


def test_some_rows_are_answered_spread_over_all_and_texts_never(tmp_path):
    found, given = loaded(tmp_path, generate_rows=3)
    rows = [*sums(5), {"text": "once upon a time there was"}]
    examples = found.encode(rows, given.processor)
    assert [bool(example.get("writes")) for example in examples] == [True, False, True, False, True, False]
    prompt, ids = examples[0]["prompt"], examples[0]["rows"][0]["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert given.tokenizer.decode(ids[len(prompt) :]) == "2+5.\n#### 7<|im_end|>\n"
    assert not any(
        example.get("writes") for example in loaded(tmp_path, generate_rows=0)[0].encode(rows, given.processor)
    )


def test_cut_conversations_are_counted(tmp_path):
    found, given = loaded(tmp_path, max_length=80)
    rows = [{"question": "why?", "answer": "because " * 40}, *sums(3)]
    assert found.truncated(found.encode(rows, given.processor)) == 1


@pytest.mark.parametrize("pad", [CLOSE, ENDOFTEXT])
def test_the_end_of_an_answer_is_learned_although_it_is_the_padding(tmp_path, pad):
    found, given = loaded(tmp_path, cut={"pad": pad})
    rows = [*sums(2), {"question": "why?", "answer": "because it is so"}]
    batch = found.collate(found.encode(rows, given.processor), given.processor)
    end = given.tokenizer.convert_tokens_to_ids(CLOSE)
    assert (batch[LABELS] == end).sum(1).tolist() == [1, 1, 1]
    assert (batch["input_ids"][:, -1] == given.tokenizer.pad_token_id).any()
    assert found.weight(batch) == sum(
        sum(example["rows"][0]["taught"]) for example in found.encode(rows, given.processor)
    )


def test_the_loss_is_the_mean_over_tokens_and_splits_add_up(tmp_path):
    found, given = loaded(tmp_path)
    examples = found.encode(sums(6), given.processor)

    def loss_of(some):
        batch = found.collate(some, given.processor)
        with torch.no_grad():
            return float(found.loss(found.run(given.model, batch), batch)), found.weight(batch)

    (whole, tokens), (first, some), (second, others) = map(loss_of, (examples, examples[:2], examples[2:]))
    assert tokens == some + others
    assert whole == pytest.approx((first * some + second * others) / tokens, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_neither_loss_nor_gradients(tmp_path, family):
    found, given = loaded(tmp_path, family, packing=True, max_length=200)
    deltatune.attach(given.model, deltatune.method("lora", **METHODS["lora"]), seed=0)
    rows = [*sums(7), {"text": "once upon a time"}]
    examples = found.encode(rows, given.processor)
    packed = found.pack(examples, given.model, given.processor)
    apart = found.model_copy(update={"packing": False}).pack(examples, given.model, given.processor)
    assert len(packed) < len(apart) == 8
    assert max(example["length"] for example in packed) <= 200
    trained = [p for p in given.model.parameters() if p.requires_grad]
    results = []
    for some in (packed, apart):
        batch = found.collate(some, given.processor)
        loss = found.loss(given.model(**inputs_of(batch)), batch)
        results.append((found.weight(batch), loss.detach(), *torch.autograd.grad(loss, trained)))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1:], results[1][1:], atol=1e-5, rtol=1e-3)


def test_answers_cut_apart_by_the_template_are_trained_apart_and_scored_together(tmp_path):
    roles = ["user", "assistant"] * 2
    row = {"messages": [{"role": role, "content": f"{turn} is said"} for role, turn in zip(roles, "abcd", strict=True)]}
    found, given = loaded(tmp_path, cut={"template": THINKS})
    examples = found.encode([row, *sums(1)], given.processor)
    assert [len(example["rows"]) for example in examples] == [2, 1]
    assert len(found.pack(examples, given.model, given.processor)) == 3
    batch = found.collate(examples, given.processor)
    with torch.no_grad():
        answers = found.read(found.decode(found.run(given.model, batch), given.processor), batch)
    assert [answer["tokens"] for answer in answers] == [sum(sum(r["taught"]) for r in e["rows"]) for e in examples]


# -- answers and scores


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_neighbours(tmp_path, family):
    found, given = loaded(tmp_path, family, generate_rows=8)
    rows = [*sums(3), {"question": "What is the answer to this one question?", "answer": "a long one " * 5}]
    examples = found.encode(rows, given.processor)

    def answers(some):
        batch = found.collate(some, given.processor)
        with torch.no_grad():
            return found.read(found.decode(found.run(given.model, batch), given.processor), batch)

    together = answers(examples)
    for example, answer in zip(examples, together, strict=True):
        (alone,) = answers([example])
        assert (alone["text"], alone["finished"], alone["tokens"]) == (
            answer["text"],
            answer["finished"],
            answer["tokens"],
        )
        assert alone["nll"] == pytest.approx(answer["nll"], rel=1e-4)


def test_scores_are_those_of_their_definitions():
    found = task("chat", exact_match="number")
    rows = sums(3)
    answers = [
        {"text": "#### 7", "finished": True, "tokens_written": 5, "nll": 3.0, "tokens": 4, "right": 1},
        {"nll": 5.0, "tokens": 2, "right": 2},
        {"text": "no idea", "finished": False, "tokens_written": 8, "nll": 0.0, "tokens": 2, "right": 2},
    ]
    scores = found.score(answers, rows)
    assert scores["perplexity"] == pytest.approx(math.exp(8 / 8))
    assert scores["token_accuracy"] == 5 / 8
    assert (scores["exact_match"], scores["finished"], scores["generated_rows"]) == (0.5, 0.5, 2)
    assert scores["samples"][0] == {"question": rows[0]["question"], "wanted": rows[0]["answer"], "written": "#### 7"}
    bare = task("chat").score(answers, rows)
    assert "exact_match" not in bare
    assert set(task("chat").score(answers[1:2], rows[1:2])) == {"perplexity", "token_accuracy"}
    flown_off = {"nll": 8000.0, "tokens": 10, "right": 0}
    assert task("chat").score([flown_off], rows[:1])["perplexity"] == math.inf


def test_the_baseline_counts_the_tokens_of_the_training_rows(tmp_path):
    found, given = loaded(tmp_path)
    train, rows = [{"question": "q?", "answer": "aab"}], [{"question": "r?", "answer": "az"}]
    name, scores = found.baseline(train, rows)
    size = len(given.tokenizer)  # a a b <end>: one is added to each count
    expected = [3, 1, 2]  # a, z, <end>
    assert name == "share of every token"
    assert scores["perplexity"] == pytest.approx(math.prod((4 + size) / count for count in expected) ** (1 / 3))
    assert scores["token_accuracy"] == 1 / 3


# -- whole runs


def train(tmp_path, family, method, steps, rows=None, cut=None, training=None, **fields):
    """A short run on files."""
    rows = rows or sums(60)
    return deltatune.finetune(
        task={"type": "chat", "max_length": 96, "max_new_tokens": 8, "generate_rows": 2, **fields},
        model=folder(tmp_path / "model", family, **(cut or {})),
        data={
            "train": lines(tmp_path / "train.jsonl", rows[:-12]),
            "validation": lines(tmp_path / "validation.jsonl", rows[-12:-6]),
            "test": lines(tmp_path / "test.jsonl", rows[-6:]),
            "allow_overlap": True,
        },
        method=method,
        training={
            "max_steps": steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "constant",
            **(training or {}),
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_by_lora_and_answers_from_its_folder(tmp_path, family):
    run = train(tmp_path, family, {"type": "lora", **METHODS["lora"]}, 12, exact_match="number")
    assert json.loads((run.adapter / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    before, after = run.results["before"], run.results["test"]
    assert after["perplexity"] < 0.8 * before["perplexity"]
    assert after["loss"] == pytest.approx(math.log(after["perplexity"]), rel=1e-5)
    assert {"token_accuracy", "exact_match", "finished", "samples"} <= after.keys()
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.jsonl"))
    assert scored["perplexity"] == pytest.approx(after["perplexity"], rel=1e-5)
    assert scored["samples"] == after["samples"]
    first, second, third = deltatune.predict(run.folder, texts=["2 and 5 books in all?", " ", "why? " * 60])
    assert first.keys() == {"text", "finished", "tokens_written"} and first["tokens_written"] <= 8
    assert second["error"].endswith("prompt is empty")
    assert "the question is too long" in third["error"]
    (same,) = deltatune.predict(run.folder, rows=[{"question": "2 and 5 books in all?", "answer": "7"}])
    assert same == first


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_of_every_method_lower_the_loss_on_every_family(tmp_path, family, method):
    found, given = loaded(tmp_path, family)
    deltatune.attach(given.model, deltatune.method(method, **METHODS[method]), seed=0)
    batch = found.collate(found.encode(sums(8), given.processor), given.processor)
    optimizer = torch.optim.AdamW([p for p in given.model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = found.loss(given.model(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_bitfit_says_that_a_model_has_no_biases():
    network = tf.LlamaForCausalLM(
        tf.LlamaConfig(**{**adapted("llama", None).config.to_dict(), "attention_bias": False})
    )
    with pytest.raises(SettingsError, match="BitFit trains biases and this model has none"):
        deltatune.attach(network, deltatune.method("bitfit"))


def test_packed_training_learns_and_says_where_it_cannot(tmp_path):
    run = train(tmp_path, "qwen3", {"type": "lora", **METHODS["lora"]}, 8, packing=True)
    assert run.results["test"]["perplexity"] < run.results["before"]["perplexity"]
    with pytest.raises(SettingsError, match=r"task.packing: .* miss the prompt of the method"):
        train(tmp_path / "other", "qwen3", {"type": "prompt", **METHODS["prompt"]}, 1, packing=True)


def test_texts_are_continued(tmp_path):
    rows = [{"text": f"one {WORDS[n % 5]} and {n} more"} for n in range(40)]
    run = train(tmp_path, "gpt2", {"type": "lora", "r": 4}, 10, rows=rows, cut={"template": None})
    assert run.results["test"]["perplexity"] < run.results["before"]["perplexity"]
    assert "samples" not in run.results["test"]
    (answer,) = deltatune.predict(run.folder, texts=["one apples"])
    network = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    deltatune.load(network, run.adapter)
    cut = tokenizer(None)
    ids = cut("one apples", return_tensors="pt")["input_ids"]
    written = network.eval().generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=4)[0, ids.shape[1] :]
    assert answer["text"] == cut.decode(written, skip_special_tokens=True)


def test_what_it_learns_it_writes(tmp_path):
    rows = [{"question": f"{word} {n}?", "answer": word} for n in range(12) for word in ("red", "blue", "green")]
    run = train(
        tmp_path, "llama", "full", 60, rows=rows, exact_match="line", generate_rows=6, training={"learning_rate": 3e-3}
    )
    assert run.results["test"]["exact_match"] > run.results["before"]["exact_match"]
    assert run.results["test"]["exact_match"] > 0.8
    assert run.results["test"]["finished"] > 0.8
    (answer,) = deltatune.predict(run.folder, texts=["blue 7?"])
    assert (answer["text"], answer["finished"]) == ("blue", True)


def test_conversations_with_roles_that_alternate_and_a_last_answer(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n}."},
                {"role": "user", "content": "again?"},
                {"role": "assistant", "content": f"{n}, {n}."},
            ]
        }
        for n in range(30)
    ]
    run = train(
        tmp_path, "llama", {"type": "ia3"}, 6, rows, {"template": ALTERNATE, "end": "</s>"}, train_on="last-answer"
    )
    assert run.results["test"]["perplexity"] < run.results["before"]["perplexity"]
    (answer,) = deltatune.predict(run.folder, rows=[{"messages": rows[0]["messages"][:4]}])
    assert "error" not in answer


def test_a_teacher_is_learned_from_at_the_positions_that_count(tmp_path):
    run = train(
        tmp_path,
        "llama",
        {"type": "lora", **METHODS["lora"]},
        4,
        training={"distillation": {"teacher": "base", "alpha": 0.5, "hidden": 0.1}},
    )
    assert run.results["train"]["steps"] == 4
