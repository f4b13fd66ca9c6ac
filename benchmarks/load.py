"""Attaching, saving, loading, switching and mixing adapters, ours beside peft.

    OMP_NUM_THREADS=1 python benchmarks/load.py [--rounds 5]

CPU time of one process, one thread; the two libraries alternate, the least and the median of the rounds are shown. LoRA
on all 224 linear layers of a 32-layer Llama-shaped model that is narrow: these costs are per layer, not per value.
Parameter creation (the tensors A and B alone) is measured too, because any library has to pay for it. Mixed rows: 32
rows of 64 tokens through a six-layer encoder of width 384, every row with one of k adapters, forward without gradient,
against a single adapter for all rows; outputs of both libraries are compared. Writes docs/results/load.md and load.svg.
"""

import argparse
import copy
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bars import bars
from pages import put
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import deltatune

PAGE, PLOT = Path("docs/results/load.md"), Path("docs/results/load.svg")
NAMES = ((0, "ours"), (1, "peft"))
"""Place in a measurement of mixed rows, and whose it is."""
LAYERS, RANK, LOADS = 32, 8, 30
ROWS, TOKENS, MIXES = 32, 64, (1, 2, 8, 32)
Times = dict[str, float]


def main() -> None:
    """Measures, writes docs/results/load.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tables = [
        table("LoRA r = 8, 224 linear layers", [adapters_of(decoder()) for _ in range(rounds + 1)][1:]),
        table(f"{LOADS} loads of the same folder", [loads_of(decoder()) for _ in range(max(2, rounds // 2))]),
    ]
    ratios = mixed(rounds)
    tables.append(mixed_table(ratios))
    shown = {f"{name}, {count} adapters": ratios[count][place] for count in MIXES for place, name in NAMES}
    bars(PLOT, "Rows of a batch with k adapters: times one adapter for all rows", shown, "{:.2f}")
    put(PAGE, "\n\n".join("\n".join(lines) for lines in tables).split("\n"))


def decoder() -> nn.Module:
    """32 layers, 224 linear maps."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


def encoder() -> Any:
    """Six layers as wide as MiniLM's."""
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=1000, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
        )
    ).eval()


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call; what others left for the collector of garbage is collected before."""
    gc.collect()
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


def adapters_of(base: nn.Module) -> Times:
    """One measurement of attaching, switching and saving."""
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
    with tempfile.TemporaryDirectory() as folder:
        found["save, ours"] = seconds(lambda: adapter.save(Path(folder) / "ours"))
        found["save, peft"] = seconds(lambda: peft.save_pretrained(Path(folder) / "peft", selected_adapters=["two"]))
    return found


def loads_of(base: nn.Module) -> Times:
    """The first and the last of thirty loads, each under a name of its own on the same model."""
    with tempfile.TemporaryDirectory() as folder:
        deltatune.attach(copy.deepcopy(base), deltatune.LoRA(r=RANK), name="one").save(folder)
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        first = PeftModel.from_pretrained(copy.deepcopy(base), folder)  # warms up
        deltatune.load(copy.deepcopy(base), folder)
        del first
        mine = [seconds(partial(deltatune.load, ours, folder, name=f"n{n}")) for n in range(LOADS)]
        gc.collect()
        start = time.process_time()
        peft = PeftModel.from_pretrained(theirs, folder, adapter_name="n0")
        other = [time.process_time() - start]
        other += [seconds(partial(peft.load_adapter, folder, adapter_name=f"n{n}")) for n in range(1, LOADS)]
    found = {"first, ours": mine[0], "first, peft": other[0]}
    return found | {f"{LOADS}th, ours": mine[-1], f"{LOADS}th, peft": other[-1]}


def table(title: str, found: list[Times]) -> list[str]:
    """Least and median of every measurement."""
    lines = [f"| {title} | least, ms CPU | median, ms CPU |", "|---|---:|---:|"]
    for name in found[0]:
        times = [1e3 * one[name] for one in found]
        lines.append(f"| {name} | {min(times):.2f} | {statistics.median(times):.2f} |")
    return lines


@torch.no_grad()
def mixed(rounds: int) -> dict[int, tuple[float, float, float]]:
    """A batch whose rows have k adapters, ours and peft's, as multiples of one for all; how far outputs differ."""
    base, ids = encoder(), torch.randint(5, 999, (ROWS, TOKENS))
    ours, theirs = copy.deepcopy(base), None
    with tempfile.TemporaryDirectory() as folder:
        for n in range(max(MIXES)):
            adapter = deltatune.attach(ours, deltatune.LoRA(r=RANK), name=f"n{n}", seed=n)
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
            place = adapter.save(Path(folder) / str(n))
            if theirs is None:
                theirs = PeftModel.from_pretrained(copy.deepcopy(base), place, adapter_name="n0").eval()
            else:
                theirs.load_adapter(place, adapter_name=f"n{n}")
    assert theirs is not None
    found = {}
    for count in MIXES:
        names = [f"n{row % count}" for row in range(ROWS)]
        calls = [
            partial(run, ours, ids, ["n0"]),
            partial(run, ours, ids, names),
            partial(theirs, input_ids=ids, adapter_names=names),
        ]
        outputs = [call().last_hidden_state for call in calls]
        times = [[seconds(call) for call in calls] for _ in range(rounds)]
        own, other = (statistics.median(row[place] / row[0] for row in times) for place in (1, 2))
        found[count] = own, other, float((outputs[1] - outputs[2]).abs().max())
    return found


def mixed_table(found: dict[int, tuple[float, float, float]]) -> list[str]:
    """A line for every number of adapters."""
    lines = ["| adapters in a batch of 32 rows | ours | peft | outputs differ by |", "|---|---:|---:|---:|"]
    for count, (own, other, apart) in found.items():
        lines.append(f"| {count} | {own:.2f} x | {other:.2f} x | {apart:.0e} |")
    return lines


def run(model: Any, ids: torch.Tensor, names: list[str]) -> Any:
    """Our forward pass; a single adapter where all rows have the same."""
    node = names[0] if len(set(names)) == 1 else deltatune.Rows(names)
    with deltatune.active(model, node):
        return model(input_ids=ids)


if __name__ == "__main__":
    main()
