"""What a task says of one answer: how good, how sure, what was wanted, and what there is to see."""

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure
from PIL import Image

from deltatune.core import registry
from deltatune.report.judged import Judged, least_certain, most_wrong
from deltatune.report.shown import shown

DEFAULTS = {"labels": ["a", "b"]}


def task(kind, **fields):
    return registry.task({"type": kind, **fields})


def one(row, answer, merit=0.0, certainty=None):
    return Judged("/data/rows.csv", 7, row, answer, merit, certainty)


def plotted(found, answer, row):
    axes = Figure().subplots()
    return found.plot(axes, answer, row), axes


def test_classes():
    own = task("text-classification", problem="single", **DEFAULTS)
    assert own.merit({"label": "a"}, {"label": "a"}) == 1 and own.merit({"label": "a"}, {"label": "b"}) == 0
    assert own.certainty({"label": "a", "score": 0.7}) == 0.7 and own.certainty({"label": "a"}) is None
    assert own.wanted({"label": 1.0}) == "1"


def test_several_labels_count_those_that_are_known():
    own = task("text-classification", problem="multi-label", labels=["a", "b", "c"])
    row = {"label": {"a": 1, "b": 0, "c": None}}
    answer = {"labels": ["a", "b"], "probabilities": {"a": 0.9, "b": 0.6, "c": 0.1}}
    assert own.merit(answer, row) == 0.5 and own.certainty(answer) == 0.6 and own.wanted(row) == ["a"]


def test_numbers():
    own = task("text-classification", problem="regression")
    assert own.merit({"value": 2.0}, {"label": "5"}) == -3 and own.certainty({"value": 2.0}) is None
    assert shown(own, one({"text": "t", "label": 5}, {"value": 2.0}, -3.0), 0.0).standing == "error 3.0000"


def test_spans_are_pieces_of_the_text():
    own = task("token-classification", scheme="bio", labels=["O", "B-LOC", "I-LOC", "B-PER", "I-PER"])
    row = {"tokens": ["Ann", "in", "New", "York"], "label": ["B-PER", "O", "B-LOC", "I-LOC"]}
    answer = {"spans": [{"label": "LOC", "words": [2, 4], "score": 0.8}], "tags": []}
    assert own.marked(None, row) == [("Ann", "PER"), (" in ", None), ("New York", "LOC")]
    assert own.marked(answer, row) == [("Ann in ", None), ("New York", "LOC")]
    assert own.merit(answer, row) == pytest.approx(2 / 3) and own.certainty(answer) == 0.8
    assert own.merit({"spans": []}, {"tokens": ["in"], "label": ["O"]}) == 1.0
    found = shown(own, one(row, answer, 2 / 3, 0.8), 1.0)
    assert found.standing == "score 0.67, 80 % sure" and found.asked == {} and found.answered_pieces


def test_boxes_are_drawn_as_answered_and_as_wanted(tmp_path):
    Image.new("RGB", (64, 48), "white").save(tmp_path / "cell.png")
    own = task("object-detection", labels=["cell"], threshold=0.5)
    row = {"path": str(tmp_path / "cell.png"), "boxes": [{"label": "cell", "box": [4, 4, 30, 30]}]}
    answer = {"boxes": [{"label": "cell", "score": s, "box": [4, 4, 30, 30]} for s in (0.9, 0.1)]}
    found = shown(own, one(row, answer), 1.0)
    assert [picture.title for picture in found.pictures] == ["answered", "wanted"]
    assert all(picture.source.startswith("data:image/jpeg;base64,") for picture in found.pictures)
    assert found.asked == {"path": "cell.png"} and found.answered == found.wanted == "1 x cell"
    assert own.merit(answer, row) == pytest.approx(1.0)
    assert own.merit(answer, {**row, "boxes": []}) == 0 and own.merit({"boxes": []}, {**row, "boxes": []}) == 1


