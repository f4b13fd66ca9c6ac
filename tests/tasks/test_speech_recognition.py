"""Speech: rows, both kinds of recognisers against transformers' own, and tiny trainings on every family and method."""

import logging
import shutil

import numpy as np
import pytest
import soundfile
import torch
import transformers as tf

import deltatune
import sounds
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.recogniser import FEATURES, MASK, SAMPLES
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.data.load import load

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # WavLM of transformers 5.23

MAKERS = {
    "whisper": sounds.whisper,
    "moonshine": sounds.moonshine,
    "wav2vec2": lambda folder: sounds.ctc(folder, "wav2vec2"),
    "wav2vec2-large": lambda folder: sounds.ctc(folder, "wav2vec2", norm="layer"),
    "hubert": lambda folder: sounds.ctc(folder, "hubert"),
    "wavlm": lambda folder: sounds.ctc(folder, "wavlm"),
    "unispeech": lambda folder: sounds.ctc(folder, "unispeech"),
}
WRITERS = ("whisper", "moonshine")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random model of every family."""
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Clips of one or two words, 0.2 to 0.7 seconds."""
    return sounds.rows_of(sounds.recordings(tmp_path_factory.mktemp("clips"), 12, words=2))


def fitted(rows, family="wav2vec2", **fields):
    """The task for short clips."""
    short = {"max_new_tokens": 8} if family in WRITERS else {}
    return task("speech-recognition", **{"max_seconds": 1.0, **short, **fields}).fit(rows)


def loaded(found, folder):
    """Model and recogniser."""
    made = found.load(str(folder))
    return made.model.eval(), made.processor


def batch_of(found, rows, processor):
    return found.collate(found.encode(rows, processor), processor)


# -- rows


def test_rows_that_cannot_be_used_say_why(rows, tmp_path):
    found = task("speech-recognition", max_seconds=1.0)
    good = rows[0]["path"]
    assert found.check({"path": good, "text": "low"}) is None
    assert found.check({"path": good}) is None
    assert found.check({"path": good, "text": 7}) == "text is not text (int)"
    assert found.check({"path": good, "text": " "}) == "text is empty"
    assert found.check({"path": good, "text": "?!"}) == "text has no word ('?!')"
    assert found.check({"path": str(tmp_path / "no.wav"), "text": "low"}).startswith("audio is missing")
    assert "no.txt" in found.check({"path": str(tmp_path / "no.txt"), "text": "low"})


def test_a_broken_file_is_rejected_with_its_line_and_a_recording_counts_once(tmp_path):
    path = sounds.recordings(tmp_path, 40)
    clips = tmp_path / "clips"
    shutil.copy(clips / "rows-0.wav", clips / "rows-1.wav")
    (clips / "rows-2.wav").write_bytes((clips / "rows-2.wav").read_bytes()[:500])
    (clips / "rows-3.wav").write_text("no sound")
    found = load(DataSettings(train=path.name, max_rejected=0.1), task("speech-recognition"), tmp_path)
    reasons = {row.line: row.reason for row in found.rejected}
    assert set(reasons) == {3, 4, 5}
    assert reasons[3].startswith("same input as line 2")
    assert reasons[4].startswith("audio is cut off")
    assert reasons[5].startswith("audio cannot be read")


def test_speakers_are_on_one_side_only(tmp_path, caplog):
    found = load(DataSettings(train=sounds.recordings(tmp_path, 80).name), task("speech-recognition"), tmp_path)
    train, validation, test = ({row["speaker"] for row in part} for part in found.parts.values())
    assert train and validation and test
    assert not (train & validation or train & test or validation & test)
    numbered = [{"path": str(n), "text": "low", "speaker": n % 10} for n in range(20)]
    parts = found.task.divide(numbered, {"test": 0.2}, 1)
    assert len(parts["test"]) == 4 and not {row["speaker"] for row in parts["test"]} & {
        row["speaker"] for row in parts["train"]
    }
    two = [{"path": str(n), "text": "low", "speaker": "ann" if n % 2 else "bob"} for n in range(20)]
    assert found.task.divide(two, {"validation": 0.1, "test": 0.1}, 1) is None
    assert "speakers are in training and test" in caplog.text
    assert found.task.divide([{"path": "a", "text": "low"}] * 20, {"test": 0.1}, 1) is None


