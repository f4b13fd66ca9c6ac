"""GSM8K: school mathematics in words, with worked answers that end in `#### number`.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", MIT: 7,473 questions to learn from and 1,319 of the
test. No package brings it: `python examples/data.py chat --from DIR`, where DIR holds gsm8k_train.jsonl and
gsm8k_test.jsonl (train.jsonl and test.jsonl of the authors), one `question` and `answer` a line.

The calculator's notes (`<<48/2=24>>`) are taken out of the answers: no calculator reads them here. Ten validation rows
are taken out of the training rows, and twenty rows of the test stand in a file of their own: what one core scores in
half a minute.
"""

import json
import random
import re
from pathlib import Path

VALIDATION, TEST = 10, 20
SEED = 42
NOTE = re.compile(r"<<[^<>]*>>")


def make(folder: Path, source: Path | None) -> None:
    """train.jsonl, validation.jsonl, test.jsonl, and the whole test as test_all.jsonl."""
    files = [source / f"gsm8k_{part}.jsonl" for part in ("train", "test")] if source else []
    if not files or not all(file.is_file() for file in files):
        raise SystemExit(
            "name the folder that holds gsm8k_train.jsonl and gsm8k_test.jsonl: python examples/data.py chat --from DIR"
        )
    learned, asked = ([_row(line) for line in file.read_text("utf-8").splitlines()] for file in files)
    chance = random.Random(SEED)
    chance.shuffle(learned)
    parts = {
        "train": learned[VALIDATION:],
        "validation": learned[:VALIDATION],
        "test": chance.sample(asked, TEST),
        "test_all": asked,
    }
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows)} questions")


def _row(line: str) -> dict[str, str]:
    row = json.loads(line)
    return {"question": row["question"], "answer": NOTE.sub("", row["answer"])}
