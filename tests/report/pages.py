"""Pages as tests read them: elements, texts, ids; and a small run to write about."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from deltatune.core import registry
from deltatune.report.record import RunRecord

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """What a page has; raises `AssertionError` where an element is not closed in its place."""

    text: str = ""
    elements: list = field(default_factory=list)
    """Name and attributes of every element."""
    open: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self.text += " " if tag == "small" else ""

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        self.text += "" if tag in ("mark", "strong", "code", "a", "text") else " "

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(html: str) -> Page:
    """The page, which must be well formed and need nothing from elsewhere."""
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    page.text = " ".join(page.text.split())
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "form", "base"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value.startswith(("#", "data:image/")), value
            assert "url(" not in (value or "").replace("url(#", ""), value
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    links = {attributes["href"][1:] for attributes in page.named("a")}
    assert links <= set(ids)
    return page


RIGHT = {"label": "good", "score": 0.9, "probabilities": {"good": 0.9, "bad": 0.1}}
SURE = {"label": "good", "score": 0.99, "probabilities": {"good": 0.99, "bad": 0.01}}
UNSURE = {"label": "bad", "score": 0.51, "probabilities": {"good": 0.49, "bad": 0.51}}


def record(**other) -> RunRecord:
    """A run of text classification, as its files would have it."""
    task = registry.task({"type": "text-classification", "labels": ["good", "bad"], "problem": "single"})
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(["good", "bad", "bad", "good"])]
    given = [RIGHT, SURE, UNSURE, RIGHT]
    test = {**task.score(given, rows), "loss": 0.5, "rows": 4, "interval": [0.3, 0.95]}
    results = {
        "task": task.type, "method": "lora", "base_model": "some/model", "trainable_parameters": 1000,
        "total_parameters": 100_000, "adapter_bytes": 5000, "metric": "accuracy", "data_sha256": "d" * 64,
        "rows": {"train": 12, "validation": 4, "test": 4, "rejected": 2},
        "near_duplicates": {"rows": 1, "first": ["test a.csv:9 ~ train a.csv:2"]},
        "train": {"steps": 8, "seconds": 4.0, "tokens": 99, "peak_memory_bytes": 3_000_000, "best_step": 4,
                  "stopped": "done", "learning_rate": 0.001, "seed": 42, "together": 1},
        "baseline": {"name": "majority class", "accuracy": 0.25}, "baselines": {},
        "before": {"accuracy": 0.25, "interval": [0.05, 0.7], "rows": 4}, "validation": {**test, "accuracy": 0.6},
        "test": test, "truncated": {"train": 3, "validation": 0, "test": 0}, "trunk": {},
        "base": {"sha256_before": "b" * 64, "sha256_after": "b" * 64},
    }  # fmt: skip
    config = {
        "task": {"type": task.type}, "model": "some/model", "data": {"train": "a.csv"},
        "method": {"type": "lora", "r": 4}, "output_dir": "runs/x",
        "training": {"seed": 7, "metric_for_best_model": None},
    }  # fmt: skip
    environment = {
        "python": "3.12", "platform": "Linux", "packages": {"deltatune": "0.1.0", "torch": "2.13.0", "gone": None},
        "cpu_count": 2, "threads": 1, "device": "cpu",
    }  # fmt: skip
    lines = [
        {"step": 4, "loss": 0.7, "learning_rate": 0.001},
        {"step": 4, "validation": {"accuracy": 0.6, "loss": 0.6}},
        {"step": 8, "loss": 0.4, "learning_rate": 0.0},
        {"step": 8, "validation": {"accuracy": 0.5, "loss": 0.7}},
    ]
    rejected = [
        {"file": "a.csv", "line": 3, "reason": "text is empty", "row": {"text": ""}},
        {"file": "a.csv", "line": 5, "reason": "same input as line 2", "row": {"text": "text 1"}},
    ]
    answers = [{"file": "/data/a.csv", "line": n + 2, "answer": answer} for n, answer in enumerate(given)]
    parts = {
        "folder": Path("runs/x y"), "results": results, "config": config, "environment": environment, "lines": lines,
        "rejected": rejected, "answers": answers, "task": task, "rows": rows,
    }  # fmt: skip
    return RunRecord(**{**parts, **other})
