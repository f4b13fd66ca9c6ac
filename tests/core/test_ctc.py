"""CTC: losses against the sum over all paths, texts against transformers' own tokenizer."""

import itertools
import json

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatune.core.ctc import Alphabet, ctc_losses, frames_needed
from deltatune.core.errors import SettingsError

LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C", "'")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("ctc") / "vocab.json"
    path.write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    return tf.Wav2Vec2CTCTokenizer(str(path))


def collapsed(path, blank):
    return tuple(index for index, _ in itertools.groupby(path) if index != blank)


@pytest.mark.parametrize("labels", [(1,), (1, 2), (2, 2), (1, 2, 1), (1, 1, 2)])
@pytest.mark.parametrize("frames", [3, 4])
def test_the_loss_is_the_sum_over_all_paths(labels, frames):
    logits = torch.randn(1, 5, 3)
    logs = logits[0, :frames].log_softmax(-1)
    paths = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path, 0) == labels]
    found = ctc_losses(logits, torch.tensor([frames]), torch.tensor([[*labels, -100]]), blank=0)
    if not paths:
        assert found.item() == 0
        return
    total = torch.logsumexp(torch.stack([logs[range(frames), list(path)].sum() for path in paths]), 0)
    assert torch.allclose(found, -total[None], atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 2), min_size=1, max_size=5))
def test_frames_needed_are_the_fewest_that_can_say_a_text(labels):
    needed = frames_needed(labels)
    targets = torch.tensor([labels])
    enough = ctc_losses(torch.zeros(1, needed, 3), torch.tensor([needed]), targets, 0)
    assert enough.item() > 0
    if needed > 1:
        assert ctc_losses(torch.zeros(1, needed, 3), torch.tensor([needed - 1]), targets, 0).item() == 0


def test_a_row_does_not_depend_on_frames_and_labels_behind_its_own():
    logits, labels = torch.randn(2, 9, 4), torch.tensor([[1, 2, -100], [3, 3, 1]])
    together = ctc_losses(logits, torch.tensor([6, 9]), labels, 0)
    alone = ctc_losses(logits[:1, :6], torch.tensor([6]), labels[:1, :2], 0)
    assert torch.allclose(together[:1], alone)
    assert ctc_losses(logits.bfloat16(), torch.tensor([6, 9]), labels, 0).dtype == torch.float32


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 0, 4, 5, 6, 7, 8]), max_size=25))
def test_answers_collapse_as_the_tokenizer_collapses_them(tokenizer, frames):
    alphabet = Alphabet.of_tokenizer(tokenizer)
    assert alphabet.collapsed(frames).split() == tokenizer.decode(frames).split()


def test_texts_are_written_as_the_tokenizer_writes_them(tokenizer):
    alphabet = Alphabet.of_tokenizer(tokenizer)
    assert alphabet.ids("cab a'b") == tokenizer("CAB A'B").input_ids
    assert alphabet.unknown("caxb-") == ["x", "-"]
    assert alphabet.blank == 0 and len(alphabet) == len(LETTERS)


def test_special_tokens_are_never_written(tokenizer):
    assert Alphabet.of_tokenizer(tokenizer).collapsed([1, 5, 2, 6, 3, 7]) == "ABC"


def test_a_tokenizer_of_more_than_characters_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "ab": 3}))
    with pytest.raises(SettingsError, match="more than characters .ab."):
        Alphabet.of_tokenizer(tf.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None))
