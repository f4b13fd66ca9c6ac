"""Forecasting: the next values of series with their uncertainty (prices, sales, load), from their own past.

row        {time, value, series?}: a long table; windows are cut from it, and parts are split by time
model      PatchTST with a head for quantiles, TimesFM 2.5, whose own quantiles it keeps, or TimeSeriesTransformer
loss       quantile loss of the changes from the last known value, in units of the window's own spread; of a
           TimeSeriesTransformer its own: -log p of each next value (core/sample_paths.py)
metrics    quantile loss, MASE, MAE, coverage of the outermost quantiles, direction
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from transformers import AutoConfig, PatchTSTForPrediction, TimesFm2_5ModelForPrediction

from deltatune.core import forecast_baselines, forecast_plot, sample_paths, series
from deltatune.core.codes import codes_of, texts_in
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.forecast_scores import forecast_scores, seasonal_changes, step
from deltatune.core.labels import called, number
from deltatune.core.pretrained import check_source, pretrained, quiet
from deltatune.core.sample_paths import KIND, Drawn, PathReader
from deltatune.core.series import Clock, Transform
from deltatune.core.task import LABELS, Batch, Column, Example, Loaded, Row, Task, inputs_of
from deltatune.core.window_cover import held, outside
from deltatune.ops.pinball import pinball

logger = logging.getLogger("deltatune")

TIMESFM = "timesfm2_5"
"""Its model type, and the processor of its examples: it takes series as they are and has no mask."""
ASKED = "asked"
"""Marks rows of a history whose future is to be told."""
KNOWN, ORIGIN, SPREAD, TIMES, NAME = (f"{LABELS}_{word}" for word in ("known", "origin", "spread", "times", "name"))


class Forecasting(Task):
    """Settings of forecasting."""

    type: ClassVar[str] = "forecasting"
    title: ClassVar[str] = "Forecasts of series with quantiles"
    columns: ClassVar[Mapping[str, Column]] = {
        "time": Column(("time", "date", "datetime", "timestamp", "ds")),
        "value": Column(("value", "y", "close", "price", "target")),
        "series": Column(("series", "unique_id", "item_id", "symbol", "ticker"), required=False),
    }
    label: ClassVar[str | None] = None
    key: ClassVar[tuple[str, ...]] = ("series", "time")
    counted: ClassVar[str] = "values"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "mean_quantile_loss", "mase", "mae"})
    resamples: ClassVar[int] = 200

    context_length: Annotated[int, Field(ge=4)] = 64
    """Values (or changes) the model reads, those of its lags too; as many as its checkpoint was made for."""
    prediction_length: Annotated[int, Field(ge=1)] = 10
    """Steps ahead."""
    stride: Annotated[int, Field(ge=1)] = 1
    """Steps from one window to the next."""
    transform: Transform = "none"
    """What the model reads: the values, their differences, or log-returns (prices)."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Quantiles of the forecast, ascending, 0.5 among them."""
    season: Annotated[int, Field(ge=1)] = 1
    """Steps of a season, for MASE and the seasonal baseline; 1: none."""
    missing: Literal["mask", "reject"] = "mask"
    """A missing value is shown to the model as such, or its row is rejected (and the next value follows at once)."""
    time_format: str | None = None
    """How times are written where it is neither ISO 8601 nor a number (`%m/%d/%Y`)."""
    steps: dict[str, float] | None = None
    """Mean seasonal step of every series in the training rows, by which errors are scaled; filled in."""
    spread: float | None = None
    """Usual spread of a window, for one that is constant; filled in."""
    clock: Clock = "date"
    """What times are written as; filled in."""

    @field_validator("quantiles")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 0.5 not in value or any(a >= b for a, b in pairwise(value)):
            raise ValueError("quantiles must ascend and 0.5 must be among them")
        return value

    @property
    def metric(self) -> str:
        """Quantile loss: the whole forecast counts, not its middle alone."""
        return "mean_quantile_loss"

    @property
    def predicts(self) -> Literal["classes", "next classes", "labels", "values"]:
        """Numbers."""
        return "values"

    # -- rows

    def check(self, row: Row) -> str | None:
        """A time that is none, a value that is no number, or not positive where its logarithm is taken."""
        if series.moment(row.get("time"), self.time_format) is None:
            return f"time is not a time ({row.get('time')!r}; task.time_format says how it is written)"
        if "value" not in row:
            return "there is no value (name its column: data.columns.value)"
        value = row["value"]
        if value is None or (isinstance(value, str) and not value.strip()) or value != value:
            return "value is missing" if self.missing == "reject" else None
        found = number(value)
        if found is None:
            return f"value is not a number ({value!r})"
        if self.transform == "log-return" and found <= 0:
            return f"value is not positive ({found:g}; task.transform: difference takes any number)"
        return None

    def asked(self, row: Row) -> Row:
        """A row of a history behind which the forecast begins."""
        return {**row, ASKED: True}

    def identity(self, row: Row) -> Hashable:
        """Series and time, however the time is written."""
        return called(row.get("series")), series.moment(row.get("time"), self.time_format)

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Windows share most of their values by nature: none is near another one."""
        return ()

    @property
    def _values(self) -> int:
        """Values behind a window: one more than the changes the model reads."""
        return self.context_length + (self.transform != "none")

    @property
    def _window(self) -> int:
        return self._values + self.prediction_length

    def compose(self, rows: Sequence[Row]) -> list[Row]:
        """Windows of every series, or its last one where the future is asked for."""
        asked = any(ASKED in row for row in rows)
        found, clock, notes = series.gathered(rows, self.time_format, 0 if asked else self._window)
        for note in notes:
            logger.warning("%s", note)
        if asked:
            return [series.last(own, self._values, self.prediction_length, clock) for own in found]
        windows = [window for own in found for window in self._windows(own, clock, 0, len(own.values))]
        if not windows:
            raise DataError(series.too_short(found, self._window))
        return windows

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """By time, the same moments for all series: futures of a part come after those of the part before.

        Between two parts lie `prediction_length` steps whose values are in no future.
        """
        found, clock, notes = series.gathered(rows, self.time_format, self._window)
        for note in notes:
            logger.warning("%s", note)
        times = np.unique(np.concatenate([own.times for own in found]))
        parts: dict[str, list[Row]] = {}
        for name, (start, end) in series.borders(len(times), shares, self.prediction_length).items():
            parts[name] = []
            for own in found if end > start else ():
                first = int(np.searchsorted(own.times, times[start]))
                last = int(np.searchsorted(own.times, times[end - 1], "right"))
                parts[name] += self._windows(own, clock, first, last)
        if not parts["train"]:
            raise DataError(series.too_short(found, self._window))
        return parts

    def unused(self, rows: Sequence[Row], composed: Sequence[Row]) -> dict[int, str]:
        """Values that no window holds: of short series, between two parts, and where little is known."""
        return outside(rows, composed, self.time_format, self._window)

    def consists_of(self, composed: Sequence[Row]) -> int:
        """The different times of the windows."""
        return sum(map(len, held(composed).values()))

    def called(self, row: Row) -> str:
        """By series and first time."""
        return f"series {row['series']!r} from {series.written(row['times'][0], row['clock'])}"

    def _windows(self, own: series.Series, clock: Clock, first: int, last: int) -> list[Row]:
        found = series.windows(own, self._values, self.prediction_length, self.stride, first, last, self.transform)
        return [{**window, "clock": clock} for window in found]

    def unusable(self, example: Example) -> str | None:
        """A history that is too short, or of which too little is known."""
        known = int(example["observed"].sum())
        if 2 * known >= self.context_length:
            return None
        what = "values" if self.transform == "none" else "changes"
        return (
            f"series {example['name']!r}: {known} {what} are known before the forecast; the model reads "
            f"{self.context_length} and needs half of them"
        )

    def fit(self, rows: Sequence[Row]) -> "Forecasting":
        """How far each series goes in a season, and the usual spread of a window."""
        if self.season > self.context_length:
            raise SettingsError(f"task.season ({self.season}) is longer than task.context_length", hint="lengthen that")
        changes: dict[str, dict[float, float]] = defaultdict(dict)  # by time: windows overlap, or leave holes
        for row in rows:
            own = seasonal_changes([*row["context"], *row["future"]], self.season)
            changes[row["series"]] |= dict(zip(row["times"][self.season :], own.tolist(), strict=True))
        steps = {}
        for name, by_time in changes.items():
            found = step(list(by_time.values()))
            if found == 0:
                what = "does not change" if self.season == 1 else f"repeats itself every {self.season} steps"
                raise DataError(
                    f"series {name!r} {what} in the training rows", hint="leave it out: nothing is to learn"
                )
            steps[name] = found
        spreads = [series.spread(series.read(np.array(row["context"]), self.transform))[1] for row in rows]
        usual = float(np.median([found for found in spreads if found > 0] or [1.0]))
        return self.model_copy(update={"steps": steps, "spread": usual, "clock": rows[0]["clock"]})

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The network; PatchTST with a head of one output per step and quantile, new unless it was trained as one.

        PatchTST and TimeSeriesTransformer are loaded in float32: they are small, and read values of many digits.
        """
        check_source(model)
        with quiet():
            try:
                config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise SettingsError(f"model {model!r} has no usable config: {str(error).splitlines()[0]}") from None
        if config.model_type == TIMESFM:
            self._check_timesfm(model, config)
            own = {"context_length": self.context_length, "infer_is_positive": False}  # else values are cut at zero
            network, new = pretrained(TimesFm2_5ModelForPrediction, model, dtype, KIND, **own)
            return Loaded(network, TIMESFM, new)
        if config.model_type == "time_series_transformer":
            behind = self.context_length, self.prediction_length, self.clock
            return sample_paths.load_paths(model, config, behind, self.spread)
        if config.model_type != "patchtst":
            raise SettingsError(
                f"model {model!r} is of type {config.model_type}, which is not read here",
                hint="patchtst, timesfm2_5 and time_series_transformer are; informer's answers are drawn at random",
            )
        self._check_patchtst(model, config)
        outputs = self.prediction_length * len(self.quantiles)
        one = {"num_input_channels": 1, "share_projection": True, "prediction_length": outputs}
        network, new = pretrained(PatchTSTForPrediction, model, torch.float32, KIND, loss="mse", **one)
        return Loaded(network, None, new)

    def _check_patchtst(self, model: str, config: Any) -> None:
        if config.context_length != self.context_length:
            raise SettingsError(
                f"model {model!r} reads {config.context_length} values, task.context_length is {self.context_length}",
                hint=f"set task.context_length: {config.context_length}",
            )
        if config.num_input_channels != 1 and (config.channel_attention or not config.share_embedding):
            raise SettingsError(
                f"model {model!r} reads {config.num_input_channels} series side by side and has weights for each",
                hint="one series at a time is read here: take one with share_embedding and without channel_attention",
            )

    def _check_timesfm(self, model: str, config: Any) -> None:
        if tuple(config.quantiles) != self.quantiles:
            raise SettingsError(
                f"model {model!r} has quantiles of its own", hint=f"set task.quantiles: {list(config.quantiles)}"
            )
        if self.transform != "none":
            raise SettingsError(
                f"model {model!r} tells the next values of what it reads, which for {self.transform}s are not the "
                "changes from the last value",
                hint="set task.transform: none",
            )
        most = min(config.horizon_length, config.output_quantile_len)
        if self.prediction_length > most or self.context_length % config.patch_length:
            raise SettingsError(
                f"model {model!r} looks {most} steps ahead from patches of {config.patch_length}",
                hint=f"task.prediction_length at most {most}, task.context_length a multiple of {config.patch_length}",
            )
        if self.context_length > config.context_length:
            raise SettingsError(f"model {model!r} reads {config.context_length} values at most")

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Windows on their own scale, with what turns answers back into values."""
        return [self._encoded(row, processor) for row in rows]

    def _encoded(self, row: Row, processor: Any) -> Example:
        context = np.array(row["context"], dtype=np.float64)
        values = series.read(context, self.transform)
        mean, spread = series.spread(values)
        spread = spread or self.spread or 1.0
        filled = series.bridged(values) if self.transform == "none" else values  # a change that is missing is the mean
        example = {
            "values": np.nan_to_num((filled - mean) / spread).astype(np.float32),
            "observed": (~np.isnan(values)).astype(np.float32),
            "origin": context[-1],
            "spread": spread,
            "name": row["series"],
            "times": row["times"][-self.prediction_length :],
            "length": self.context_length,
        }
        if "future" in row:
            future = series.change(context[-1], np.array(row["future"], dtype=np.float64), self.transform) / spread
            example |= {"future": np.nan_to_num(future).astype(np.float32), "known": ~np.isnan(future)}
        if isinstance(processor, PathReader):
            return {**example, **processor.encoded(row, self.transform, self.prediction_length)}
        return example

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Values and mask [B, T, 1], values [B, T] for TimesFM, or what paths start from; what is asked for [B, H]."""

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([example[name] for example in examples]))

        if isinstance(processor, PathReader):
            inputs = processor.inputs(examples)
        elif processor == TIMESFM:
            inputs = {"past_values": stacked("values")}
        else:
            inputs = {"past_values": stacked("values")[..., None], "past_observed_mask": stacked("observed")[..., None]}
        batch = {
            **inputs,
            ORIGIN: stacked("origin"),
            SPREAD: stacked("spread"),
            TIMES: stacked("times"),
            NAME: codes_of([example["name"] for example in examples]),
        }
        return batch | ({LABELS: stacked("future"), KNOWN: stacked("known")} if "future" in examples[0] else {})

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, or the paths that are drawn from it."""
        inputs = inputs_of(batch)
        return sample_paths.draw(model, batch, inputs) if sample_paths.TIMES in batch else model(**inputs)

    def _changes(self, output: Any, batch: Batch) -> Tensor:
        """Quantiles of the changes in units of the spread [B, H, Q], float32; TimesFM tells values on its own scale."""
        if isinstance(output, Drawn):
            about = batch[ORIGIN], batch[SPREAD], self.transform, self.quantiles
            return sample_paths.changes(output.paths_BSH, *about)
        if "full_predictions" in output:
            told: Tensor = output.full_predictions[:, : self.prediction_length, 1:].float()
            return told - batch["past_values"][:, -1:, None].float()
        given: Tensor = output.prediction_outputs[..., 0].float()
        return given.reshape(len(given), self.prediction_length, len(self.quantiles))

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean quantile loss over the known values of the batch, or -log p of its known steps, in float32."""
        wanted, known = batch[LABELS].float(), batch[KNOWN]
        if sample_paths.TIMES in batch:
            losses = sample_paths.losses(output, wanted)
        else:
            quantiles = torch.tensor(self.quantiles, device=wanted.device)
            losses = pinball(wanted[..., None] - self._changes(output, batch), quantiles).mean(-1)
        total: Tensor = losses[known].sum() / max(1, self.weight(batch))
        return total

    def weight(self, batch: Batch) -> int:
        """Values that are known."""
        return int(batch[KNOWN].sum())

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """The median, all quantiles and their times; quantiles that cross are put in order."""
        changes = self._changes(output, batch).double().sort(-1).values.cpu().numpy()
        scaled = changes * batch[SPREAD].cpu().numpy()[:, None, None]
        levels = series.level(batch[ORIGIN].cpu().numpy()[:, None, None], scaled, self.transform)
        answers = []
        for one, times, name in zip(levels, batch[TIMES].tolist(), texts_in(batch[NAME]), strict=True):
            about = {"times": [series.written(time, self.clock) for time in times], "series": name}
            answers.append({**forecast_baselines.answered(one, self.quantiles), **about})
        return answers

    def wanted(self, row: Row) -> Any:
        """The values as they came."""
        return row.get("future")

    def plot(self, axes: Any, answer: Mapping[str, Any], row: Row) -> bool:
        """The series up to the forecast, the forecast, and what came."""
        return forecast_plot.drawn(axes, answer, row)

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """On the scale of the values, errors in steps of each series."""
        given = np.array([list(answer["quantiles"].values()) for answer in answers]).transpose(0, 2, 1)
        known = self.steps or {}
        steps = [known.get(row["series"]) or step(seasonal_changes(row["context"], self.season)) or 1.0 for row in rows]
        wanted, origins = [row["future"] for row in rows], [row["context"][-1] for row in rows]
        return forecast_scores(wanted, given, self.quantiles, origins, steps)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The last value, with the changes of the training windows around it."""
        return "naive", self.baselines(train, rows)["naive"]

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Simple forecasts of the field, with quantiles from their own errors in the training windows."""
        found = forecast_baselines.answers(train, rows, self.transform, self.quantiles, self.season, self.spread or 1.0)
        return {name: self.score(answers, rows) for name, answers in found.items()}
