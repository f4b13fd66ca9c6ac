"""Large decoders on one GPU: LoRA as we do it, LoRA by peft, full fine-tuning.

    python benchmarks/gpu.py [--cases 1b 8b] [--steps 10]
    python benchmarks/gpu.py --tiny --device cpu             every line of it, in seconds, without a GPU

Llama-shaped models of random weights, made on the device in bfloat16; random tokens, all of them learned; LoRA r = 16
on all linear layers, AdamW. Every way is a process of its own. `ours` is `deltatune.prepare` and the loss in chunks,
`peft` is `get_peft_model` and the model's own loss, `full` trains every weight in bfloat16 (1B alone: the moments of 8B
do not fit). Losses of the first step are compared: adapters start as no change. A step is forward, loss, backward,
clipping and the optimizer; time is the median of the steps after three.

The share of the peak: operations of the products (per token 4 P with a frozen base and 6 P when all is trained, and of
causal attention 6 times length, width and layers) by the time, against the best of square products of the same dtype
measured just before. Writes docs/results/gpu.json and gpu.md, unless --tiny.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import put
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

KEPT, PAGE = Path("docs/results/gpu.json"), Path("docs/results/gpu.md")
SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8},
}
BATCHES = {"1b": ((8, 2048), (4, 4096)), "8b": ((2, 2048), (1, 4096)), "tiny": ((2, 16),)}
"""Rows and tokens of a step."""
WAYS = {"1b": ("ours", "peft", "full"), "8b": ("ours", "peft"), "tiny": ("ours", "peft", "full")}
WARM, RANK, SEED = 3, 16, 0
Found = dict[str, Any]


def main() -> None:
    """Measures every case in a process of its own, or is that process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", nargs="*", choices=("1b", "8b"), default=["1b", "8b"])
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--device", default="cuda")
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--run", nargs=4, metavar=("CASE", "WAY", "ROWS", "TOKENS"))
    given = options.parse_args()
    if given.run:
        case, way, rows, tokens = given.run
        print(json.dumps(measured(case, way, int(rows), int(tokens), given.device, given.steps)))
        return
    found = []
    for case in ["tiny"] if given.tiny else given.cases:
        for rows, tokens in BATCHES[case]:
            for way in WAYS[case]:
                found.append(apart(case, way, rows, tokens, given))
                print(found[-1], flush=True)
    lines = table(found)
    print("\n".join(lines))
    if not given.tiny:
        KEPT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        write(lines)


def apart(case: str, way: str, rows: int, tokens: int, given: argparse.Namespace) -> Found:
    """What a process of its own measures; its last words where it failed."""
    command = [sys.executable, __file__, "--run", case, way, str(rows), str(tokens)]
    command += ["--device", given.device, "--steps", str(given.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    facts: Found = {"case": case, "way": way, "rows": rows, "tokens": tokens}
    if done.returncode:
        return {**facts, "failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no words"}
    return {**facts, **json.loads(done.stdout.splitlines()[-1])}


def measured(case: str, way: str, rows: int, tokens: int, device: str, steps: int) -> Found:
    """Tokens a second, share of the peak, peak memory, first loss and norm of the gradient."""
    peak = peak_flops(device, 8192 if device == "cuda" else 256)
    model = made(case, device)
    products = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n)
    step, parameters = WORK[way](model)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens), generator=generator).to(device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, losses, norms = [], [], []
    for _ in range(WARM + steps):
        wait(device)
        start = time.perf_counter()
        loss = step(ids)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        wait(device)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM:])
    work = operations(model.config, products, rows, tokens, frozen=way != "full")
    on_device = device == "cuda"
    memory = (
        torch.cuda.max_memory_allocated() if on_device else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "seconds": seconds,
        "tokens_per_second": rows * tokens / seconds,
        "flops": work / seconds,
        "peak_flops": peak,
        "memory_bytes": memory,
        "trained": sum(p.numel() for p in parameters),
        "parameters": products,
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "first_norm": float(norms[0]),
        "device": torch.cuda.get_device_name() if on_device else platform.machine(),
        "torch": torch.__version__,
    }


def made(case: str, device: str) -> Any:
    """The random model, made where it runs."""
    large = case != "tiny"
    config = LlamaConfig(
        vocab_size=128256 if large else 128,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        use_cache=False,
        **SHAPES[case],
    )
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


Work = tuple[Callable[[Tensor], Tensor], list[Any]]
"""The loss of a batch, and what is trained."""


def ours(model: Any) -> Work:
    """As `deltatune.finetune` does it."""
    import deltatune
    from deltatune.ops.token_loss import token_losses

    deltatune.prepare(model, deltatune.LoRA(r=RANK, lora_alpha=2 * RANK), name="lora", seed=SEED)
    adapter = deltatune.Adapter(model, "lora")

    def loss(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids).logits[:, :-1]
        return token_losses(logits.flatten(0, 1), ids[:, 1:].flatten()).mean()

    return loss, list(adapter.parameters())


def peft(model: Any) -> Work:
    """As its documentation shows it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    network = get_peft_model(model, config).train()
    trained = [p for p in network.parameters() if p.requires_grad]
    return lambda ids: network(input_ids=ids, labels=ids).loss, trained


def full(model: Any) -> Work:
    """Every weight."""
    model.train()
    return lambda ids: model(input_ids=ids, labels=ids).loss, list(model.parameters())


WORK: dict[str, Callable[[Any], Work]] = {"ours": ours, "peft": peft, "full": full}


def operations(config: Any, products: int, rows: int, tokens: int, *, frozen: bool) -> float:
    """Floating-point operations of a step: products with the weights, and of causal attention the half that counts."""
    attention = 6 * tokens * config.hidden_size * config.num_hidden_layers
    return float(rows * tokens * ((4 if frozen else 6) * products + attention))


def peak_flops(device: str, size: int) -> float:
    """Best rate of bfloat16 products of square matrices."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return float(2 * size**3 / min(times))


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def table(found: list[Found]) -> list[str]:
    """A line for every way."""
    lines = [
        "| model | rows x tokens | | tokens/s | times ours | share of the peak | peak memory | first loss | norm |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    own = {(one["case"], one["rows"], one["tokens"]): one for one in found if one["way"] == "ours"}
    for one in found:
        head = f"| {one['case'].upper()} | {one['rows']} x {one['tokens']:,} | {one['way']} |"
        base = own[one["case"], one["rows"], one["tokens"]]
        if "failed" in one:
            lines.append(f"{head} {one['failed']} | | | | | |")
            continue
        ratio = f"{one['seconds'] / base['seconds']:.2f}" if "seconds" in base else "-"
        share, memory = one["flops"] / one["peak_flops"], one["memory_bytes"] / 1e9
        lines.append(
            f"{head} {one['tokens_per_second']:,.0f} | {ratio} | {share:.0%} | {memory:.1f} GB |"
            f" {one['first_loss']:.3f} | {one['first_norm']:.2g} |"
        )
    known = next((one for one in found if "failed" not in one), None)
    if known:
        lines += ["", f"{known['device']}, torch {known['torch']}; peak {known['peak_flops'] / 1e12:.2f} TFLOP/s."]
    return lines


def write(lines: list[str]) -> None:
    """The page: text in front stays, the table is made anew."""
    put(PAGE, lines)


if __name__ == "__main__":
    main()
