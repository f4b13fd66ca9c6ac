"""Advising: from a config to a ranked table of methods, what each will take, and settings to begin with.

No weight is read: models are built on the meta device from their config, and a step of every method on the shortlist
runs there without values on the model's first two blocks, one block counted as often as there are blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from deltatune.adapters import Adapter
from deltatune.advise import batches, pitfalls, rank, start
from deltatune.advise.ahead import stored_bytes
from deltatune.advise.evidence import constants
from deltatune.advise.facts import Facts, facts_of
from deltatune.advise.forecast import Forecast, Work, forecast, width_of, work_of
from deltatune.advise.rank import Candidate, Goal, Measured
from deltatune.core import registry
from deltatune.core.config import RunSettings, TrainingSettings, override, read_yaml
from deltatune.core.errors import DeltatuneError, SettingsError, did_you_mean
from deltatune.core.method import Method
from deltatune.core.task import Example, Task
from deltatune.data.load import Splits
from deltatune.data.load import load as load_splits
from deltatune.data.usable import with_reasons
from deltatune.engine.precision import base_dtype
from deltatune.engine.roster import keep_map
from deltatune.engine.shallow import shallow
from deltatune.engine.valueless import valueless
from deltatune.ground import Ground, attached

SAMPLE, SCORED = 1000, 200
"""Rows of the training and of the other parts that stand for all of them."""
SHORTLIST = 6
ALWAYS = ("full", "linear-probe")
"""Shown beside the shortlist: the two ends that everything is compared with."""
DEPTHS = (1, 2)


def advice(
    values: Mapping[str, Any], *, goal: Goal = "quality", memory_gb: float | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Advice for the content of a config, whose `model` may be a list, as plain values.

    `memory_gb` is what a training may take; none means what is free on this machine. Raises `SettingsError` and
    `DataError` as a training would.
    """
    if goal not in rank.GOALS:
        raise SettingsError(f"goal {goal!r} is unknown", hint=did_you_mean(goal, rank.GOALS))
    models = values.get("model")
    names = models if isinstance(models, list) else [models]
    if not names:
        raise SettingsError("model: the list is empty", hint="name one, or several to choose from")
    given = {**values, "model": names[0]}
    settings = RunSettings.parse({"output_dir": "runs/advised", **given}, "")
    rooms = memory_gb * 1e9 if memory_gb is not None else float(_free())
    splits = load_splits(settings.data, registry.task(settings.task), folder or Path.cwd())
    bases = [_Base(str(name), settings, splits) for name in names]
    chosen, why = _best_base(bases, goal)
    found = chosen.advice(goal, rooms, values)
    if len(bases) > 1:
        found["base_models"] = [{**base.described(), "chosen": base is chosen} for base in bases]
        found["base_model_reason"] = why
    return found


def advice_for(path: str | Path, overrides: Mapping[str, str] | None = None, **wanted: Any) -> dict[str, Any]:
    """Advice for a YAML file."""
    return advice(override(read_yaml(Path(path)), overrides or {}), **wanted)


def write(found: Mapping[str, Any], file: Path) -> None:
    """Writes the config of the first choice; raises `SettingsError` when there is a file of this name."""
    if file.exists():
        raise SettingsError(f"{file} is there already", hint="take another name, or remove it")
    best = found["methods"][0]
    head = [f"# Written by deltatune advise for {found['goal']}: {found['verdict']}, {found['verdict_reason']}"]
    head += [f"# {reason}" for reason in best["reasons"]]
    text = "\n".join([*head, as_yaml(found["config"])])
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}") from None


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as the YAML of a config."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, slots=True)
class _Depth:
    """The model without values with its first blocks only."""

    ground: Ground
    blocks: int
    """Blocks of the whole model."""


