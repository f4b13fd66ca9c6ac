"""Verdict: what a comparison showed, in sentences; what it did not show is said as plainly."""

from collections.abc import Mapping
from typing import Any


def verdict(found: Mapping[str, Any]) -> str:
    """Sentences for people, from results.json of a comparison."""
    best, methods = found["chosen"], found["methods"]
    if best is None:
        return " ".join(["No method finished a run; nothing can be said.", *_left_out(found)])
    own = methods[best]
    seeds = len(own["seeds"])
    low, high = own["interval"]
    parts = [
        f"{best} is chosen: it is best on the validation rows (mean of {seeds} seed{'s' * (seeds > 1)}). On the test "
        f"rows its {found['metric']} is {own['mean']:.4f} (95 % interval {low:.4f} to {high:.4f})."
    ]
    parts += _differences(found)
    parts += _baselines(found)
    parts += _smaller(found)
    if seeds < 3:
        parts.append("With fewer than three seeds the luck of a start is hardly seen in the intervals.")
    return " ".join([*parts, *_left_out(found)])


def _left_out(found: Mapping[str, Any]) -> list[str]:
    number = len(found["left_out"])
    return [f"The budget ended before {number} further training{'s' * (number > 1)}."] if number else []


def _differences(found: Mapping[str, Any]) -> list[str]:
    best = found["chosen"]
    sentences = {
        "the chosen one is better": f"{best} is better than {{}}.",
        "the chosen one is worse": f"On the test rows {best} is worse than {{}}: another choice deserves a look.",
        "no difference shown": f"No difference shown between {best} and {{}}.",
    }
    groups = {word: [n for n, one in found["against"].items() if one["verdict"] == word] for word in sentences}
    return [sentences[word].format(listed(names)) for word, names in groups.items() if names]


def _baselines(found: Mapping[str, Any]) -> list[str]:
    """Baselines above, within and below the interval."""
    if not found["baselines"]:
        return []
    low, high = found["methods"][found["chosen"]]["interval"]
    if found["lower_is_better"]:
        beaten = [name for name, value in found["baselines"].items() if value > high]
        ahead = [name for name, value in found["baselines"].items() if value < low]
    else:
        beaten = [name for name, value in found["baselines"].items() if value < low]
        ahead = [name for name, value in found["baselines"].items() if value > high]
    level = [name for name in found["baselines"] if name not in (*beaten, *ahead)]
    sentences = [f"It beats {listed(beaten)}."] if beaten else []
    if level:
        sentences.append(f"It is not shown to beat {listed(level)}.")
    if ahead:
        sentences.append(f"{listed(ahead)} did better than any adapter could claim: use that instead.")
    return sentences


def _smaller(found: Mapping[str, Any]) -> list[str]:
    """The method with the fewest parameters that is not shown to be worse."""
    best, methods = found["chosen"], found["methods"]
    level = [name for name, one in found["against"].items() if one["verdict"] != "the chosen one is better"]
    fewest = min(level, key=lambda name: methods[name]["trainable_parameters"], default=best)
    trained, own = methods[fewest]["trainable_parameters"], methods[best]["trainable_parameters"]
    if trained * 2 > own:
        return []
    return [f"{fewest} trains {own / trained:,.0f} times fewer parameters ({trained:,}) and is not shown to be worse."]


def listed(names: list[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
