"""Settings: typed, frozen, closed. An unknown key is an error with near names, an alias is a notice.

One YAML file holds a run; `RunSettings` is its schema. Training keys are those of `TrainingArguments` of
transformers 5, method keys those of peft.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deltatune.core.errors import SettingsError, did_you_mean

logger = logging.getLogger("deltatune")


class Settings(BaseModel):
    """A frozen group of settings; attribute docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other tools' words for our keys; accepted with a notice."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Self:
        """Settings from plain values; raises `SettingsError` naming every wrong key under `where`.

        >>> DataSettings.parse({"trian": "a.csv"}, "data")
        Traceback (most recent call last):
        deltatune.core.errors.SettingsError: data.train: is required; data.trian: unknown key, did you mean train?
        """
        try:
            return cls.model_validate(cls._renamed(values, where))
        except ValidationError as error:
            raise SettingsError("; ".join(cls._explain(problem, where) for problem in error.errors())) from None

    @classmethod
    def _renamed(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values under our own names: aliases of this group and of nested groups replaced."""
        renamed: dict[str, Any] = {}
        written: dict[str, str] = {}
        for key, value in values.items():
            name = cls.aliases.get(key, key)
            if name != key:
                logger.warning("%s is read as %s", _path(where, key), _path(where, name))
            if name in written:
                both = f"as {written[name]} and as {key}"
                raise SettingsError(f"{_path(where, name)} is given twice ({both})", hint="keep one")
            written[name] = key
            nested = cls._group(name)
            if nested is not None and isinstance(value, Mapping):
                value = nested._renamed(value, _path(where, name))
            renamed[name] = value
        return renamed

    @classmethod
    def _explain(cls, problem: Any, where: str) -> str:
        """One problem of pydantic in our words: path, what is wrong, the value, near names."""
        steps = [str(step) for step in problem["loc"]]
        path = _path(where, *steps)
        if problem["type"] == "extra_forbidden":
            return f"{path}: unknown key, {did_you_mean(steps[-1], cls._names_at(steps[:-1]))}"
        if problem["type"] == "missing":
            return f"{path}: is required"
        text = problem["msg"].removeprefix("Value error, ")
        return f"{path}: {text} (got {problem['input']!r})" if path else text

    @classmethod
    def _names_at(cls, steps: Sequence[str]) -> list[str]:
        """The known keys of the group that `steps` leads to."""
        group: type[Settings] = cls
        for step in steps:
            nested = group._group(step)
            if nested is None:
                return []
            group = nested
        return list(group.model_fields)

    @classmethod
    def _group(cls, key: str) -> "type[Settings] | None":
        """The group of settings under a key, when there is one (optional or not)."""
        field = cls.model_fields.get(key)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)


def _path(*steps: str) -> str:
    return ".".join(step for step in steps if step)


class DataSettings(Settings):
    """Where the rows are, what their columns are called, and how they are split."""

    train: str
    """File (csv, tsv, jsonl, parquet) or `datasets` name with the rows to learn from."""
    validation: str | None = None
    """Rows to choose the best checkpoint by; split off from `train` when absent."""
    test: str | None = None
    """Held-out rows, scored once at the end; split off from `train` when absent."""
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)]] = {}
    """Task's word -> column of the file, where the names differ (`{text: review, label: stars}`), or a list of them."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the rows for validation, when no file is given."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the rows for the test, when no file is given."""
    split_seed: int = 42
    """Seed of the split; the same seed gives the same split whatever the training seed."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of rows that may be rejected before the run stops."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only this many training rows, drawn by `split_seed`; none means all."""
    allow_overlap: bool = False
    """Go on although rows of the training data, or groups of one part, stand in another one too."""
    group_column: str | None = None
    """Column of what rows belong to (patient, speaker, document): no group stands in two splits."""
    task_column: str | None = None
    """Column that names the task of each row, for training many tasks at once; conditional methods are told it."""


class DistillationSettings(Settings):
    """Learning from the answers of another model besides the labels."""

    teacher: str
    """`base` (the model without the adapter), an adapter folder or run, or a model folder or hub name."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """T: both distributions are softened by it, and the term is scaled by T^2."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the teacher's answers; the labels keep 1 - alpha."""
    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared distance between the last hidden states, through a trained map where widths differ."""


class TrainingSettings(Settings):
    """How to train; the names are those of `transformers.TrainingArguments` 5."""

    aliases: ClassVar[Mapping[str, str]] = {
        "lr": "learning_rate",
        "epochs": "num_train_epochs",
        "num_epochs": "num_train_epochs",
        "batch_size": "per_device_train_batch_size",
        "micro_batch_size": "per_device_train_batch_size",
        "eval_batch_size": "per_device_eval_batch_size",
        "grad_accum": "gradient_accumulation_steps",
        "patience": "early_stopping_patience",
        "torch_compile": "compile",
    }

    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever the epochs."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per forward pass and device."""
    max_tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    """Tokens per forward pass and device, padding counted, instead of rows: short rows come in larger batches."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows per forward pass and device when scoring."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimizer step; the loss is the mean over all their rows."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; none takes the default of the method."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the learning rate of output-side factors (LoRA+; 16 is usual, with half the learning rate)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay, on matrices only (never on biases and scales)."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.06
    """Steps to reach the peak; below 1 a share of all steps."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; none leaves them."""
    seed: int = 42
    """Seed of initial values, order of rows and dropout."""
    bf16: bool | Literal["auto"] = "auto"
    """Base in bfloat16: auto means on a GPU that has it."""
    base_dropout: bool = False
    """Keep the dropout of the frozen base while training an adapter."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 2.0
    """Gigabytes of memory for what leaves the frozen blocks below the lowest trained one, once per row; 0: none."""
    trunk_cache_dir: str | None = None
    """Folder where it is kept for other runs too; none: in memory, and in the user's cache where that is too little."""
    trunk_disk_gb: Annotated[float, Field(ge=0)] = 20.0
    """Gigabytes that the folder may take; what was unused for longest goes."""
    gradient_checkpointing: bool = False
    """Recompute activations of each block in backward: less memory, about half more time."""
    compile: bool = False
    """Run each block as one graph of `torch.compile` in training; the first steps take minutes."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Score on the validation rows every so many steps; none means after each epoch."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    """Write a line to metrics.jsonl every so many steps."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept besides the best adapter."""
    metric_for_best_model: str | None = None
    """Validation metric that chooses the adapter; none takes the main metric of the task."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = 3
    """Stop after this many evaluations without a better metric; none never stops."""
    report_to: list[Literal["tensorboard", "trackio", "mlflow", "wandb"]] = []
    """Where the log goes besides metrics.jsonl; tensorboard writes into the run folder, the others where they do."""
    sampling_temperature: Annotated[float, Field(gt=0)] | None = None
    """Share of a task of n rows in every epoch: n^(1/T) (1: as many as it has; 10 is usual); needs data.task_column."""
    watts_per_core: Annotated[float, Field(gt=0)] = 8.0
    """Watts of a busy core, for an estimate of the energy where the machine has no meter that can be read."""
    kg_co2_per_kwh: Annotated[float, Field(ge=0)] | None = None
    """Kilograms of CO2 per kilowatt hour of your electricity; none: energy is not turned into CO2."""
    distillation: DistillationSettings | None = None
    """Learn from a teacher too; none means from the labels alone."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """One name is a list of one, and `none` an empty one, as in transformers."""
        return [name for name in [value] if name != "none"] if isinstance(value, str) else value


class OldTaskSettings(Settings):
    """What the base was trained for before: a head of its checkpoint, and rows of its own."""

    task: str | dict[str, Any]
    """Task type, or a mapping with `type` and its settings, such as `labels`: its outputs as the rows call them."""
    data: str
    """File of rows with answers, such as the old task's test rows."""
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)]] = {}
    """Old task's word -> column of the file, where the names differ."""
    model: str | None = None
    """Checkpoint with the head, on the same backbone; none takes the run's model."""
    rows: Annotated[int, Field(ge=1)] = 256
    """Rows that are answered, drawn from the whole file by `data.split_seed`."""


