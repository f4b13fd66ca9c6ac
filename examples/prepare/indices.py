"""Daily closing prices of the S&P 500 and the NASDAQ Composite, 1999 to 2018, from `arch` 8.0.0 (NCSA licence).

5,031 days each; the package has them from Yahoo Finance. sp500.csv and nasdaq.csv have time, value and series.
"""

import csv
import gzip
from datetime import datetime
from pathlib import Path

from convert.packages import unpacked

NAMES = {"sp500": "S&P 500", "nasdaq": "NASDAQ Composite"}


def make(folder: Path, source: Path | None) -> None:
    """One file per index."""
    if source is not None:
        raise SystemExit("the prices come from a package: leave --from out")
    package = unpacked("arch==8.0.0")
    for name, title in NAMES.items():
        with gzip.open(package / "arch" / "data" / name / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["time", "value", "series"])
            for row in rows:
                day = datetime.strptime(row["Date"], "%m/%d/%Y").date()
                writer.writerow([day.isoformat(), row["Close"], title])
        print(f"{title}: {len(rows)} days")
