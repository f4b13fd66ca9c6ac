"""Every method on a decoder: SmolLM2-135M on worked answers to school problems, loss on the answer's tokens.

    python benchmarks/decoder.py --data DIR [--steps 100] [--methods lora ia3]

DIR holds gsm8k_train.jsonl and gsm8k_test.jsonl (Cobbe et al. 2021, MIT); the model comes from
`examples/models.py smollm2`. The same batches in the same order for every method: 3 rows of at most 128 tokens, AdamW
at the method's default rate, 10 % warm-up and linear decay, bfloat16 base where the processor is faster with it. The
loss is that of 60 held-out rows, before and after. Results are kept in docs/results/decoder.json, the page beside it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from pages import keep, known, put
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

import deltatune
from deltatune.core.registry import methods
from deltatune.engine.precision import base_dtype

MODEL = ".cache/models/smollm2"
KEPT, PAGE = Path("docs/results/decoder.json"), Path("docs/results/decoder.md")
ROWS, TOKENS, HELD_OUT = 3, 128, 60
LEFT_OUT = {"mix", "adapter-fusion", "linear-probe", "bitfit", "full", "p-tuning-v2"}
"""What needs other adapters, a classification head or biases, and full fine-tuning (name it to run it)."""
Batch = dict[str, torch.Tensor]


def main() -> None:
    """Trains what is asked for, writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(".cache/data/chat"))
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--methods", nargs="*")
    given = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train = batches(rows(given.data / "gsm8k_train.jsonl", tokenizer, given.steps * ROWS))
    test = batches(rows(given.data / "gsm8k_test.jsonl", tokenizer, HELD_OUT))
    found = known(KEPT)
    for name in given.methods or sorted(set(methods()) - LEFT_OUT):
        if name not in found or found[name]["steps"] != given.steps:
            found[name] = run(name, train, test)
            keep(KEPT, found)
            print(name, found[name], flush=True)
    write(found)


def rows(path: Path, tokenizer: Any, number: int) -> list[tuple[list[int], int]]:
    """Tokens of question and answer, and where the answer begins; rows that are too long are left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = tokenizer(f"Question: {row['question']}\nAnswer: ")["input_ids"]
        answer = tokenizer(row["answer"])["input_ids"] + [tokenizer.eos_token_id]
        if len(question) + len(answer) <= TOKENS:
            found.append((question + answer, len(question)))
        if len(found) == number:
            break
    return found


def batches(found: list[tuple[list[int], int]]) -> list[Batch]:
    """Padded on the right; labels of question and padding are -100."""
    made = []
    for start in range(0, len(found) - ROWS + 1, ROWS):
        part = found[start : start + ROWS]
        longest = max(len(tokens) for tokens, _ in part)
        ids, labels = torch.zeros(ROWS, longest, dtype=torch.long), torch.full((ROWS, longest), -100)
        mask = torch.zeros_like(ids)
        for index, (tokens, begin) in enumerate(part):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            labels[index, begin : len(tokens)] = torch.tensor(tokens[begin:])
            mask[index, : len(tokens)] = 1
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def run(name: str, train: list[Batch], test: list[Batch]) -> dict[str, Any]:
    """One training."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=base_dtype("auto"))
    method = deltatune.method(name)
    model = deltatune.prepare(base, method)
    adapter = deltatune.Adapter(model, "default")
    adapter.expect_steps(len(train))
    before = loss_of(model, test)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), fused=True)
    schedule = get_scheduler("linear", optimizer, len(train) // 10, len(train))
    started = time.process_time()
    for batch in train:
        loss = model(**batch, use_cache=False).loss
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.process_time() - started
    adapter.train_mode(False)
    return {
        "before": round(before, 4),
        "after": round(loss_of(model, test), 4),
        "trained": adapter.trainable_parameters,
        "cpu_seconds": round(seconds, 1),
        "steps": len(train),
        "dtype": str(next(iter(base.parameters())).dtype),
    }


@torch.no_grad()
def loss_of(model: nn.Module, test: list[Batch]) -> float:
    """Mean loss over the answer tokens of the held-out rows."""
    total, units = 0.0, 0
    for batch in test:
        number = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch, use_cache=False).loss) * number
        units += number
    return total / units


def write(found: dict[str, dict[str, Any]]) -> None:
    """The page, best method first."""
    lines = [
        "| method | loss before | loss after | against LoRA | trained | CPU time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in sorted(found.items(), key=lambda item: float(item[1]["after"])):
        against = f"{one['after'] - found['lora']['after']:+.3f}" if "lora" in found else "-"
        numbers = (
            f"{one['before']:.3f} | {one['after']:.3f} | {against} | {one['trained']:,} | {one['cpu_seconds']:.0f} s"
        )
        lines.append(f"| {name} | {numbers} |")
    put(PAGE, lines)


if __name__ == "__main__":
    main()
