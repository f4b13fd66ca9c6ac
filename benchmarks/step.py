"""A training step of every method: against the floor, against the limit, and beside peft.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--model minilm] [--dtype float32] [--rounds 5] [--methods lora ia3]

CPU time of one process and one thread. In every round these alternate on the same batch: the forward pass of the base
without gradient, a step of BitFit (of LayerNorm tuning where a model has no biases), the method's step as we do it by
default, and the step of peft with the same adapter, loaded from the folder that we wrote: as its documentation shows it
(a float32 base and `model.train()`, so that the base drops out too), the same under autocast to bfloat16, which is
what `Trainer(bf16=True)` does, and tuned (the base in our dtype and without dropout, the adapter in the base's dtype,
eager attention in bfloat16). A step is forward, loss, backward, clipping and AdamW. Saved are the bytes that are kept
for the backward pass, storages counted once, parameters not. Losses are compared before the clock runs, without
dropout.

What was measured is kept in docs/results/step.json, by processor; the page beside it is written from that.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quality
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.ops.kept import kept_bytes

KEPT, PAGE = Path("docs/results/step.json"), Path("docs/results/step.md")
PEERS = {"peft": "peft takes", "autocast": "peft under autocast takes", "tuned": "peft tuned takes"}
VARIANTS = {"boft, one factor": {"type": "boft", "boft_n_butterfly_factor": 1}}
"""Settings besides those of `quality.py`: peft has more than one factor on GPUs alone."""
LEARNS = 1e-3
"""Learning rate of the few steps before anything is compared: no adapter is the identity then."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and what a step takes."""

    folder: str
    loader: Any
    rows: int
    tokens: int
    floor: str
    peft_task: str
    head: tuple[str, ...] | None

    def load(self, dtype: torch.dtype, attention: str = "sdpa") -> Any:
        """The model without dropout, as new."""
        torch.manual_seed(0)
        return self.loader.from_pretrained(self.folder, dtype=dtype, attn_implementation=attention).eval()

    def batch(self) -> dict[str, Tensor]:
        """Random tokens, a fifth of the rows shorter."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 20000, (self.rows, self.tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[-self.rows // 5 :, self.tokens // 2 :] = 0
        labels = ids.masked_fill(mask == 0, -100) if self.loader is AutoModelForCausalLM else ids[:, 0] % 2
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


CASES = {
    "minilm": Case(
        ".cache/models/minilm", AutoModelForSequenceClassification, 16, 128, "bitfit", "SEQ_CLS", ("classifier",)
    ),
    "smollm2": Case(".cache/models/smollm2", AutoModelForCausalLM, 2, 128, "layernorm", "CAUSAL_LM", None),
}


class Work:
    """A model in training."""

    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        batch: dict[str, Tensor],
        penalty: Callable[[], Tensor | None] = lambda: None,
        *,
        autocast: bool = False,
    ) -> None:
        self.model, self.parameters, self.batch, self.penalty = model, parameters, batch, penalty
        self.autocast = autocast
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNS, fused=True)

    def loss(self) -> Tensor:
        """Of the batch, with the penalty of a method that has one."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss: Tensor = self.model(**self.batch).loss
        penalty = self.penalty()
        return loss if penalty is None else loss + penalty

    def step(self) -> tuple[float, float]:
        """One step; its loss and the norm of its gradient."""
        loss = self.loss()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), float(norm)

    def saved(self) -> int:
        """Bytes that the graph keeps for backward."""
        return kept_bytes(self.loss(), but=self.model.state_dict(keep_vars=True).values())


def main() -> None:
    """Measures and writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=CASES, default="minilm")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--methods", nargs="*")
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    if not given.table:
        found = kept.setdefault(processor(), {}).setdefault(f"{given.model}, {given.dtype}", {})
        for name, settings in {**quality.rows(), **VARIANTS}.items():
            if not given.methods or name in given.methods:
                found[name] = measured(CASES[given.model], getattr(torch, given.dtype), settings, given.rounds)
                print(name, found[name], flush=True)
                KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write(kept)


def processor() -> str:
    """The processor's name and its vector instructions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    words = ("model name", "flags")
    name, flags = (next(line.partition(":")[2].strip() for line in lines if line.startswith(word)) for word in words)
    matrices = " and AMX" if "amx_bf16" in flags.split() else ""
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{matrices}"