def test_a_folder_per_word_is_read_as_clips_and_their_texts(tmp_path):
    for number, word in enumerate(sounds.texts(40)):
        (tmp_path / "all" / word).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "all" / word / f"{number}.flac", sounds.tone(word, seed=number), sounds.RATE)
    found = load(DataSettings(train="all"), task("speech-recognition"), tmp_path)
    assert {row["text"] for row in found.train} == set(sounds.TONES)
    assert not found.rejected


def test_the_characters_are_those_of_the_training_texts_as_they_are_compared():
    given = [{"text": "Low, mid!"}, {"text": "top"}]
    assert "".join(task("speech-recognition").fit(given).characters) == " dilmoptw"
    assert "".join(task("speech-recognition", normalization="none").fit(given).characters) == " !,Ldimoptw"
    assert task("speech-recognition", characters=("b", "a")).fit(given).characters == ("b", "a")


# -- scores and baselines


def test_scores_count_answers_without_an_end(rows):
    found = task("speech-recognition")
    answers = [{"text": "Low.", "finished": True}, {"text": "mid mid", "finished": False}]
    scores = found.score(answers, [{"text": "low"}, {"text": "mid"}])
    assert (scores["wer"], scores["exact_match"], scores["unfinished"]) == (0.5, 0.5, 0.5)
    assert "unfinished" not in found.score([{"text": "low"}], [{"text": "low"}])


def test_the_baselines_are_the_most_frequent_text_and_the_nearest_clip(tmp_path):
    train = sounds.rows_of(sounds.recordings(tmp_path, 40, seed=1, name="train.csv"))
    test = sounds.rows_of(sounds.recordings(tmp_path, 20, seed=2, name="test.csv", rate=8000))
    found = task("speech-recognition").fit(train)
    counts = [row["text"] for row in train]
    most = max(sorted(set(counts)), key=counts.count)
    name, scores = found.baseline(train, test)
    assert name == "most frequent text"
    assert scores["exact_match"] == sum(row["text"] == most for row in test) / len(test)
    assert found.baselines(train, test)["nearest training clip"]["wer"] < 0.1
    assert found.baselines([{**row, "text": f"low {n}"} for n, row in enumerate(train)], test) == {}


# -- against transformers' own


@pytest.mark.parametrize("beams", [1, 3])
def test_whisper_reads_and_writes_as_its_own_generate(folders, rows, beams):
    found = fitted(rows, "whisper", num_beams=beams)
    network, processor = loaded(found, folders["whisper"])
    batch = batch_of(found, rows, processor)
    plain = tf.WhisperForConditionalGeneration.from_pretrained(folders["whisper"]).eval()
    extractor = tf.WhisperFeatureExtractor.from_pretrained(folders["whisper"])
    clips = [soundfile.read(row["path"], dtype="float32")[0] for row in rows]
    features = extractor(clips, sampling_rate=sounds.RATE, return_tensors="pt").input_features
    assert torch.equal(batch[FEATURES], features)
    with torch.no_grad():
        said = found.run(network, batch)
        own = plain.generate(features, max_new_tokens=8, num_beams=beams, pad_token_id=0)
    end = plain.generation_config.eos_token_id
    for ids, theirs in zip(said.ids, own.tolist()):
        theirs = theirs[2:] if theirs[0] == plain.generation_config.decoder_start_token_id else theirs
        assert list(ids) == (theirs[: theirs.index(end)] if end in theirs else theirs)[: len(ids)]


def test_moonshine_writes_as_its_own_generate(folders, rows):
    found = fitted(rows, "moonshine")
    network, processor = loaded(found, folders["moonshine"])
    plain = tf.MoonshineForConditionalGeneration.from_pretrained(folders["moonshine"]).eval()
    with torch.no_grad():
        said = found.run(network, batch_of(found, rows, processor))
        for ids, row in zip(said.ids, rows):
            clip = torch.tensor(soundfile.read(row["path"], dtype="float32")[0])[None]
            own = plain.generate(clip, max_new_tokens=8, pad_token_id=0)[0, 1:].tolist()
            end = plain.generation_config.eos_token_id
            assert list(ids) == (own[: own.index(end)] if end in own else own)


