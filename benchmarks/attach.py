"""Attaching and switching, ours beside peft: LoRA on all linear layers of a 32-layer Llama-shaped model.

CPU time of one process, one thread; the two libraries alternate, the least and the median of the rounds are shown.
Parameter creation (the tensors A and B alone) is measured too, because any library has to pay for it.

    python benchmarks/attach.py [--rounds 7]
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from deltatune.cli.show import table

LAYERS, RANK = 32, 8


def model() -> nn.Module:
    """32 layers, 224 linear maps, narrow: attaching costs per layer, not per value."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    ).eval()


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def create(network: nn.Module) -> list[nn.Parameter]:
    """The tensors A and B alone."""
    layers = [m for n, m in network.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    made = []
    for layer in layers:
        made.append(nn.Parameter(torch.empty(RANK, layer.in_features).uniform_(-0.1, 0.1)))
        made.append(nn.Parameter(torch.zeros(layer.out_features, RANK)))
    return made


def round_of(base: nn.Module) -> dict[str, float]:
    """One measurement of everything."""
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    config = LoraConfig(r=RANK, target_modules="all-linear")
    found = {"create": seconds(lambda: create(base))}
    found["attach, ours"] = seconds(lambda: deltatune.attach(ours, deltatune.LoRA(r=RANK), name="one"))
    found["attach, peft"] = seconds(lambda: get_peft_model(theirs, config, adapter_name="one"))
    adapter = deltatune.attach(ours, deltatune.LoRA(r=RANK), name="two")
    peft = get_peft_model(copy.deepcopy(base), config, adapter_name="one")
    peft.add_adapter("two", config)

    def switch_ours() -> None:
        adapter.roster.activate("one")
        adapter.roster.activate("two")

    def switch_theirs() -> None:
        peft.set_adapter("one")
        peft.set_adapter("two")

    def off_ours() -> None:
        with adapter.disabled():
            pass

    def off_theirs() -> None:
        with peft.disable_adapter():
            pass

    found["switch, ours"], found["switch, peft"] = seconds(switch_ours) / 2, seconds(switch_theirs) / 2
    found["off and on, ours"], found["off and on, peft"] = seconds(off_ours), seconds(off_theirs)
    return found


def main() -> None:
    """Measures, prints, writes docs/results/attach.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    base = model()
    found = [round_of(base) for _ in range(rounds + 1)][1:]  # the first warms up
    rows = [
        (name, f"{min(r[name] for r in found) * 1e3:.2f}", f"{statistics.median(r[name] for r in found) * 1e3:.2f}")
        for name in found[0]
    ]
    columns = ("LoRA r = 8, 224 linear layers", "least, ms CPU", "median, ms CPU")
    table("", columns, rows, right=(1, 2))
    lines = [
        "# Attaching and switching",
        "",
        f"`python benchmarks/attach.py`, {rounds} alternated rounds, one thread, "
        f"process CPU time. torch {torch.__version__}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    Path("docs/results").mkdir(parents=True, exist_ok=True)
    Path("docs/results/attach.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