def measured(case: Case, dtype: torch.dtype, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One method: ratios as quartiles, or the reason why it has no place in this model."""
    try:
        works, facts = prepared(case, dtype, settings)
    except DeltatuneError as error:
        return {"refused": str(error)}
    base = case.load(dtype)
    batch = case.batch()

    @torch.no_grad()
    def forward() -> None:
        base(**batch)

    calls: dict[str, Callable[[], Any]] = {"forward": forward, **{name: work.step for name, work in works.items()}}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    ratios = {"floor": ("ours", "floor"), "limit": ("ours", "forward")}
    ratios |= {name: (name, "ours") for name in PEERS if name in calls}
    found = {
        name: spread([over / under for over, under in zip(times[a], times[b], strict=True)])
        for name, (a, b) in ratios.items()
    }
    found["limit"] = [round(ratio / 2, 3) for ratio in found["limit"]]
    return {**found, **facts, "milliseconds": round(1000 * statistics.median(times["ours"]))}


def prepared(case: Case, dtype: torch.dtype, settings: dict[str, Any]) -> tuple[dict[str, Work], dict[str, Any]]:
    """The models that are compared, after a few steps of ours, and what is known of them without a clock."""
    works = {"floor": ours(case, dtype, {"type": case.floor}), "ours": ours(case, dtype, settings)}
    for _ in range(3):
        _, norm = works["ours"].step()
    facts: dict[str, Any] = {"gradient_norm": round(norm, 6)}
    facts["saved"] = round(works["ours"].saved() / works["floor"].saved(), 3)
    with tempfile.TemporaryDirectory() as folder:
        adapter = deltatune.Adapter(works["ours"].model, "default")
        adapter.save(folder, task_type=case.peft_task)
        if not in_peft(Path(folder)):
            return works, facts
        for name in PEERS:
            if name != "autocast" or small(dtype):
                add_peer(works, facts, name, lambda name=name: theirs(case, dtype, folder, name))
    if "tuned" in works:
        facts["loss_difference"] = apart(works, adapter)
    return works, facts


def add_peer(works: dict[str, Work], facts: dict[str, Any], name: str, make: Callable[[], Work]) -> None:
    """A peer that can do a pass; why it cannot, else: peft has methods that do not run on every machine and dtype."""
    try:
        work = make()
        work.loss().backward()
    except (RuntimeError, ValueError) as error:
        facts.setdefault("fails", {})[name] = str(error).strip().splitlines()[-1].strip()
        return
    work.optimizer.zero_grad(set_to_none=True)
    works[name] = work


def small(dtype: torch.dtype) -> bool:
    """Whether autocast to bfloat16 is a thing to compare with."""
    return dtype == torch.bfloat16


def apart(works: dict[str, Work], adapter: deltatune.Adapter) -> float:
    """How far our loss is from that of tuned peft, on the same weights and without dropout."""
    adapter.train_mode(False)
    losses = [float(works[name].loss().detach()) for name in ("ours", "tuned")]
    adapter.train_mode(True)
    return abs(losses[0] - losses[1])


def ours(case: Case, dtype: torch.dtype, settings: dict[str, Any]) -> Work:
    """A method on a model of its own, as a training of ours has it by default."""
    model = case.load(dtype)
    choose_attention(model)
    torch.manual_seed(0)
    method = deltatune.method({**settings, "modules_to_save": case.head})
    adapter = deltatune.Adapter(deltatune.prepare(model, method), "default")
    adapter.expect_steps(1000)
    adapter.train_mode(True)
    return Work(adapter.model, list(adapter.parameters()), case.batch(), adapter.penalty)


def theirs(case: Case, dtype: torch.dtype, folder: str, peer: str) -> Work:
    """The same adapter in peft: as documented, under autocast, or tuned."""
    from peft import PeftModel

    tuned = peer == "tuned"
    base = case.load(dtype, "eager" if small(dtype) else "sdpa") if tuned else case.load(torch.float32)
    model = PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=not tuned)
    model.train(not tuned)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Work(model, trained, case.batch(), autocast=peer == "autocast")


def in_peft(folder: Path) -> bool:
    """Whether a folder is one that peft loads."""
    from peft.utils import PeftType

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config.get("peft_type") in PeftType.__members__


def seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def spread(ratios: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(value, 3) for value in statistics.quantiles(ratios, n=4)]


def write(kept: dict[str, Any]) -> None:
    """A table per processor, model and dtype."""
    lines: list[str] = []
    for machine, own in sorted(kept.items()):
        for what, found in sorted(own.items()):
            lines += ["", f"## {what}: {machine}", "", *table(found)]
    begin, end = "<!-- table:start -->", "<!-- table:end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n\n" + end + after, encoding="utf-8")


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """One line per method, the fastest first."""
    peers = [name for name in PEERS if any(name in one for one in found.values())]
    lines = [
        f"| method | x floor | x limit | saved x floor | {' | '.join(PEERS[name] for name in peers)} "
        "| losses differ by | step |",
        "|---|" + "---:|" * (5 + len(peers)),
    ]
    done = {name: one for name, one in found.items() if "refused" not in one}
    for name, one in sorted(done.items(), key=lambda item: item[1]["floor"][1]):
        peft = [f"{shown(one[key])} x" if key in one else "-" for key in peers]
        differ = f"{one['loss_difference']:.0e}" if "loss_difference" in one else "-"
        cells = [name, shown(one["floor"]), shown(one["limit"]), f"{one['saved']:.2f}", *peft, differ]
        lines.append("| " + " | ".join([*cells, f"{one['milliseconds']} ms"]) + " |")
    failing = [
        f"{name}: {PEERS[peer].removesuffix(' takes')} ({why})"
        for name, one in sorted(done.items())
        for peer, why in one.get("fails", {}).items()
    ]
    lines += ["", f"Not possible: {'; '.join(failing)}."] if failing else []
    refused = [f"{name} ({one['refused']})" for name, one in sorted(found.items()) if "refused" in one]
    return lines + (["", f"Refused: {'; '.join(refused)}."] if refused else [])


def shown(quartiles: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