@pytest.mark.parametrize("family", WRITERS)
def test_the_loss_of_writers_is_cross_entropy_over_text_and_end(folders, rows, family):
    found = fitted(rows, family)
    network, processor = loaded(found, folders[family])
    batch = batch_of(found, rows, processor)
    losses = []
    with torch.no_grad():
        loss = found.loss(found.run(network, batch), batch)
        for row in rows:
            front = " " if family == "whisper" else ""
            ids = [*processor.tokenizer(front + row["text"], add_special_tokens=False).input_ids, processor.end]
            reads = torch.tensor([[*processor.prompt, *ids[:-1]]])
            one = batch_of(found, [row], processor)
            heard = {name: one[name] for name in (FEATURES, SAMPLES, MASK) if name in one}
            logits = network(**heard, decoder_input_ids=reads).logits[0, -len(ids) :]
            losses += torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none").tolist()
    assert found.weight(batch) == len(losses)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("family", [name for name in MAKERS if name not in WRITERS])
def test_spellers_hear_and_learn_as_transformers_alone(folders, rows, family):
    found = fitted(rows, ctc_mean="row")
    network, processor = loaded(found, folders[family])
    plain = tf.AutoModelForCTC.from_pretrained(folders[family], ctc_loss_reduction="sum").eval()
    extractor = tf.AutoFeatureExtractor.from_pretrained(folders[family])
    tokenizer = tf.AutoTokenizer.from_pretrained(folders[family])
    batch = batch_of(found, rows, processor)
    total = 0.0
    with torch.no_grad():
        said = found.run(network, batch)
        for ids, row in zip(said.ids, rows):
            clip = soundfile.read(row["path"], dtype="float32")[0]
            given = extractor(clip, sampling_rate=sounds.RATE, return_tensors="pt").input_values
            output = plain(given, labels=torch.tensor([tokenizer(row["text"].upper()).input_ids]))
            total += output.loss.item()
            assert list(ids) == output.logits.argmax(-1)[0].tolist()
    assert found.loss(said, batch).item() == pytest.approx(total / len(rows), rel=1e-4)


# -- padding, windows, limits


@pytest.mark.parametrize("family", MAKERS)
def test_a_clip_is_heard_the_same_alone_and_among_longer_ones(folders, rows, family):
    found = fitted(rows, family)
    network, processor = loaded(found, folders[family])
    batch = batch_of(found, rows, processor)
    with torch.no_grad():
        together = found.run(network, batch)
        for index, row in enumerate(rows):
            one = batch_of(found, [row], processor)
            alone = found.run(network, one)
            count = alone.logits.shape[1]
            assert torch.allclose(alone.logits[0], together.logits[index, :count], atol=1e-5)
            assert alone.ids[0] == together.ids[index]


@pytest.mark.parametrize("family", ["wav2vec2", "moonshine"])
def test_checkpointing_gives_the_same_gradients_of_a_padded_batch(folders, rows, family):
    found = fitted(rows, family)
    gradients = []
    for checkpointed in (False, True):
        network, processor = loaded(found, folders[family])
        network.train()  # without dropout, as the fixtures are
        if checkpointed:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        batch = batch_of(found, rows, processor)
        found.loss(network(**inputs_of(batch)), batch).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_window_cut_to_the_clips_keeps_the_first_positions(folders, rows):
    whole = tf.WhisperForConditionalGeneration.from_pretrained(folders["whisper"])
    network, processor = loaded(fitted(rows, "whisper", max_seconds=0.77), folders["whisper"])
    positions = network.get_encoder().embed_positions
    assert torch.equal(positions.weight, whole.get_encoder().embed_positions.weight[:39])
    assert not positions.weight.requires_grad and network.config.max_source_positions == 39
    assert processor.longest == 39 * 320
    network, processor = loaded(fitted(rows, "whisper", max_seconds=30), folders["whisper"])
    assert network.config.max_source_positions == 50
    assert processor.unusable(16000, None) is None
    assert processor.unusable(16001, None).startswith("audio is too long for this model (16001 samples, 16000")


