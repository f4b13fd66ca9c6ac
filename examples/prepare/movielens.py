"""MovieLens latest-small: 100,836 ratings of films by 610 users, for research use (GroupLens' terms).

Harper and Konstan 2015, "The MovieLens Datasets: History and Context", doi:10.1145/2827872. No package brings it:
`python examples/data.py movielens --from DIR`, where DIR holds ratings.csv of ml-latest-small.zip from grouplens.org.
Whoever uses or passes on the data or what is made from it is bound by the terms in its README.

Two thirds of the users are what the example's model is pretrained on, the others what it is adapted to.
"""

import csv
from pathlib import Path

import numpy as np

COLUMNS = ("user", "item", "rating", "time")
SOURCE = ("userid", "movieid", "rating", "timestamp")
PRETRAINING = 400
SEED = 42


def make(folder: Path, source: Path | None) -> None:
    """`pretraining.csv` and `ratings.csv` with the columns user, item, rating and time, no user in both."""
    file = source / "ratings.csv" if source else None
    if file is None or not file.is_file():
        raise SystemExit("name the folder that holds ratings.csv: python examples/data.py movielens --from DIR")
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        reader.fieldnames = [name.lower() for name in reader.fieldnames or ()]
        rows = [tuple(row[name] for name in SOURCE) for row in reader]
    users = sorted({row[0] for row in rows}, key=int)
    chosen = {users[index] for index in np.random.default_rng(SEED).permutation(len(users))[:PRETRAINING]}
    for name, inside in (("pretraining", True), ("ratings", False)):
        part = [row for row in rows if (row[0] in chosen) == inside]
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS)
            writer.writerows(part)
        print(f"{name}: {len(part)} ratings of {len({row[0] for row in part})} users")