class ForgettingSettings(Settings):
    """Measuring what the base knew before and after."""

    texts: str | None = None
    """File of general texts (a column `text`); none takes those of the validation rows, where they are texts."""
    rows: Annotated[int, Field(ge=4)] = 256
    """Validation rows and texts that are looked at."""
    old: OldTaskSettings | None = None
    """A task that the base has a trained head for: its metric before and after."""


class RunSettings(Settings):
    """One run: what to learn, on which model, from which rows, by which method."""

    aliases: ClassVar[Mapping[str, str]] = {
        "base_model": "model",
        "model_name_or_path": "model",
        "dataset": "data",
        "adapter": "method",
        "peft": "method",
    }

    task: str | dict[str, Any]
    """Task type, or a mapping with `type` and its settings (`{type: text-classification, max_length: 128}`)."""
    model: str
    """Hub name or folder of the pretrained model."""
    data: DataSettings
    """The rows."""
    method: str | dict[str, Any] | list[str | dict[str, Any]] = "lora"
    """Method type, a mapping with `type` and its settings (`{type: lora, r: 8}`), or a list of these: a mix."""
    training: TrainingSettings = TrainingSettings()
    """How to train."""
    forgetting: ForgettingSettings | None = None
    """Measure what the base forgot; none does not."""
    output_dir: str
    """Run folder; refused when it already holds another run."""

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if self.training.sampling_temperature is not None and self.data.task_column is None:
            raise ValueError("training.sampling_temperature has no effect without data.task_column")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a missing file, a syntax error and a repeated key are errors with their line."""
    if not path.is_file():
        near = [str(other) for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
        raise SettingsError(f"{path}: no such file", hint=did_you_mean(str(path), near) if near else None)
    try:
        values = _StrictLoader(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, without repeated keys."""
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def override(values: Mapping[str, Any], dotted: Mapping[str, str]) -> dict[str, Any]:
    """The values with `a.b.c: text` overrides applied; each text is read as a YAML scalar.

    >>> override({"training": {"seed": 1}, "method": "lora"}, {"training.seed": "2", "method.r": "16"})
    {'training': {'seed': 2}, 'method': {'type': 'lora', 'r': 16}}
    """
    result: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for path, text in dotted.items():
        *groups, last = path.split(".")
        target = result
        for group in groups:
            inner = target.get(group, {})
            target[group] = dict(inner) if isinstance(inner, Mapping) else {"type": inner}
            target = target[group]
        target[last] = yaml.safe_load(text)
    return result