def test_texts_that_do_not_fit_are_rejected_with_their_reason(folders, rows):
    whisper = fitted(rows, "whisper")
    _, processor = loaded(whisper, folders["whisper"])
    (example,) = whisper.encode([{**rows[0], "text": "x" * 39}], processor)
    assert whisper.unusable(example) == "text is too long for this model (41 tokens, 39 are the most)"
    (example,) = whisper.encode([{**rows[0], "text": "x" * 37}], processor)
    assert whisper.unusable(example) is None
    spelling = fitted(rows)
    network, processor = loaded(spelling, folders["wav2vec2"])
    frames = int(network._get_feat_extract_output_lengths(torch.tensor(1600)))
    assert processor.unusable(1600, [5] * (frames // 2)) is None
    assert processor.unusable(1600, [5] * frames) == (
        f"text is too long for its audio ({2 * frames - 1} frames needed, {frames} there)"
    )
    assert processor.unusable(20, None).startswith("audio is too short for this model")
    (example,) = spelling.encode([{**rows[0], "text": "7"}], processor)
    assert spelling.unusable(example) == "text has no character that this model can write"


def test_characters_a_model_cannot_write_are_named(folders, rows, caplog):
    found = fitted(rows)
    _, processor = loaded(found, folders["wav2vec2"])
    with caplog.at_level(logging.WARNING):
        found.encode([{**rows[0], "text": "low 7 é é"}], processor)
    assert "3 characters are not in the model's alphabet, left out: 'é' (2 times), '7' (1 times)" in caplog.text


# -- loading


def test_a_whisper_of_many_languages_is_told_which(tmp_path, rows):
    folder = sounds.whisper(tmp_path / "many", multilingual=True)
    words = tf.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens
    _, processor = loaded(fitted(rows, "whisper", language="de"), folder)
    assert words(processor.prompt) == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    _, processor = loaded(fitted(rows, "whisper", language="de", translate=True), folder)
    assert words(processor.prompt)[2] == "<|translate|>"
    with pytest.raises(SettingsError, match="knows many languages: name the one that is spoken"):
        fitted(rows, "whisper").load(str(folder))
    with pytest.raises(SettingsError, match="task.language: dee"):
        fitted(rows, "whisper", language="dee").load(str(folder))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("whisper", {"language": "en"}, "no effect on a Whisper for English only"),
        ("whisper", {"ctc_mean": "row"}, "task.ctc_mean has no effect on a model of kind whisper"),
        ("moonshine", {"translate": True}, "no effect on Moonshine"),
        ("moonshine", {"vocabulary": "texts"}, "task.vocabulary has no effect on a model of kind moonshine"),
        ("hubert", {"num_beams": 2}, "task.num_beams has no effect on a model of kind hubert"),
        ("wavlm", {"language": "de"}, "task.language has no effect on a model of kind wavlm"),
        ("hubert", {"max_new_tokens": 9}, "task.max_new_tokens has no effect"),
    ],
)
def test_settings_without_effect_are_errors(folders, rows, family, fields, message):
    with pytest.raises(SettingsError, match=message):
        fitted(rows, **fields).load(str(folders[family]))


def test_models_that_are_no_recognisers_are_refused(tmp_path, rows):
    tf.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(SettingsError, match=r"of kind bert.*whisper, moonshine, wav2vec2"):
        fitted(rows).load(str(tmp_path / "bert"))
    encoder = tf.WhisperModel.from_pretrained(sounds.whisper(tmp_path / "whisper"))
    del encoder.decoder
    encoder.save_pretrained(tmp_path / "half")
    for file in (tmp_path / "whisper").glob("*token*"):
        shutil.copy(file, tmp_path / "half")
    with pytest.raises(SettingsError, match="no weights for model.decoder"):
        fitted(rows, "whisper").load(str(tmp_path / "half"))


def test_a_new_head_has_an_output_per_character_and_starts_anew(tmp_path, folders, rows):
    found = fitted(rows)
    made = found.load(str(sounds.ctc(tmp_path / "body", head=False)))
    assert made.new == ("lm_head",)
    assert made.model.lm_head.out_features == len(found.characters) + 1
    assert made.processor.alphabet.blank == 0
    kept = found.load(str(folders["wav2vec2"]))
    assert kept.new == () and kept.model.lm_head.out_features == len(sounds.LETTERS)
    replaced = fitted(rows, vocabulary="texts", characters=(*"abcdefghijklmnopqrstuvwxyz", *"01234")).load(
        str(folders["wav2vec2"])
    )
    assert replaced.new == ("lm_head",)  # of the same size by chance
    assert not torch.equal(replaced.model.lm_head.weight, kept.model.lm_head.weight)


