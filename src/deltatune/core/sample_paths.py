"""Sample paths: forecasts of TimeSeriesTransformer, which tells a distribution of the next value from those before it.

reads      context_length + max(lags_sequence) values (or changes) as they are: it scales each window itself
features   of the times of all values, behind and ahead (core/calendar.py)
loss       -log p(y) of each next value (or change) under its Student-t or normal distribution, given those before
forecast   S = num_parallel_samples paths: each draws a value, reads it, and draws the next one

Draws are quantiles of the distribution at the same numbers for every row and every time, a Latin hypercube (McKay,
Beckman, Conover 1979): at each step ahead one in each of S equal parts of (0, 1), in an order drawn from a fixed seed.
So an answer depends on nothing but its row.

Shapes: B rows, S paths, T values behind, H steps ahead, C features of times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, StudentT
from transformers import DynamicCache, EncoderDecoderCache, TimeSeriesTransformerForPrediction

from deltatune.core import calendar, series
from deltatune.core.errors import SettingsError
from deltatune.core.pretrained import pretrained
from deltatune.core.series import Clock, Transform
from deltatune.core.task import Batch, Example, Loaded, Row

KIND = "a forecasting model"
TIMES = "past_time_features"
"""Name in a batch that only these models read."""
AHEAD = "future_time_features"
SEED = 0
LEAST = 1e-3
"""The least scale of a window, in usual spreads: one that is zero throughout has none."""
HEADS = ("student_t", "normal")


@dataclass(frozen=True, slots=True)
class PathReader:
    """The processor of these models."""

    features: int

    def encoded(self, row: Row, transform: Transform, horizon: int) -> Example:
        """Values [T] as they are, features [T + H, C] of all times, and where it is known the future [H], step by step.

        A missing value is on the line between its neighbours behind, and as the last one ahead: a step must not know
        of the next. A missing change is the mean of those behind.
        """
        context = np.array(row["context"], dtype=np.float64)
        values = series.read(context, transform)
        mean = series.spread(values)[0]
        filled = series.bridged(values) if transform == "none" else np.where(np.isnan(values), mean, values)
        example = {
            "values": filled.astype(np.float32),
            "features": calendar.features(row["times"][-len(values) - horizon :], self.features),
        }
        if "future" not in row:
            return example
        future = np.concatenate([context[-1:], np.array(row["future"], dtype=np.float64)])
        steps = future[1:] if transform == "none" else series.read(future, transform)
        known = ~np.isnan(steps)
        ahead = _carried(future)[1:] if transform == "none" else np.where(known, steps, mean)
        return {**example, "future": ahead.astype(np.float32), "known": known}

    def inputs(self, examples: Sequence[Example]) -> Batch:
        """What the model reads: values and their mask [B, T], features [B, T, C] and [B, H, C], the future [B, H]."""
        names = {"past_values": "values", "past_observed_mask": "observed", "future_values": "future"}
        batch = {
            name: torch.from_numpy(np.stack([example[own] for example in examples]))
            for name, own in names.items()
            if own in examples[0]
        }
        features = torch.from_numpy(np.stack([example["features"] for example in examples]))
        past = batch["past_values"].shape[1]
        return batch | {TIMES: features[:, :past], AHEAD: features[:, past:]}


@dataclass(frozen=True, slots=True)
class Drawn:
    """Paths of a batch, and what the loss is computed from where its future is known."""

    paths_BSH: Tensor
    """Values or changes, step by step, float64."""
    params: tuple[Tensor, ...] | None
    loc: Tensor
    scale: Tensor


def losses(output: Any, future_BH: Tensor) -> Tensor:
    """-log p of each step [B, H] under the distribution that the model told for it, in float32."""
    told = [part.float() for part in output.params]
    loc, scale = output.loc.float(), output.scale.float()
    standard: Any = Normal(*told) if len(told) == 2 else StudentT(*told)
    found: Tensor = scale.log() - standard.log_prob((future_BH.float() - loc) / scale)
    return found


def draw(network: Any, batch: Batch, inputs: Mapping[str, Tensor]) -> Drawn:
    """Paths behind every row; the encoder runs once for them and for the loss."""
    output = network(**inputs)
    count, ahead = network.config.num_parallel_samples, batch[AHEAD]

    def each(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(count, dim=0)

    loc, scale = each(output.loc), each(output.scale)
    paths = (each(batch["past_values"]) - loc) / scale
    static = output.static_features[:, None].expand(-1, ahead.shape[1], -1)
    features, heard = each(torch.cat([static, ahead], -1)), each(output.encoder_last_hidden_state)
    crossed = DynamicCache(config=network.config)  # kept; what is drawn is not: alone, it would be at the first place
    for step, numbers in enumerate(hypercube(count, ahead.shape[1]).T):
        lags = network.model.get_lagged_subsequences(paths, subsequences_length=1 + step, shift=1).flatten(2)
        reads = torch.cat([lags, features[:, : 1 + step]], -1)
        kept = EncoderDecoderCache(DynamicCache(config=network.config), crossed)
        told = network.model.decoder(
            inputs_embeds=reads, encoder_hidden_states=heard, past_key_values=kept, use_cache=True
        )
        params = network.parameter_projection(told.last_hidden_state[:, -1:])
        drawn = values_at([part.double() for part in params], np.tile(numbers, len(ahead))[:, None])
        paths = torch.cat([paths, drawn.to(paths)], 1)
    levels = paths[:, -ahead.shape[1] :].double() * scale.double() + loc.double()
    return Drawn(levels.reshape(len(ahead), count, -1), output.params, output.loc, output.scale)


def changes(paths_BSH: Tensor, origin_B: Tensor, spread_B: Tensor, transform: Transform, at: Sequence[float]) -> Tensor:
    """Quantiles [B, H, Q] of the changes from the last known value, in spreads, float32; steps of change add up."""
    found = paths_BSH - origin_B[:, None, None] if transform == "none" else paths_BSH.cumsum(-1)
    shares = torch.tensor(at, dtype=found.dtype, device=found.device)
    return torch.quantile(found / spread_B[:, None, None], shares, dim=1).permute(1, 2, 0).float()


def values_at(params: Sequence[Tensor], numbers: Any) -> Tensor:
    """Values under which lie the shares `numbers` of a normal (loc, scale) or Student-t (df, loc, scale) distribution.

    >>> values_at([torch.tensor(2.0), torch.tensor(3.0)], np.array(0.5))
    tensor(2., dtype=torch.float64)
    """
    from scipy.special import ndtri, stdtrit  # torch has no quantiles of Student's t

    *freedom, loc, scale = params
    standard = stdtrit(freedom[0].cpu().numpy(), numbers) if freedom else ndtri(numbers)
    return loc + scale * torch.as_tensor(standard, dtype=torch.float64, device=loc.device)


def hypercube(count: int, steps: int) -> Any:
    """Numbers [count, steps] in (0, 1), in each column the middles of as many equal parts, in an order of its own.

    >>> sorted(hypercube(4, 2)[:, 1].tolist())
    [0.125, 0.375, 0.625, 0.875]
    """
    chance = np.random.default_rng(SEED)
    return (np.stack([chance.permutation(count) for _ in range(steps)], 1) + 0.5) / count


def load_paths(model: str, config: Any, task: tuple[int, int, Clock], spread: float | None) -> Loaded:
    """The network, in float32, and its reader; `task` is values behind, steps ahead and the clock.

    A window that is zero throughout, or of which the encoder knows no value, is scaled by the usual `spread`: the model
    would divide by almost nothing, or by the scale of the rows beside it. Raises `SettingsError`.
    """
    _check(model, config, *task)
    network, new = pretrained(TimeSeriesTransformerForPrediction, model, torch.float32, KIND)
    if spread is not None and config.scaling in ("mean", True):
        network.model.scaler.default_scale, network.model.scaler.minimum_scale = spread, LEAST * spread
    return Loaded(network, PathReader(config.num_time_features), new)


def _check(model: str, config: Any, behind: int, ahead: int, clock: Clock) -> None:
    longest = max(config.lags_sequence)
    if behind != config.context_length + longest:
        raise SettingsError(
            f"model {model!r} reads {config.context_length} values and lags of up to {longest} behind them, "
            f"task.context_length is {behind}",
            hint=f"set task.context_length: {config.context_length + longest}",
        )
    if ahead != config.prediction_length:
        raise SettingsError(
            f"model {model!r} looks {config.prediction_length} steps ahead, task.prediction_length is {ahead}",
            hint=f"set task.prediction_length: {config.prediction_length}",
        )
    if config.input_size != 1:
        raise SettingsError(f"model {model!r} reads {config.input_size} series side by side; here it is one at a time")
    for kind in ("static_categorical", "static_real", "dynamic_real"):
        if count := getattr(config, f"num_{kind}_features"):
            raise SettingsError(
                f"model {model!r} reads {count} {kind.replace('_', ' ')} features, which a table of times and values "
                "has no columns for",
                hint="take a model without (its config's num_static_... and num_dynamic_real_features are 0)",
            )
    if config.distribution_output not in HEADS:
        raise SettingsError(
            f"model {model!r} tells a {config.distribution_output} distribution, under which only whole numbers from 0 "
            "on have a likelihood",
            hint=f"take one whose distribution_output is {' or '.join(HEADS)}",
        )
    most = max(calendar.PLACES)
    if config.num_time_features > most:
        raise SettingsError(f"model {model!r} reads {config.num_time_features} features of times; {most} are known")
    if clock == "number" and calendar.PLACES[config.num_time_features]:
        raise SettingsError(
            f"model {model!r} reads {', '.join(calendar.PLACES[config.num_time_features])}, and times that are "
            "numbers have none",
            hint="write times as dates, or take a model with num_time_features of 0 or 1",
        )


def _carried(values: Any) -> Any:
    """Values [n] of which the first is known; one that is missing is as the last one before it.

    >>> _carried(np.array([1.0, np.nan, 3.0, np.nan])).tolist()
    [1.0, 1.0, 3.0, 3.0]
    """
    return values[np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))]
