"""wikigold: Wikipedia sentences with persons, places, organisations and others (MISC), split by document.

Balasuriya et al. 2009, "Named Entity Recognition in Wikipedia", CC BY 4.0: one word per line with its IO tag, 145
documents. No package brings it: `python examples/data.py ner --from DIR`, where DIR holds wikigold.conll.

A document is in one part only, and documents that share a sentence of five words or more (case and digits aside) stay
together, so that the test asks for names and phrases in new text. Sentences that repeat word by word are kept once.
"""

from pathlib import Path

from deltatune.core.division import by_group
from deltatune.core.entities import groups_of
from deltatune.data.conll import DOCUMENT, conll

SHARES = {"validation": 0.12, "test": 0.2}
SEED = 42


def make(folder: Path, source: Path | None) -> None:
    """train.conll, validation.conll and test.conll."""
    file = source / "wikigold.conll" if source else None
    if file is None or not file.is_file():
        raise SystemExit("name the folder that holds wikigold.conll: python examples/data.py ner --from DIR")
    rows = list({tuple(record.values["tokens"]): record.values for record in conll(file).records}.values())
    for name, part in by_group(groups_of(rows), SHARES, SEED).items():
        (folder / f"{name}.conll").write_text("".join(_lines([rows[index] for index in part])), encoding="utf-8")
        print(f"{name}: {len(part)} sentences of {len({rows[index]['document'] for index in part})} documents")


def _lines(rows: list[dict[str, object]]) -> list[str]:
    lines: list[str] = []
    document = None
    for row in rows:
        if row["document"] != document:
            lines.append(f"{DOCUMENT} O\n\n")
            document = row["document"]
        lines += [f"{token} {tag}\n" for token, tag in zip(row["tokens"], row["tags"], strict=True)]
        lines.append("\n")
    return lines