@pytest.mark.parametrize("family", ["whisper", "moonshine", "hubert"])
def test_half_precision_is_heard_and_scored(folders, rows, family):
    found = fitted(rows, family)
    made = found.load(str(folders[family]), torch.bfloat16)
    batch = batch_of(found, rows, made.processor)
    assert {batch[name].dtype for name in (FEATURES, SAMPLES) if name in batch} == {torch.bfloat16}
    with torch.no_grad():
        said = found.run(made.model.eval(), batch)
        loss = found.loss(said, batch)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


# -- augmentation


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_training_clips_are_varied_and_the_others_are_not(folders, rows, family):
    found = fitted(rows, family, augmentation={})
    _, processor = loaded(found, folders[family])
    examples = found.encode(rows, processor)
    name = FEATURES if family == "whisper" else SAMPLES
    plain = found.collate(examples, processor)[name]

    def shown(step):
        made = [found.augment(e, np.random.default_rng((1, step, i))) for i, e in enumerate(examples)]
        return found.collate(made, processor)[name]

    assert torch.equal(shown(1), shown(1))
    assert shown(1).shape != shown(2).shape or not torch.equal(shown(1), shown(2))
    assert torch.equal(found.collate(examples, processor)[name], plain)
    off = fitted(rows, family)
    assert off.augmentation is None and off.augment(examples[0], np.random.default_rng(0)) is examples[0]


