"""Pitfalls: the four classical ones (overfitting, size, learning rate, base model), and when not to fine-tune."""

from typing import Any

from deltatune.advise.facts import Facts
from deltatune.advise.forecast import Forecast
from deltatune.core.method import Method

FEW_ROWS, FEW_OF_CLASS, FEW_TESTED = 50, 5, 100
PER_ROW = 1000
"""Trained values per row from which on a warning is due."""
LARGE_FILE, LARGE_SHARE = 50e6, 0.05
RATE = 5.0
"""Factor from a method's own rate from which on a warning is due."""
CUT, PIECES, UNKNOWN = 0.05, 2.2, 0.02
ANSWERED, NEARLY = 0.99, 0.95


def verdict(facts: Facts) -> tuple[str, str]:
    """`fine-tune`, `linear probe` or `do not fine-tune`, and why."""
    if facts.classes == 1 or (facts.largest_share or 0) > 0.995:
        share = facts.largest_share or 1.0
        return "do not fine-tune", f"{share:.1%} of the training rows have the same label: there is nothing to learn"
    if facts.rows["train"] < FEW_ROWS:
        seen = f"{facts.rows['train']} training rows, and {facts.rows['test']} to test on"
        if facts.classes is None:
            return "do not fine-tune", f"{seen}: collect more first"
        half = f"{_half_width(facts.rows['test']):.0%}"
        return "do not fine-tune", (
            f"{seen}, whose accuracy is known to ± {half} only: label more first, or take a linear probe"
        )
    if facts.neighbours is not None:
        right, usual, asked = facts.neighbours
        seen = (
            f"the three most similar training rows answer {right:.1%} of {asked} held-out rows (majority {usual:.1%})"
        )
        if right >= ANSWERED and asked >= FEW_ROWS and right > usual:
            return "do not fine-tune", f"{seen}: looking them up is enough, or one answer leaks into the input"
        if right >= NEARLY and asked >= FEW_ROWS and right > usual:
            return "linear probe", f"{seen}: a linear probe is likely enough; try it first"
    if facts.smallest_class is not None and facts.smallest_class < FEW_OF_CLASS:
        return "fine-tune", f"but the rarest class has {facts.smallest_class} training rows, too few to learn or test"
    return "fine-tune", f"{facts.rows['train']:,} training rows" + (
        f" of {facts.classes} classes, the rarest with {facts.smallest_class:,}" if facts.classes else ""
    )


def warnings(facts: Facts, method: Method, forecast: Forecast, base: int, given: dict[str, Any]) -> list[str]:
    """What is likely to go wrong with this method on these rows; `base` are the parameters of the model."""
    return [
        *_overfitting(facts, forecast),
        *_size(forecast, base),
        *_rate(method, given.get("learning_rate")),
        *_base_model(facts),
    ]


def _overfitting(facts: Facts, forecast: Forecast) -> list[str]:
    rows, trained = facts.rows["train"], forecast.trained_parameters
    found = []
    if trained > PER_ROW * rows:
        found.append(
            f"overfitting: {trained:,} trained values on {rows:,} rows ({trained / rows:,.0f} per row) can learn them "
            "by heart; keep early stopping on, take a smaller rank or a method that trains less (ia3, bitfit)"
        )
    if facts.rows["test"] < FEW_TESTED and facts.classes is not None:
        half = _half_width(facts.rows["test"])
        found.append(f"test: {facts.rows['test']} test rows tell an accuracy to ± {half:.0%} only")
    return found


def _size(forecast: Forecast, base: int) -> list[str]:
    share = forecast.trained_parameters / base
    if forecast.adapter_bytes > LARGE_FILE or share > LARGE_SHARE:
        size = forecast.adapter_bytes / 1e6
        return [f"adapter size: {size:,.0f} MB for each task, {share:.1%} of the base; a smaller rank will often do"]
    return []


def _rate(method: Method, given: float | None) -> list[str]:
    if given is None:
        return []
    factor = given / method.learning_rate
    if factor > RATE or factor < 1 / RATE:
        side = f"{factor:.0f} times" if factor > 1 else f"1/{1 / factor:.0f} of"
        return [
            f"learning rate: {given:g} is {side} the rate at which {method.type} works untuned "
            f"({method.learning_rate:g}); rates of full fine-tuning are too low for adapters, and the reverse"
        ]
    return []


def _base_model(facts: Facts) -> list[str]:
    found = []
    if facts.truncated > CUT:
        found.append(
            f"base model: {facts.truncated:.0%} of the rows are cut at the length limit (longest {facts.length['max']} "
            "tokens after the cut); raise task.max_length, or take a model with more positions"
        )
    if facts.pieces_per_word is not None and facts.pieces_per_word > PIECES:
        foreign = facts.other_letters or 0
        where = (
            f"; {foreign:.0%} of the letters are outside ASCII: is it a model for this language?"
            if foreign > 0.1
            else ""
        )
        found.append(f"base model: its tokenizer cuts a word into {facts.pieces_per_word:.1f} pieces here{where}")
    if facts.unknown is not None and facts.unknown > UNKNOWN:
        found.append(f"base model: its tokenizer does not know {facts.unknown:.1%} of the tokens here")
    return found


def _half_width(rows: int) -> float:
    """Of the 95 % interval of an accuracy near one half."""
    return float(1.96 * (0.25 / max(1, rows)) ** 0.5)
