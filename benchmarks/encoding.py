"""What turning texts into token ids costs at the start of every run: whether keeping them would be worth it.

    OMP_NUM_THREADS=1 python benchmarks/encoding.py MODEL FILE COLUMN [--rows 10000] [--rounds 5]

CPU time of one process, one thread: the rows read and checked, the texts encoded. The least and the median are shown.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from deltatune.core import tokens
from deltatune.data.read import read


def main() -> None:
    """Prints the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "file", "column"):
        options.add_argument(name)
    options.add_argument("--rows", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    tokenizer = tokens.tokenizer_of(given.model)
    reading, encoding = [], []
    for _ in range(given.rounds):
        start = time.process_time()
        table = read(given.file, Path.cwd())
        reading.append(time.process_time() - start)
        texts = [str(record.values[given.column]) for record in table.records[: given.rows]]
        start = time.process_time()
        tokens.encode(tokenizer, texts, [None] * len(texts), 256)
        encoding.append(time.process_time() - start)
    letters = sum(map(len, texts)) / len(texts)
    print(f"{len(texts)} texts of {letters:.0f} characters, {given.rounds} rounds: least and median in seconds")
    for name, found in (("reading the file", reading), ("encoding", encoding)):
        print(f"{name:18} {min(found):.2f} {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