def test_a_clip_is_not_played_faster_than_its_text_can_be_said(folders, rows):
    found = fitted(rows, augmentation={"speed": 0.5, "noise": None, "time_masks": 0, "frequency_masks": 0})
    network, processor = loaded(found, folders["wav2vec2"])
    (example,) = found.encode(rows[:1], processor)
    samples = len(processor.clips[example["path"]])
    example["labels"] = [5] * ((int(processor.frames(torch.tensor(samples))) + 1) // 2)
    for step in range(40):
        batch = found.collate([found.augment(example, np.random.default_rng(step))], processor)
        assert batch[SAMPLES].shape[1] >= 0.95 * samples
        assert found.loss(network(**inputs_of(batch)), batch) > 0


# -- methods


METHODS = {
    "lora": {"target_modules": "all-linear"},
    "ia3": {},
    "adapter": {},
    "bitfit": {},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
    "full": {},
}
NO_PLACE = {
    **{(name, "prompt"): "no embedded tokens that virtual tokens" for name in MAKERS if name not in WRITERS},
    ("wavlm", "prefix"): "does not take keys and values from outside",
}
"""Models that have no site for a method, and what they are refused with."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["whisper", "moonshine", "wav2vec2", "wav2vec2-large", "hubert", "wavlm"])
def test_a_few_steps_lower_the_loss_and_what_is_written_is_what_the_logits_say(folders, rows, family, method):
    found = fitted(rows, family)
    network, processor = loaded(found, folders[family])
    chosen = deltatune.method(method, **METHODS[method])
    if (family, method) in NO_PLACE:
        with pytest.raises(SettingsError, match=NO_PLACE[family, method]):
            deltatune.attach(network, chosen)
        return
    handle = deltatune.attach(network, chosen, seed=0)
    batch = batch_of(found, rows, processor)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = found.loss(network(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        said = found.run(network, batch)
        assert said.logits is not None
        assert torch.allclose(said.logits, network(**inputs_of(batch)).logits, atol=1e-5)
        if family in WRITERS:
            _agrees(found, network, processor, rows[0])
        if chosen.can.merge:
            handle.merge()
            merged = found.run(network, batch)
            assert merged.ids == said.ids
            assert torch.allclose(merged.logits, said.logits, atol=1e-4)


def _agrees(found, network, processor, row):
    """Token by token with a cache, the same as all at once without one."""
    one = batch_of(found, [row], processor)
    (ids,) = found.run(network, one).ids
    heard = {name: one[name] for name in (FEATURES, SAMPLES, MASK) if name in one}
    reads = torch.tensor([[*processor.prompt, *ids]])
    logits = network(**heard, decoder_input_ids=reads).logits[0, len(processor.prompt) - 1 :]
    logits[:, network.generation_config.suppress_tokens or []] = -torch.inf
    logits[0, network.generation_config.begin_suppress_tokens or []] = -torch.inf
    best = logits.argmax(-1).tolist()
    assert best[: len(ids)] == list(ids)
    assert len(ids) == 8 or best[len(ids)] == processor.end


# -- whole trainings


def train(tmp_path, model, steps, method="lora", rate=1e-2, distillation=None, **fields):
    """A short run on tones."""
    return deltatune.finetune(
        task={"type": "speech-recognition", "max_seconds": 1.0, **fields},
        model=str(model),
        data={
            "train": str(sounds.recordings(tmp_path, 48, seed=1, name="train.csv")),
            "validation": str(sounds.recordings(tmp_path, 8, seed=2, name="validation.csv")),
            "test": str(sounds.recordings(tmp_path, 8, seed=3, name="test.csv")),
        },
        method={"type": method, **METHODS[method]},
        training={
            "max_steps": steps,
            "learning_rate": rate,
            "per_device_train_batch_size": 8,
            "eval_steps": steps,
            "bf16": False,
            "distillation": distillation,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


@pytest.mark.parametrize("family", ["whisper", "moonshine", "wav2vec2"])
def test_a_run_learns_and_answers_from_its_folder(tmp_path, folders, family):
    model = sounds.ctc(tmp_path / "body", head=False) if family == "wav2vec2" else folders[family]
    fields = {"augmentation": {}} if family == "wav2vec2" else {"max_new_tokens": 6}
    run = train(tmp_path, model, 16, **fields)
    assert run.results["test"]["loss"] < run.results["before"]["loss"]
    assert run.results["metric"] == "wer" and "nearest training clip" in run.results["baselines"]
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.csv"))
    assert scored["loss"] == pytest.approx(run.results["test"]["loss"], rel=1e-5)
    assert scored["wer"] == run.results["test"]["wer"]
    clip = str(tmp_path / "clips" / "test-0.wav")
    (answer,) = deltatune.predict(run.folder, file=clip)
    assert answer == deltatune.predict(run.folder, texts=[clip])[0]
    assert isinstance(answer["text"], str)
    (tmp_path / "clips" / "bad.wav").write_text("no sound")
    good, bad = deltatune.predict(run.folder, rows=[{"path": clip}, {"path": str(tmp_path / "clips" / "bad.wav")}])
    assert good == answer and "audio cannot be read" in bad["error"]


def test_a_small_whisper_trained_whole_writes_the_words_of_new_clips(tmp_path, folders):
    run = train(tmp_path, folders["whisper"], 110, "full", 5e-3, max_new_tokens=6)
    assert run.results["test"]["wer"] < 0.3
    assert run.results["before"]["wer"] > 0.9


def test_frames_are_what_a_teacher_of_a_ctc_model_is_compared_on(tmp_path, folders):
    distillation = {"teacher": "base", "alpha": 0.5}
    run = train(tmp_path, folders["hubert"], 3, distillation=distillation)
    assert run.results["train"]["steps"] == 3
    found = fitted(sounds.rows_of(tmp_path / "test.csv"))
    _, processor = loaded(found, folders["hubert"])
    batch = batch_of(found, sounds.rows_of(tmp_path / "test.csv"), processor)
    assert torch.equal((batch["labels"] == 0).sum(1), batch["labels_frames"])
    assert found.weight(batch) == sum(len(row["text"]) for row in sounds.rows_of(tmp_path / "test.csv"))


def test_too_many_unusable_texts_stop_a_run(tmp_path, folders):
    with pytest.raises(DataError, match="text is too long for this model"):
        path = sounds.recordings(tmp_path, 30)
        lines = path.read_text().replace(",low,", f",{'low ' * 20},")
        path.write_text(lines)
        deltatune.finetune(
            task={"type": "speech-recognition", "max_seconds": 1.0},
            model=str(folders["whisper"]),
            data={"train": str(path)},
            output_dir=tmp_path / "run",
            quiet=True,
        )