class _Base:
    """One base model under the rows of the config."""

    def __init__(self, name: str, settings: RunSettings, splits: Splits) -> None:
        self.name, self.settings, self.splits = name, settings, splits
        self.task: Task = splits.task
        self.known = rank.table(self.task.type)
        self.dtype = base_dtype(settings.training.bf16)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with valueless(self.device):
                self.loaded = self.task.load(name, self.dtype)
        except RuntimeError as error:  # a model may ask for values that are not there
            raise SettingsError(f"no advice for {name} without its weights: {str(error)[:120]}") from None
        keep_map(self.loaded.model)
        sample = {"train": SAMPLE, "validation": SCORED, "test": SCORED}
        rows = {part: _spread(found, sample[part]) for part, found in splits.parts.items()}
        self.examples: dict[str, list[Example]] = {}
        for part, found in rows.items():
            encoded, wrong = with_reasons(self.task, found, self.loaded.processor)
            self.examples[part] = [one for one, reason in zip(encoded, wrong, strict=True) if reason is None]
        if not self.examples["train"] or not self.examples["validation"]:
            raise SettingsError(f"{name}: no row of the sample can be used", hint="deltatune check says why")
        counts = {part: len(found) for part, found in splits.parts.items()}
        self.facts: Facts = facts_of(self.task, rows, counts, self.examples["train"], self.loaded.tokenizer)
        self.whole = Ground(splits, self.examples, self.loaded)

    @property
    def parameters(self) -> int:
        """Of the base."""
        return sum(parameter.numel() for parameter in self.loaded.model.parameters())

    def described(self) -> dict[str, Any]:
        """What tells base models apart, as plain values."""
        pieces, unknown = self.facts.pieces_per_word, self.facts.unknown
        return {
            "model": self.name,
            "parameters": self.parameters,
            "pieces_per_word": None if pieces is None else round(pieces, 3),
            "unknown_tokens": None if unknown is None else round(unknown, 4),
            "truncated": round(self.facts.truncated, 4),
        }

    def advice(self, goal: Goal, room: float, values: Mapping[str, Any]) -> dict[str, Any]:
        """The whole advice on this base."""
        given = self.settings.training.model_dump(mode="json", exclude_unset=True)
        places, refused = self._places(goal)
        listed = rank.shortlist(goal, self.known, places, SHORTLIST)
        if not listed:
            raise SettingsError(f"no method meets the goal {goal} on this model", hint="; ".join(refused.values()))
        listed += [one for one in self.known if one.name in ALWAYS and one.name in places and one not in listed]
        plan = _Plan(self, self._depths(), given, room)
        candidates: list[Candidate] = []
        for one in listed:
            try:
                candidates.append(plan.candidate(one))
            except (RuntimeError, NotImplementedError) as error:  # a method may ask for values that are not there
                refused[one.name] = f"no forecast: {type(error).__name__}: {str(error)[:120]}"
        order = rank.ranked(goal, [one for one in candidates if plan.fits(one)])
        refused |= {one.measured.name: "does not fit into memory" for one in candidates if not plan.fits(one)}
        if not order:
            raise SettingsError(
                f"no method fits into {room / 1e9:.1f} GB with this model", hint="a smaller model, or shorter rows"
            )
        return self._report(goal, order, refused, plan, values)

    def _places(self, goal: Goal) -> tuple[dict[str, int], dict[str, str]]:
        """Trained values of every measured method that has a place here and meets the goal; why the others do not."""
        found: dict[str, int] = {}
        refused: dict[str, str] = {}
        for one in self.known:
            method = self.method(one)
            wrong = rank.meets(goal, method, self.task.trains_head)
            if wrong is None:
                try:
                    found[one.name] = self._count(method)
                    continue
                except (DeltatuneError, NotImplementedError) as error:
                    wrong = error.what if isinstance(error, DeltatuneError) else "asks for values of the weights"
            refused[one.name] = wrong
        return found, refused

    def method(self, one: Measured) -> Method:
        """A measured method with settings for these rows and this width."""
        plain = registry.method(one.settings)
        return plain.model_copy(
            update=start.method_settings(plain, self.facts.rows["train"], width_of(self.loaded.model))
        )

    def _count(self, method: Method) -> int:
        with _on(self.whole, method, self.device) as adapter:
            return adapter.trainable_parameters

    def _depths(self) -> list[_Depth]:
        """The model with one block and with two."""
        found = []
        for depth in DEPTHS:
            with valueless(self.device):
                loaded = self.task.load(self.name, self.dtype)
            blocks = shallow(loaded.model, depth)
            keep_map(loaded.model)
            found.append(_Depth(Ground(self.splits, self.examples, loaded), blocks))
        return found

    def _report(
        self,
        goal: Goal,
        order: Sequence[Candidate],
        refused: Mapping[str, str],
        plan: "_Plan",
        values: Mapping[str, Any],
    ) -> dict[str, Any]:
        verdict, why = pitfalls.verdict(self.facts)
        best = order[0]
        given = plan.given
        return {
            "verdict": verdict,
            "verdict_reason": why,
            "goal": goal,
            "model": self.name,
            "parameters": self.parameters,
            "data": self.facts.as_json(),
            "methods": [_row(one, goal, self.task.type, order) for one in order],
            "left_out": dict(refused),
            "warnings": pitfalls.warnings(self.facts, best.method, best.forecast, self.parameters, given),
            "config": plan.config(best, values),
        }


