"""PostgreSQL: messages of a database server in English and German, 5,601 pairs, split by the shape of the message.

The message catalogue of PostgreSQL 15 (PostgreSQL licence), translated by its German team. No package brings it:
`python examples/data.py translation --from DIR`, where DIR holds CSV files with the columns source and target.

Messages that differ only in case, numbers, placeholders and punctuation are in one part. A source is kept once.
"""

import csv
from pathlib import Path

from deltatune.core.registry import task

SHARES = {"validation": 0.006, "test": 0.015}  # a model writes slowly on a processor
SEED = 42


def make(folder: Path, source: Path | None) -> None:
    """train.csv, validation.csv and test.csv."""
    files = sorted(source.glob("*.csv")) if source else []
    if not files:
        raise SystemExit("name the folder with the pairs: python examples/data.py translation --from DIR")
    rows = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                rows.setdefault(" ".join(row["source"].split()).casefold(), row)
    parts = task("translation").divide(list(rows.values()), SHARES, SEED)
    assert parts is not None
    for name, part in parts.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["source", "target"])
            writer.writeheader()
            writer.writerows(part)
        print(f"{name}: {len(part)} pairs")
