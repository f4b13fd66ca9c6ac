"""Forgetting in words: every measure, and why one could not be taken."""

from deltatune.report.forgetting import forgetting

STATES = {"off": 0.6281, "on": 0.5725, "merged": 0.5725}
FOUND = {
    "rows": 256,
    "texts": 1200,
    "agreement": {"off": 1.0, "on": 0.174, "merged": None},
    "language": {"kind": "masked", "off": 2.5, "on": 3.25, "merged": 3.25},
    "old": {"task": "token-classification", "metric": "micro_f1", "rows": 338, "rejected": 3, **STATES},
}


def test_every_measure_is_a_sentence():
    assert forgetting({"forgetting": FOUND}) == [
        "What the last block makes of 256 validation rows agrees with the base's to 0.1740 with the adapter on; "
        "1 is the base itself.",
        "The masked loss on 1,200 texts is 2.5000 nats per token before and 3.2500 with the adapter on "
        "(3.2500 when it is merged).",
        "The old task, token classification: micro f1 is 0.6281 before and 0.5725 with the adapter on "
        "(0.5725 when it is merged), on 338 rows of its own (3 could not be used).",
    ]


def test_what_could_not_be_measured_says_why():
    why = {"why": "there are no texts"}
    old = {"task": "chat", "metric": "perplexity", "rows": 5, "rejected": 0, "why": "no such thing"}
    found = forgetting({"forgetting": {**FOUND, "agreement": why, "language": why, "old": old}})
    assert found == [
        "Agreement with the base: there are no texts.",
        "Its loss on general texts: there are no texts.",
        "The old task, chat, on 5 rows of its own: no such thing.",
    ]


def test_a_run_that_did_not_ask_has_none():
    assert forgetting({}) == []