class _Plan:
    """Settings and forecasts of the methods on one base."""

    def __init__(self, base: _Base, depths: Sequence[_Depth], given: Mapping[str, Any], room: float) -> None:
        self.base, self.depths, self.given, self.room = base, depths, dict(given), room
        self.rows = base.facts.rows["train"]
        self.training: dict[str, TrainingSettings] = {}

    def fits(self, one: Candidate) -> bool:
        """Whether even the high forecast is no more than there is."""
        return one.forecast.peak_memory_bytes.high <= self.room

    def candidate(self, one: Measured) -> Candidate:
        """A method with its forecast, in batches that fit."""
        base, method = self.base, self.base.method(one)
        wanted = self.given.get("per_device_train_batch_size") or start.batch(self.rows)
        accumulation = self.given.get("gradient_accumulation_steps") or 1
        while True:
            with _on(base.whole, method, base.device) as adapter:
                trained = adapter.trainable_parameters
                settings = TrainingSettings.parse(
                    start.training_settings(
                        method,
                        self.rows,
                        wanted,
                        accumulation,
                        trained=trained,
                        generates=base.task.predicts == "next classes",
                        given=self.given,
                    ),
                    "training",
                )
                said = self._forecast(adapter, method, settings)
            own = start.method_settings(method, self.rows, width_of(base.loaded.model), trained)
            serves = rank.meets("serve-vllm", method, base.task.trains_head) is None
            found = Candidate(one, method.model_copy(update=own), said, method.can.merge, serves)
            self.training[one.name] = settings
            if self.fits(found) or wanted == 1 or "per_device_train_batch_size" in self.given:
                return found
            wanted, accumulation = wanted // 2, accumulation * 2

    def _forecast(self, adapter: Any, method: Method, settings: TrainingSettings) -> Forecast:
        base, sample = self.base, self.base.examples
        count = -(-self.rows // settings.per_device_train_batch_size)
        return forecast(
            adapter,
            self._work(method, settings),
            settings,
            sample,
            steps=batches.steps_of(count, settings),
            process=round(constants().process),
            stored=stored_bytes(base.name),
            device=base.device,
            sample=len(sample["train"]) / self.rows,
        )

    def _work(self, method: Method, settings: TrainingSettings) -> Work:
        found = []
        for depth in self.depths:
            processor, device = depth.ground.loaded.processor, self.base.device
            with _on(depth.ground, method, device) as adapter:
                found.append(work_of(adapter, self.base.task, processor, self.base.examples, settings, device))
        return found[1].deepened(found[0], max(0, self.depths[1].blocks - DEPTHS[1]))

    def config(self, best: Candidate, values: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the best method: what was given, and what was not."""
        own = best.method.model_dump(mode="json")
        plain = type(best.method)().model_dump(mode="json")
        changed = {name: value for name, value in own.items() if value != plain[name]}
        return {
            **values,
            "model": self.base.name,
            "method": {"type": best.method.type, **changed},
            "training": self.training[best.measured.name].model_dump(mode="json", exclude_unset=True),
            "output_dir": values.get("output_dir", "runs/advised"),
        }


def _best_base(bases: Sequence[_Base], goal: Goal) -> tuple[_Base, str]:
    """The base whose tokenizer fits the texts, and of those the largest, or the smallest where cost is the goal."""

    def fit(base: _Base) -> float:
        return (base.facts.pieces_per_word or 1.0) * (1 + 10 * (base.facts.unknown or 0.0))

    least = min(fit(base) for base in bases)
    fitting = [base for base in bases if fit(base) <= 1.3 * least and base.facts.truncated <= 0.2]
    fitting = fitting or list(bases)
    if goal in ("memory", "speed", "smallest-file"):
        return min(fitting, key=lambda base: base.parameters), "the smallest of those whose tokenizer fits the rows"
    return max(fitting, key=lambda base: base.parameters), "the largest of those whose tokenizer fits the rows"


def _row(one: Candidate, goal: Goal, task: str, others: Sequence[Candidate]) -> dict[str, Any]:
    said = one.forecast.as_json()
    joules = one.forecast.total_seconds.expected * TrainingSettings().watts_per_core
    return {
        "name": one.measured.name,
        "method": one.method.type,
        "settings": one.method.model_dump(mode="json", exclude_unset=True),
        "learning_rate": one.method.learning_rate,
        **{name: said[name] for name in ("trained_parameters", "adapter_bytes", "peak_memory_bytes", "step_seconds")},
        **{name: said[name] for name in ("steps", "train_seconds", "total_seconds")},
        "joules": {"expected": round(joules), "source": f"estimate: time x {TrainingSettings().watts_per_core:g} W"},
        "merges": one.merges,
        "reasons": rank.reasons(one, goal, task, others),
    }


@contextmanager
def _on(ground: Ground, method: Method, device: str) -> Iterator[Adapter]:
    """An adapter of a method on a model without values, for as long as it is looked at."""
    with valueless(device):
        adapter = attached(ground, method, 0)
    try:
        yield adapter
    finally:
        adapter.detach()


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """Rows spread evenly over all of them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]


def _free() -> int:
    """Bytes that a training may take: free on the GPU, or available in the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
