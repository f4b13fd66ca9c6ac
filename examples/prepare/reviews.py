"""10,605 film-review sentences with human ratings (Hutto and Gilbert 2014, MIT), from `vaderSentiment` 3.3.2.

The sign of the rating is the label; the 37 ratings of zero have none and are left out.
"""

import csv
import tarfile
from pathlib import Path

from convert.packages import unpacked

SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def make(folder: Path, source: Path | None) -> None:
    """`reviews.csv` with the columns text and label."""
    if source is not None:
        raise SystemExit("reviews come from a package: leave --from out")
    package = unpacked("vaderSentiment==3.3.2", "--no-binary=:all:", "--no-build-isolation", sha256=SHA256)
    with tarfile.open(package / INNER) as archive:
        ratings = archive.extractfile(RATINGS)
        assert ratings is not None
        text = ratings.read().decode("utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [review.strip(), "positive" if float(rating) > 0 else "negative"]
            for _, rating, review in rows
            if float(rating) != 0
        )
