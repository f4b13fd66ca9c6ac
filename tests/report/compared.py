"""What a comparison of four methods, of which one was refused, writes into results.json."""

import random
from typing import Any


def results(**other: Any) -> dict[str, Any]:
    """The whole of it, always the same."""
    chance = random.Random(0)

    def method(name, mean, count, seconds, rate):
        test = [mean + chance.uniform(-0.01, 0.01) for _ in range(3)]
        return {
            "type": name, "settings": {"type": name}, "learning_rate": rate, "seeds": [1, 2, 3],
            "rates": [
                {"learning_rate": rate * factor, "share": share, "value": mean - lost}
                for share in (0.25, 1.0)
                for factor, lost in ((0.3, 0.08 * (2 - share)), (1, 0.01), (3, 0.05), (10, 0.2))
            ] + [{"learning_rate": rate * 30, "share": 1.0, "value": None}],
            "failed": {}, "validation": [value + 0.01 for value in test], "test": test, "mean": sum(test) / 3,
            "interval": [mean - 0.02, mean + 0.02], "trainable_parameters": count, "total_parameters": 22_700_000,
            "adapter_bytes": 4 * count + 9000, "peak_memory_bytes": 900_000_000 + 50 * count,
            "train_seconds": seconds, "answering_seconds_per_row": 0.004, "refused": None,
            "joules": 16 * seconds, "energy_source": "a meter of this machine",
        }  # fmt: skip

    methods = {
        "lora": method("lora", 0.842, 332_546, 61.0, 1e-3),
        "adapter": method("adapter", 0.836, 148_866, 48.0, 1e-3),
        "ia3": method("ia3", 0.79, 9_986, 35.0, 1e-2),
        "full": method("full", 0.845, 22_713_986, 190.0, 5e-5),
        "prefix": {"type": "prefix", "settings": {"type": "prefix"}, "learning_rate": None, "seeds": [], "rates": [],
                   "failed": {"1": "losses are not finite"}, "validation": [], "test": [],
                   "trainable_parameters": 1, "refused": "the model's attention takes no keys"},
    }  # fmt: skip
    names = ["ia3", "adapter", "lora"]
    found = {
        "task": "text-classification", "base_model": "some/model", "metric": "accuracy", "lower_is_better": False,
        "rows": {"train": 1200, "validation": 300, "test": 800}, "budget_seconds": 1800, "spent_seconds": 1312.4,
        "methods": methods, "baselines": {"majority class": 0.503, "linear on TF-IDF": 0.771}, "chosen": "lora",
        "best_run": "runs/x-comparison/runs/lora-seed2",
        "against": {
            "adapter": {"difference": 0.006, "interval": [-0.01, 0.02], "p": 0.3, "p_corrected": 0.6,
                        "verdict": "no difference shown"},
            "ia3": {"difference": 0.052, "interval": [0.03, 0.07], "p": 0.0001, "p_corrected": 0.0003,
                    "verdict": "the chosen one is better"},
            "full": {"difference": -0.003, "interval": [-0.01, 0.01], "p": 0.7, "p_corrected": 0.7,
                     "verdict": "no difference shown"},
        },
        "fronts": {"trainable_parameters": [*names, "full"], "train_seconds": [*names, "full"], "adapter_bytes": names,
                   "joules": [*names, "full"]},
        "verdict": "lora is chosen: it is best on the validation rows. No difference shown between lora and full.",
        "left_out": ["prefix, seed 2", "prefix, seed 3"],
    }  # fmt: skip
    return {**found, **other}