def test_boxes_that_are_not_sure_enough_are_not_drawn(tmp_path):
    Image.new("RGB", (64, 48), "white").save(tmp_path / "cell.png")
    own = task("object-detection", labels=["cell"], threshold=0.5)
    row = {"path": str(tmp_path / "cell.png"), "boxes": []}
    drawn = own.draw({"boxes": [{"label": "cell", "score": 0.4, "box": [4, 4, 30, 30]}]}, row)
    assert np.asarray(drawn).min() == 255


def test_images_and_molecules_are_looked_at(tmp_path):
    Image.new("RGB", (900, 30), "red").save(tmp_path / "wide.png")
    own = task("image-classification", problem="single", **DEFAULTS)
    found = shown(own, one({"path": str(tmp_path / "wide.png"), "label": "a"}, {"label": "b"}), 1.0)
    assert [picture.title for picture in found.pictures] == ["input"] and found.answered == "b"
    assert task("molecule-property").picture({"smiles": "CCO"}).size == (300, 300)
    assert task("molecule-property", notation="protein").picture({"smiles": "MKV"}) is None


def test_a_waveform_spans_the_clip(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 5).astype(np.float32), 16000)
    there, axes = plotted(task("speech-recognition"), {"text": "a"}, {"path": str(tmp_path / "a.wav"), "text": "a"})
    assert there and axes.dataLim.x1 == pytest.approx(0.5, abs=0.01) and axes.dataLim.y1 > 0.9


def test_points_are_seen_from_the_front(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    there, axes = plotted(task("point-cloud-classification"), {}, {"path": str(tmp_path / "a.npy")})
    assert there and len(axes.collections[0].get_offsets()) == 50


def test_a_forecast_stands_between_what_was_and_what_came():
    row = {"series": "s", "context": list(range(20)), "future": [20.0, 22.0], "times": [], "clock": "date"}
    answer = {"value": [19.0, 21.0], "quantiles": {"0.1": [18, 19], "0.5": [19, 21], "0.9": [21, 23]}}
    own = task("forecasting", prediction_length=2)
    there, axes = plotted(own, answer, row)
    assert there and own.wanted(row) == [20.0, 22.0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
    assert lines["forecast"] == [19, 21] and lines["what came"] == [20, 22] and lines["before"] == list(range(14, 20))
    assert shown(own, one(row, answer, -1.5), 0.0).plot is not None


def test_what_is_wanted_of_a_history_and_of_a_conversation():
    own = task("recommendation")
    assert own.wanted({"items": ["a", "b"]}) == "b" and own.certainty({"items": [{"item": "c", "score": 1.0}]}) is None
    assert own.merit({"rank": 1}, {}) == 1 and own.merit({"rank": 30}, {}) == 0
    assert own.said({"items": [], "rank": 3}) == "at place 3" and own.said({"rank": None}) == "an unknown item"
    talk = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    assert task("chat").wanted(talk) == "4"
    assert task("chat").said({"nll": 3.5, "tokens": 2}) is None and task("chat").said({"text": "5", "nll": 1}) == "5"


def test_a_translation_is_right_when_it_is_the_same():
    row = {"source": "the dog sleeps", "target": "der Hund schläft"}
    given = ({"translation": text, "finished": True} for text in ("der Hund schläft", "die Katze"))
    right, wrong = (task("translation").merit(answer, row) for answer in given)
    assert right == pytest.approx(1.0) and 0 <= wrong < 0.5


def test_of_an_error_rate_less_is_better():
    own = task("speech-recognition")
    right, wrong = ({"text": text} for text in ("one two", "one"))
    row = {"path": "a.wav", "text": "one two"}
    assert own.merit(right, row) == 0 > own.merit(wrong, row) == -0.5


def test_the_order_of_what_is_looked_at():
    rows = [one({}, {}, merit, sure) for merit, sure in ((1, 0.9), (0, 0.6), (0, 0.9), (0.5, 0.8), (1, 0.4))]
    assert [(r.merit, r.certainty) for r in most_wrong(rows, 1.0)] == [(0, 0.9), (0, 0.6), (0.5, 0.8)]
    assert [r.certainty for r in least_certain(rows)] == [0.4, 0.6, 0.8, 0.9, 0.9]
    assert least_certain([one({}, {}, 0.0, None)]) == []
