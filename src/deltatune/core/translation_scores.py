"""Scores of translations: sacreBLEU's BLEU and chrF of a corpus, and the share of exact matches.

Both are sums of counts over the rows, so a row is counted once and drawn again at no cost.
Papers: Papineni et al. 2002 (BLEU); Popovic 2015 (chrF); Post 2018, arXiv:1804.08771 (sacreBLEU).
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np

from deltatune.core.extras import extra

BleuTokenizer = Literal["13a", "intl", "zh", "char", "none"]
"""How sacreBLEU cuts words: 13a is its default; zh or char for scripts without spaces."""
KEPT = 1 << 16
"""Pairs whose counts are kept: more than the rows of most test sets."""


def translation_scores(answers: Sequence[str], wanted: Sequence[str], tokenizer: BleuTokenizer) -> dict[str, Any]:
    """`chrf` and `bleu` (0 to 100), `exact_match` (0 to 1, white space aside), and `signatures` of sacreBLEU.

    >>> found = translation_scores(["the cat sat on a mat"], ["the cat  sat on the mat"], "13a")
    >>> round(found["bleu"], 1), round(found["chrf"], 1), found["exact_match"]
    (53.7, 66.0, 0.0)
    """
    same = [" ".join(answer.split()) == " ".join(text.split()) for answer, text in zip(answers, wanted, strict=True)]
    return {
        "chrf": _corpus("chrf", tokenizer, answers, wanted),
        "bleu": _corpus("bleu", tokenizer, answers, wanted),
        "exact_match": sum(same) / len(same),
        "signatures": signatures(tokenizer),
    }


def signatures(tokenizer: BleuTokenizer) -> dict[str, str]:
    """How sacreBLEU counts, by metric; raises `SettingsError` where it is not installed."""
    return {name: str(_metric(name, tokenizer).get_signature()) for name in ("chrf", "bleu")}


def chrf_of_some(
    answers: Sequence[str], wanted: Sequence[str], tokenizer: BleuTokenizer
) -> Callable[[np.ndarray], float]:
    """`chrf` of the rows with some numbers."""
    counts = np.array(_counted("chrf", tokenizer, answers, wanted))
    return lambda chosen: _scored("chrf", tokenizer, counts[chosen])


def _corpus(name: str, tokenizer: str, answers: Sequence[str], wanted: Sequence[str]) -> float:
    return _scored(name, tokenizer, _counted(name, tokenizer, answers, wanted))


def _counted(name: str, tokenizer: str, answers: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, ...]]:
    return [_counts(name, tokenizer, *pair) for pair in zip(answers, wanted, strict=True)]


def _scored(name: str, tokenizer: str, counts: Any) -> float:
    return float(_metric(name, tokenizer)._compute_score_from_stats(np.sum(counts, 0).tolist()).score)


@lru_cache(KEPT)
def _counts(name: str, tokenizer: str, answer: str, wanted: str) -> tuple[int, ...]:
    """What sacreBLEU counts for one row: n-grams of the answer, of the reference, and those in both."""
    return tuple(_metric(name, tokenizer)._extract_corpus_statistics([answer], [[wanted]])[0])


@cache
def _metric(name: str, tokenizer: str) -> Any:
    """The metric as the command line of sacreBLEU makes it."""
    sacrebleu = extra("sacrebleu.metrics", "text")
    metric = sacrebleu.CHRF() if name == "chrf" else sacrebleu.BLEU(tokenize=tokenizer)
    metric.corpus_score(["a"], [["a"]])  # its signature says how many references there are, once it has seen some
    return metric
