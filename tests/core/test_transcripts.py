"""Transcripts: error rates against jiwer, and what counts when texts are compared."""

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatune.core.transcripts import normalized, transcript_scores

words = st.lists(st.sampled_from(["a", "bb", "abc", "cab", "b"]), max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=5))
def test_error_rates_are_those_of_jiwer_over_all_rows(pairs):
    texts, answers = map(list, zip(*pairs))
    found = transcript_scores(answers, texts, "simple")
    expected = jiwer.process_words(texts, answers)
    total = sum(len(text.split()) for text in texts)
    assert found["wer"] == pytest.approx(jiwer.wer(texts, answers))
    assert found["cer"] == pytest.approx(jiwer.cer(texts, answers))
    assert found["wer"] == pytest.approx((expected.substitutions + expected.deletions + expected.insertions) / total)
    assert found["wer"] == pytest.approx(found["substitutions"] + found["deletions"] + found["insertions"])
    assert found["exact_match"] == sum(a == b for a, b in pairs) / len(pairs)


def test_case_and_punctuation_are_not_heard_and_an_answer_may_be_far_too_long():
    assert transcript_scores(["SEVEN."], ["seven"], "simple")["wer"] == 0
    assert transcript_scores(["SEVEN."], ["seven"], "none")["wer"] == 1
    found = transcript_scores(["one two three four", ""], ["one", "two"], "simple")
    assert (found["wer"], found["insertions"], found["deletions"]) == (2, 1.5, 0.5)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don't, DON\u2019T, don\u02bct!", "don't don't don't"),
        ("'quoted' 'twas", "quoted twas"),
        ("It costs $3.50, at 10:30; 1,000 times.", "it costs 3.50 at 10:30 1,000 times"),
        ("Ünïcode Straße — ŒUVRE", "ünïcode straße œuvre"),
        ("ﬁne ½", "fine 1 2"),
        ("well-known\tand\nso", "well known and so"),
        ("你好,世界。", "你好 世界"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("... !", ""),
    ],
)
def test_texts_are_compared_without_what_nobody_hears(text, plain):
    assert normalized(text) == plain
    assert normalized(plain) == plain


def test_without_normalization_only_white_space_changes():
    assert normalized(" A,  b.\n", "none") == "A, b."
