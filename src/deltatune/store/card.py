"""The model card of an adapter: what it is, where it came from, how to load it."""

from typing import Any

import yaml

from deltatune.core.method import AdapterFile


def card(file: AdapterFile, config: str) -> str:
    """README.md of an adapter folder, with the front matter that hubs read."""
    front: dict[str, Any] = {
        "library_name": "peft" if file.method.for_peft(file.sites) else "deltatune",
        "tags": ["deltatune", file.method.type],
    }
    if file.base_model:
        front["base_model"] = file.base_model
    count = sum(tensor.numel() for tensor in file.tensors.values())
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True).strip(),
        "---",
        "",
        f"# {file.name}: {file.method.title} adapter",
        "",
        f"- Base model: `{file.base_model or 'not recorded'}` (fingerprint `{file.fingerprint[:16]}`)",
        f"- Method: {file.method.title} ({file.method.paper})",
        f"- Stored values: {count:,}",
        *_facts(file),
        "",
        "```python",
        "import deltatune",
        f'adapter = deltatune.load(model, "path/to/this/folder", name="{file.name}")',
        "```",
        "",
        "```json",
        config.strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _facts(file: AdapterFile) -> list[str]:
    """Task and held-out results, when the task recorded them."""
    found = [f"- Task: {file.facts['task']['type']}"] if "task" in file.facts else []
    for split, metrics in file.facts.get("results", {}).items():
        found += [f"- {split} {name}: {value:.4f}" for name, value in metrics.items() if isinstance(value, float)]
    if "joules" in (energy := file.facts.get("energy", {})):
        co2 = f", {energy['kg_co2']} kg CO2 by the factor that was given" if "kg_co2" in energy else ""
        found.append(f"- Energy of the training: {energy['joules']:,.0f} J ({energy['source']}){co2}")
    return found
