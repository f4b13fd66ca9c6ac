"""Forecasts: times, windows, the split by time, scales, scores, simple forecasts, three kinds of models, trainings."""

import csv
import json
import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
import torch
import transformers as tf
from sklearn.metrics import mean_pinball_loss

import deltatune
from deltatune.core import forecast_baselines, sample_paths, series
from deltatune.core.errors import DataError, DeltatuneError, SettingsError
from deltatune.core.forecast_scores import by_step, forecast_scores, seasonal_changes, step
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.ops.pinball import pinball
from deltatune.tasks.forecasting import Forecasting


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval is tested where it is made."""
    monkeypatch.setattr(Forecasting, "resamples", 5)


SMALL = {"context_length": 16, "prediction_length": 4}
THREE = {**SMALL, "quantiles": (0.1, 0.5, 0.9)}


def table(values, start=date(2020, 1, 6), name="a"):
    """One value a day."""
    return [
        {"time": (start + timedelta(days=day)).isoformat(), "value": v, "series": name} for day, v in enumerate(values)
    ]


def waves(count, name="a", noise=0.1, seed=0):
    chance = np.random.default_rng(seed)
    values = 10 + np.sin(np.arange(count) * math.tau / 8) + noise * chance.standard_normal(count)
    return table(values.round(4).tolist(), name=name)


def fitted(rows, **fields):
    found = task("forecasting", **{**THREE, **fields})
    windows = found.compose(rows)
    return found.fit(windows), windows


def patchtst(path, seed=0, **fields):
    torch.manual_seed(seed)
    settings = {
        "context_length": 16,
        "patch_length": 4,
        "patch_stride": 4,
        "prediction_length": 12,
        "d_model": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "init_std": 0.3,
    }
    tf.PatchTSTForPrediction(tf.PatchTSTConfig(**{**settings, **fields})).save_pretrained(path)
    return str(path)


QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def timesfm(path, seed=0):
    torch.manual_seed(seed)
    config = tf.TimesFm2_5Config(
        patch_length=8,
        context_length=32,
        horizon_length=8,
        output_quantile_len=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    tf.TimesFm2_5ModelForPrediction(config).save_pretrained(path)
    return str(path)


def sampler(path, seed=0, **fields):
    """12 values and lags of up to 4: 16 in all."""
    torch.manual_seed(seed)
    settings = {
        "context_length": 12,
        "prediction_length": 4,
        "lags_sequence": [1, 2, 4],
        "num_time_features": 4,
        "num_parallel_samples": 20,
        "d_model": 16,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "init_std": 0.3,
        "scaling": "std",
    }
    tf.TimeSeriesTransformerForPrediction(tf.TimeSeriesTransformerConfig(**{**settings, **fields})).save_pretrained(
        path
    )
    return str(path)


# -- times


@pytest.mark.parametrize(
    ("value", "form", "found"),
    [
        ("2020-01-02", None, (1577923200.0, "date")),
        ("20200102", None, (1577923200.0, "date")),
        ("2020-01-02T01:00:00+01:00", None, (1577923200.0, "datetime")),
        ("01/02/2020", "%m/%d/%Y", (1577923200.0, "date")),
        ("2020-01-02 13", None, (1577970000.0, "datetime")),
        ("01/02/2020 13h", "%m/%d/%Y %Hh", (1577970000.0, "datetime")),
        ("17", None, (17.0, "number")),
        (17.5, None, (17.5, "number")),
        (date(2020, 1, 2), None, (1577923200.0, "date")),
        (datetime(2020, 1, 2), None, (1577923200.0, "datetime")),
        ("01/02/2020", None, None),
        ("yesterday", None, None),
        (None, None, None),
    ],
)
def test_times_are_iso_numbers_or_as_the_settings_say(value, form, found):
    assert series.moment(value, form) == found


def test_series_are_put_in_order_and_what_is_odd_is_said():
    rows = [*table([1, 2, None, 4]), *table([5, 6], start=date(2020, 3, 1))]
    rows[0], rows[1] = rows[1], rows[0]
    (own,), clock, notes = series.gathered(rows, None)
    assert clock == "date" and np.isnan(own.values[2]) and own.values[[0, 1, 3, 4, 5]].tolist() == [1, 2, 4, 5, 6]
    assert "series 'a': 1 rows are not in order of time, the first is that of 2020-01-06; they are sorted" in notes
    assert "1 gaps of more than five steps, the longest from 2020-01-09 to 2020-03-01" in " ".join(notes)
    assert "series 'a': 1 values are missing and are masked" in notes


def test_series_are_called_by_their_numbers():
    rows = [*table([1, 2], name=0), *table([3, 4], name=1.0), *table([5, 6], name=None)]
    assert [own.name for own in series.gathered(rows, None)[0]] == ["0", "1", ""]


def test_a_time_that_comes_twice_and_two_kinds_of_times_are_errors():
    with pytest.raises(DataError, match="series 'a' has 2020-01-06 twice"):
        series.gathered([*table([1, 2]), *table([3])], None)
    with pytest.raises(DataError, match="some times are numbers and some are dates"):
        series.gathered([*table([1, 2]), {"time": "7", "value": 1}], None)


def test_the_next_times_follow_the_usual_step():
    days = [series.moment(row["time"], None)[0] for row in table(range(14))]
    shown = [series.written(time, "date") for time in series.following(days, 2, "date")]
    assert shown == ["2020-01-20", "2020-01-21"]
    working = [
        day for day, row in zip(days, table(range(14)), strict=True) if date.fromisoformat(row["time"]).weekday() < 5
    ]
    shown = [series.written(time, "date") for time in series.following(working, 6, "date")]
    assert shown == ["2020-01-20", "2020-01-21", "2020-01-22", "2020-01-23", "2020-01-24", "2020-01-27"]
    assert series.following([0, 3600, 7200], 2, "datetime") == [10800, 14400]
    assert series.following([5.0], 2, "number") == [6, 7]


# -- rows


def test_rows_that_cannot_be_used_say_why():
    found = task("forecasting", **THREE)
    assert found.check({"time": "2020-01-01", "value": "1.5"}) is None
    assert "time is not a time ('soon'" in found.check({"time": "soon", "value": 1})
    assert "value is not a number ('high')" in found.check({"time": "2020-01-01", "value": "high"})
    assert "there is no value" in found.check({"time": "2020-01-01"})
    assert found.check({"time": "2020-01-01", "value": ""}) is None
    strict = task("forecasting", **THREE, missing="reject", transform="log-return")
    assert strict.check({"time": "2020-01-01", "value": None}) == "value is missing"
    assert "value is not positive (-1" in strict.check({"time": "2020-01-01", "value": -1})


@pytest.mark.parametrize("quantiles", [(0.1, 0.9), (0.5, 0.1), (0.0, 0.5), (0.5, 0.5)])
def test_quantiles_ascend_and_have_the_middle(quantiles):
    with pytest.raises(SettingsError, match="quantiles"):
        task("forecasting", quantiles=quantiles)


# -- windows


def test_windows_are_the_values_before_and_behind_a_moment():
    found = task("forecasting", **THREE, stride=3)
    windows = found.compose(table(range(30)))
    assert [window["future"][0] for window in windows] == [16, 19, 22, 25]
    assert all(w["context"] == list(range(int(w["future"][0]) - 16, int(w["future"][0]))) for w in windows)
    assert windows[0]["future"] == [16, 17, 18, 19] and len(windows[0]["times"]) == 20
    changes = task("forecasting", **THREE, transform="difference").compose(table(range(30)))
    assert len(changes[0]["context"]) == 17


def test_windows_without_enough_that_is_known_are_left_out():
    values = [float(v) for v in range(40)]
    values[20] = None  # the last value before 21
    starts = [w["times"][16] for w in task("forecasting", **THREE).compose(table(values))]
    days = [series.moment(row["time"], None)[0] for row in table(values)]
    assert starts == [days[place] for place in range(16, 37) if place != 21]
    every_other = [float(v) if v % 2 else None for v in range(40)]
    assert task("forecasting", **THREE).compose(table(every_other))
    with pytest.raises(DataError, match="the longest series"):  # no change between neighbours is known
        task("forecasting", **THREE, transform="difference").compose(table(every_other))


@pytest.mark.parametrize("transform", ["none", "log-return"])
def test_what_is_asked_is_the_window_that_would_be_scored(transform):
    found, windows = fitted(waves(40), transform=transform)
    scored = next(w for w in windows if w["times"][-4] == series.moment("2020-02-05", None)[0])  # day 30
    (asked,) = found.compose([found.asked(row) for row in waves(40)[:30]])
    assert asked["context"] == scored["context"] and asked["times"] == scored["times"]
    (one, other) = (found.encode([row], None)[0] for row in (asked, scored))
    assert one["values"].tolist() == other["values"].tolist() and one["times"] == other["times"]


def test_a_short_series_beside_a_long_one_is_named():
    rows = [
        {**row, "series": name} for name, count in (("long", 60), ("short", 5)) for row in table(range(1, count + 1))
    ]
    notes = series.gathered(rows, None, 20)[2]
    assert notes == ["series 'short' has 5 values, a window takes 20: nothing of it is used"]
    assert not series.gathered(rows, None)[2]


def test_series_that_are_too_short_are_an_error_that_counts():
    with pytest.raises(DataError, match=r"the longest series \(a\) has 12 values; a window takes 20"):
        task("forecasting", **THREE).compose(table(range(12)))


def test_parts_follow_each_other_in_time_with_a_gap():
    found = task("forecasting", **THREE)
    rows = [*table(range(200), name="a"), *table(range(100, 150), start=date(2020, 4, 15), name="b")]
    parts = found.divide(rows, {"validation": 0.2, "test": 0.2}, seed=1)
    ends = {
        name: (min(w["times"][16] for w in part), max(w["times"][-1] for w in part)) for name, part in parts.items()
    }
    gap = 4 * series.DAY
    assert ends["train"][1] + gap < ends["validation"][0] and ends["validation"][1] + gap < ends["test"][0]
    assert {w["series"] for w in parts["validation"]} == {"a", "b"}
    assert parts == found.divide(rows, {"validation": 0.2, "test": 0.2}, seed=2)  # nothing is drawn
    told = {time for w in parts["train"] for time in w["times"]}
    assert not told & {time for name in ("validation", "test") for w in parts[name] for time in w["times"][16:]}


# -- scales


@pytest.mark.parametrize("transform", ["none", "difference", "log-return"])
def test_changes_and_levels_are_inverse(transform):
    values = np.array([3.0, 4.0, 2.5])
    assert np.allclose(series.level(2.0, series.change(2.0, values, transform), transform), values)


@pytest.mark.parametrize(
    ("transform", "scale", "shift"), [("none", 50.0, -7.0), ("difference", 0.01, 3.0), ("log-return", 1e3, 0.0)]
)
def test_forecasts_move_with_the_scale_of_the_series(tmp_path, transform, scale, shift):
    rows = waves(40)
    moved = [{**row, "value": scale * row["value"] + shift} for row in rows]
    answers = []
    for given in (rows, moved):
        found, windows = fitted(given, transform=transform)
        loaded = found.load(patchtst(tmp_path / transform))
        batch = found.collate(found.encode(windows, None), None)
        with torch.no_grad():
            answers.append(found.read(found.run(loaded.model.eval(), batch), batch))
    one, other = (np.array([answer["forecast"] for answer in part]) for part in answers)
    assert np.allclose(scale * one + shift, other, rtol=1e-4)


def test_a_constant_window_has_the_usual_spread():
    rows = [*waves(60), *table([5.0] * 40, start=date(2020, 6, 1), name="a")]
    found, windows = fitted(rows)
    flat = [w for w in windows if len(set(w["context"])) == 1]
    (example, *_) = found.encode(flat[:1], None)
    assert example["spread"] == found.spread > 0 and not example["values"].any()


def test_missing_values_are_masked_and_bridged():
    rows = waves(30, noise=0)
    rows[5]["value"] = None
    found, windows = fitted(rows)
    (example, *_) = found.encode(windows[:1], None)
    assert example["observed"].tolist() == [float(i != 5) for i in range(16)]
    assert example["values"][5] == pytest.approx((example["values"][4] + example["values"][6]) / 2, abs=1e-6)
    future = next(w for w in fitted(waves(30))[1])
    future["future"][1] = math.nan
    batch = found.collate(found.encode([future], None), None)
    assert found.weight(batch) == 3 and batch["labels_known"].tolist() == [[True, False, True, True]]


# -- loss and scores


def test_the_loss_is_the_quantile_loss_of_scikit_learn():
    chance = np.random.default_rng(0)
    wanted, given = chance.standard_normal(50), chance.standard_normal(50)
    for quantile in (0.1, 0.5, 0.8):
        expected = 2 * mean_pinball_loss(wanted, given, alpha=quantile)
        assert pinball(wanted - given, quantile).mean() == pytest.approx(expected)
        assert float(pinball(torch.tensor(wanted - given), quantile).mean()) == pytest.approx(expected)


def test_the_loss_counts_known_values_only():
    found, windows = fitted(waves(30))
    batch = found.collate(found.encode(windows[:3], None), None)
    batch["labels_known"][0, 0] = False
    output = tf.models.patchtst.modeling_patchtst.PatchTSTForPredictionOutput(prediction_outputs=torch.randn(3, 12, 1))
    given = output.prediction_outputs[..., 0].reshape(3, 4, 3).numpy()
    losses = [
        pinball(float(batch["labels"][row, ahead]) - given[row, ahead, place], quantile)
        for row in range(3)
        for ahead in range(4)
        if (row, ahead) != (0, 0)
        for place, quantile in enumerate(found.quantiles)
    ]
    assert float(found.loss(output, batch)) == pytest.approx(np.mean(losses), rel=1e-5)
    batch["labels"][0, 0] = 1e9
    assert float(found.loss(output, batch)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_scores_are_those_of_their_definitions():
    chance = np.random.default_rng(0)
    wanted, given = chance.standard_normal((30, 4)), np.sort(chance.standard_normal((30, 4, 3)), -1)
    wanted[0, 0] = math.nan
    origins, steps = chance.standard_normal(30), np.full(30, 0.5)
    found = forecast_scores(wanted, given, (0.1, 0.5, 0.9), origins, steps)
    known = [(row, ahead) for row in range(30) for ahead in range(4) if (row, ahead) != (0, 0)]
    assert found["mae"] == pytest.approx(np.mean([abs(wanted[p] - given[p][1]) for p in known]))
    assert found["mase"] == pytest.approx(found["mae"] / 0.5)
    losses = [
        mean_pinball_loss([wanted[p] for p in known], [given[p][place] for p in known], alpha=quantile)
        for place, quantile in enumerate((0.1, 0.5, 0.9))
    ]
    assert found["mean_quantile_loss"] == pytest.approx(2 * np.mean(losses) / 0.5)
    assert found["coverage"] == pytest.approx(np.mean([given[p][0] <= wanted[p] <= given[p][2] for p in known]))
    right = [(wanted[p] > origins[p[0]]) == (given[p][1] > origins[p[0]]) for p in known]
    assert found["direction_accuracy"] == pytest.approx(np.mean(right)) and found["coverage_wanted"] == 0.8


def test_mase_of_the_naive_forecast_one_step_ahead_is_one_in_the_rows_it_is_scaled_by():
    values = np.random.default_rng(0).standard_normal(200).cumsum()
    wanted, last = values[1:, None], values[:-1]
    given = np.repeat(last[:, None, None], 3, 2)
    assert forecast_scores(wanted, given, (0.1, 0.5, 0.9), last, np.full(199, step(seasonal_changes(values, 1))))[
        "mase"
    ] == pytest.approx(1)


def test_a_season_is_the_step_that_errors_are_measured_in():
    assert step(seasonal_changes([1.0, 5.0, 2.0, 7.0, math.nan], 2)) == pytest.approx(1.5)
    assert step(seasonal_changes([1.0], 1)) == 0


@pytest.mark.parametrize("season", [1, 3])
def test_the_step_is_that_of_the_series_and_does_not_reach_over_a_hole_between_windows(season):
    chance = np.random.default_rng(0)
    values = chance.standard_normal(100).cumsum()
    found, windows = fitted(table(values.tolist()), season=season)
    assert found.steps["a"] == pytest.approx(np.abs(values[season:] - values[:-season]).mean())
    some = found.fit([windows[0], windows[-1]])
    parts = np.concatenate([np.abs(part[season:] - part[:-season]) for part in (values[:20], values[-20:])])
    assert some.steps["a"] == pytest.approx(parts.mean())


def test_fit_knows_the_step_of_each_series_and_refuses_what_never_changes():
    found, _ = fitted([*table(range(40), name="a"), *table([3.0 * v for v in range(40)], name="b")])
    assert found.steps == {"a": 1.0, "b": 3.0} and found.clock == "date"
    with pytest.raises(DataError, match="series 'c' does not change in the training rows"):
        fitted(table([1.0] * 40, name="c"))
    with pytest.raises(SettingsError, match=r"task.season \(20\) is longer than task.context_length"):
        fitted(waves(40), season=20)


# -- simple forecasts


def test_simple_forecasts_have_the_quantiles_of_their_own_errors():
    chance = np.random.default_rng(0)
    rows = table((100 + chance.standard_normal(400).cumsum()).tolist())
    found, windows = fitted(rows)
    answers = forecast_baselines.answers(windows, windows, "none", found.quantiles, 1, 1.0)
    scores = found.score(answers["naive"], windows)
    assert scores["coverage"] == pytest.approx(0.8, abs=0.01)
    errors = np.array([np.array(w["future"]) - w["context"][-1] for w in windows])
    first = np.array(answers["naive"][0]["quantiles"]["0.9"]) - windows[0]["context"][-1]
    assert np.allclose(first, np.quantile(errors, 0.9, axis=0))
    assert np.allclose(by_step(errors, (0.5,))[:, 0], np.median(errors, 0))
    assert found.baseline(windows, windows)[1] == scores


def test_the_scaled_forecast_is_wider_where_a_window_moves_more():
    chance = np.random.default_rng(0)
    moves = np.concatenate([0.1 * chance.standard_normal(200), 3 * chance.standard_normal(200)])
    found, windows = fitted(table((500 + moves.cumsum()).tolist()), transform="difference")
    answers = forecast_baselines.answers(windows, windows, "difference", found.quantiles, 1, 1.0)
    width = [a["quantiles"]["0.9"][0] - a["quantiles"]["0.1"][0] for a in answers["naive, scaled"]]
    assert width[-1] > 10 * width[0]
    scores = {name: found.score(given, windows)["mean_quantile_loss"] for name, given in answers.items()}
    assert scores["naive, scaled"] < scores["naive"]


def test_the_seasonal_forecast_is_exact_for_a_season_and_smoothing_forgets_at_its_rate():
    found, windows = fitted(waves(60, noise=0.001), season=8)
    beside = found.baselines(windows, windows)
    assert beside["seasonal naive"]["mae"] < 0.01 < beside["naive"]["mae"]
    with pytest.raises(DataError, match="series 'a' repeats itself every 8 steps in the training rows"):
        fitted(waves(60, noise=0), season=8)
    past = forecast_baselines.Past.of([{"context": [1.0, 2.0, 4.0]}], "none", 1.0)
    level = 0.5 * 4 + 0.5 * (0.5 * 2 + 0.5 * 1)
    assert forecast_baselines._smoothed(past, 0.5, "none").tolist() == pytest.approx([level - 4])


# -- models


def test_a_head_for_all_quantiles_is_new_unless_the_checkpoint_has_it(tmp_path):
    found, windows = fitted(waves(40))
    fits, other = patchtst(tmp_path / "a"), patchtst(tmp_path / "b", prediction_length=96)
    assert found.load(fits).new == () and found.load(other).new == ("head.projection",)
    batch = found.collate(found.encode(windows[:5], None), None)
    assert set(inputs_of(batch)) == {"past_values", "past_observed_mask"}
    loaded = found.load(other)
    with torch.no_grad():
        answers = found.read(found.run(loaded.model, batch), batch)
    assert len(answers) == 5 and list(answers[0]["quantiles"]) == ["0.1", "0.5", "0.9"]
    assert answers[0]["forecast"] == answers[0]["quantiles"]["0.5"] and len(answers[0]["forecast"]) == 4
    levels = np.array([list(answer["quantiles"].values()) for answer in answers])
    assert (np.diff(levels, axis=1) >= 0).all()  # quantiles that cross are put in order
    assert answers[0]["times"] == ["2020-01-22", "2020-01-23", "2020-01-24", "2020-01-25"]


def test_a_model_of_several_channels_that_share_weights_reads_each_series_as_it_would(tmp_path):
    found, windows = fitted(waves(40))
    folder = patchtst(tmp_path / "m", num_input_channels=2)
    loaded, whole = found.load(folder), tf.PatchTSTForPrediction.from_pretrained(folder).eval()
    batch = found.collate(found.encode(windows[:5], None), None)
    values = batch["past_values"]
    with torch.no_grad():
        one = loaded.model.eval()(past_values=values).prediction_outputs[..., 0]
        both = whole(past_values=torch.cat([values, values.flip(1)], -1)).prediction_outputs[..., 0]
    assert loaded.new == () and torch.allclose(one, both, atol=1e-5)


def test_timesfm_forecasts_what_it_would_on_the_values_themselves(tmp_path):
    found, windows = fitted(waves(40), quantiles=QUANTILES)
    loaded = found.load(timesfm(tmp_path / "m"))
    network = loaded.model.eval()
    batch = found.collate(found.encode(windows[:5], loaded.processor), loaded.processor)
    with torch.no_grad():
        answers = found.read(found.run(network, batch), batch)
        raw = [torch.tensor(w["context"], dtype=torch.float32) for w in windows[:5]]
        told = network(past_values=raw, forecast_context_len=16, truncate_negative=False).full_predictions
    expected = told[:, :4, 1:].sort(-1).values.transpose(1, 2).numpy()
    assert np.allclose([list(answer["quantiles"].values()) for answer in answers], expected, atol=1e-3)


@pytest.mark.parametrize("make", [patchtst, timesfm, sampler])
def test_a_forecast_does_not_depend_on_its_neighbours(tmp_path, make):
    found, windows = fitted(waves(60), quantiles=QUANTILES)
    loaded = found.load(make(tmp_path / "m"))
    examples = found.encode(windows[:7], loaded.processor)

    def forecasts(chosen):
        batch = found.collate(chosen, loaded.processor)
        with torch.no_grad():
            return [answer["forecast"] for answer in found.read(found.run(loaded.model.eval(), batch), batch)]

    assert np.allclose(forecasts(examples), [forecasts([one])[0] for one in examples], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({"context_length": 24}, {}, "reads 24 values, task.context_length is 16; set task.context_length: 24"),
        ({"num_input_channels": 2, "channel_attention": True}, {}, "reads 2 series side by side and has weights for"),
        ({"num_input_channels": 2, "share_embedding": False}, {}, "reads 2 series side by side and has weights for"),
    ],
)
def test_patchtst_of_another_shape_is_refused(tmp_path, fields, settings, message):
    with pytest.raises(SettingsError, match=message):
        task("forecasting", **THREE, **settings).load(patchtst(tmp_path / "m", **fields))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**THREE}, "has quantiles of its own; set task.quantiles"),
        ({**SMALL, "transform": "log-return"}, "tells the next values of what it reads"),
        ({**SMALL, "prediction_length": 9}, "looks 8 steps ahead from patches of 8"),
        ({**SMALL, "context_length": 20}, "task.context_length a multiple of 8"),
        ({**SMALL, "context_length": 40}, "reads 32 values at most"),
    ],
)
def test_timesfm_is_refused_where_it_would_tell_something_else(tmp_path, settings, message):
    with pytest.raises(SettingsError, match=message):
        task("forecasting", **settings).load(timesfm(tmp_path / "m"))


def test_what_is_asked_of_a_short_history_has_times_in_front_of_it():
    (asked,) = task("forecasting", **THREE).compose([{**row, "asked": True} for row in waves(10)])
    days = [series.moment(row["time"], None)[0] for row in table(range(20), start=date(2019, 12, 31))]
    assert asked["times"] == days and np.isnan(asked["context"][:6]).all()


def told(found, folder, windows):
    """The batch of windows, and the network in use."""
    loaded = found.load(folder)
    batch = found.collate(found.encode(windows, loaded.processor), loaded.processor)
    return batch, loaded.model.eval()


@pytest.mark.parametrize("transform", ["none", "difference", "log-return"])
@pytest.mark.parametrize("head", ["student_t", "normal"])
def test_the_loss_of_a_sampler_is_its_own(tmp_path, transform, head):
    rows = waves(60)
    rows[25]["value"] = None
    found, windows = fitted(rows, transform=transform)
    windows = windows[4:10]
    batch, network = told(found, sampler(tmp_path / "m", distribution_output=head), windows)
    names = {"past_values", "past_observed_mask", "past_time_features", "future_time_features", "future_values"}
    assert set(inputs_of(batch)) == names and not batch["labels_known"].all()
    with torch.no_grad():
        own = network(**inputs_of(batch), future_observed_mask=batch["labels_known"].float()).loss
        drawn = found.run(network, batch)
        assert float(found.loss(drawn, batch)) == pytest.approx(float(own), rel=1e-5)
        output = network(**inputs_of(batch))
    assert float(found.loss(output, batch)) == pytest.approx(float(own), rel=1e-5)
    total = found.loss(output, batch) * found.weight(batch)
    parts = []
    for window in windows:
        one, _ = told(found, str(tmp_path / "m"), [window])
        with torch.no_grad():
            parts.append(float(found.loss(network(**inputs_of(one)), one)) * found.weight(one))
    assert sum(parts) == pytest.approx(float(total), rel=1e-4)


def test_a_sampler_is_shown_its_values_as_they_are_and_steps_do_not_know_of_the_next(tmp_path):
    found, windows = fitted(waves(60))
    window = {**windows[5], "future": [9.0, math.nan, 11.0, math.nan]}
    batch, _ = told(found, sampler(tmp_path / "m"), [window])
    assert np.allclose(batch["past_values"][0], window["context"])
    assert batch["future_values"].tolist() == [[9.0, 9.0, 11.0, 11.0]]
    assert batch["labels_known"].tolist() == [[True, False, True, False]] and found.weight(batch) == 2
    days = [datetime.fromtimestamp(time, tz=UTC).weekday() / 6 - 0.5 for time in window["times"]]
    features = torch.cat([batch["past_time_features"], batch["future_time_features"]], 1)
    assert features.shape == (1, 20, 4) and np.allclose(features[0, :, 0], days)


@pytest.mark.parametrize("head", ["student_t", "normal"])
@pytest.mark.parametrize("features", [0, 4])
def test_paths_are_those_that_the_model_generates_from_the_same_numbers(tmp_path, monkeypatch, head, features):
    found, windows = fitted(waves(60))
    folder = sampler(tmp_path / "m", distribution_output=head, num_time_features=features)
    batch, network = told(found, folder, windows[:5])
    with torch.no_grad():
        paths = found.run(network, batch).paths_BSH
    numbers = iter(sample_paths.hypercube(20, 4).T)

    class Chosen:
        def __init__(self, params, loc, scale):
            self.params, self.loc, self.scale = params, loc, scale

        def sample(self):
            drawn = sample_paths.values_at([part.double() for part in self.params], np.tile(next(numbers), 5)[:, None])
            return (self.loc + self.scale * drawn).float()

    inputs = {name: tensor for name, tensor in inputs_of(batch).items() if name != "future_values"}
    shown = network.output_distribution
    first = []

    def chosen(params, loc=None, scale=None, **about):
        if len(params[0]) == 5:  # what is not read: the forward of `generate` itself
            return shown(params, loc=loc, scale=scale, **about)
        first.append(params)
        return Chosen(params, loc, scale)

    monkeypatch.setattr(network, "output_distribution", chosen)
    assert torch.allclose(network.generate(**inputs).sequences.double(), paths, rtol=1e-4) and len(first) == 4


@pytest.mark.parametrize("scaling", ["mean", "std", None])
def test_answers_of_a_sampler_are_repeated_in_order_and_do_not_need_the_future(tmp_path, scaling):
    found, windows = fitted(waves(60))
    batch, network = told(found, sampler(tmp_path / "m", scaling=scaling), windows[:7])
    asked, _ = told(found, str(tmp_path / "m"), [{k: v for k, v in w.items() if k != "future"} for w in windows[:7]])
    assert "future_values" not in asked and "labels" not in asked
    with torch.no_grad():
        one, again, other = (found.read(found.run(network, part), part) for part in (batch, batch, asked))
    assert one == again == other
    levels = np.array([list(answer["quantiles"].values()) for answer in one])
    assert levels.shape == (7, 3, 4) and (np.diff(levels, axis=1) > 0).all()
    assert one[0]["forecast"] == one[0]["quantiles"]["0.5"]


def test_a_window_that_is_zero_throughout_is_scaled_by_the_usual_spread(tmp_path):
    rows = [*waves(60), *table([0.0] * 40, start=date(2020, 6, 1))]
    found, windows = fitted(rows)
    flat = next(w for w in windows if not any(w["context"]))
    batch, network = told(found, sampler(tmp_path / "m", scaling="mean", distribution_output="normal"), [flat])
    with torch.no_grad():
        drawn = found.run(network, batch)
    assert float(drawn.scale) == pytest.approx(1e-3 * found.spread)
    assert torch.isfinite(found.loss(drawn, batch)) and torch.isfinite(drawn.paths_BSH).all()


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({}, {"context_length": 12}, "lags of up to 4 behind them, task.context_length is 12; set .*length: 16"),
        ({}, {"prediction_length": 3}, "looks 4 steps ahead, task.prediction_length is 3; set .*length: 4"),
        ({"input_size": 2}, {}, "reads 2 series side by side"),
        (
            {"num_static_categorical_features": 1, "cardinality": [3]},
            {},
            "reads 1 static categorical features, which a table of times and values has no columns for",
        ),
        ({"num_static_real_features": 2}, {}, "reads 2 static real features"),
        ({"num_dynamic_real_features": 3}, {}, "reads 3 dynamic real features"),
        ({"distribution_output": "negative_binomial"}, {}, "only whole numbers from 0 on have a likelihood; take one"),
        ({"num_time_features": 8}, {}, "reads 8 features of times; 7 are known"),
        ({}, {"clock": "number"}, "reads day of week, day of month, day of year, and times that are numbers have none"),
    ],
)
def test_samplers_that_read_more_than_a_table_has_are_refused(tmp_path, fields, settings, message):
    with pytest.raises(SettingsError, match=message):
        task("forecasting", **{**THREE, **settings}).load(sampler(tmp_path / "m", **fields))


def test_models_of_other_kinds_are_refused(tmp_path):
    tf.InformerConfig(prediction_length=4, context_length=16, d_model=16).save_pretrained(tmp_path / "informer")
    with pytest.raises(SettingsError, match="is of type informer, which is not read here; patchtst, timesfm2_5 and"):
        task("forecasting", **THREE).load(str(tmp_path / "informer"))
    tf.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(SettingsError, match="is of type bert, which is not read here"):
        task("forecasting", **THREE).load(str(tmp_path / "bert"))
    with pytest.raises(SettingsError, match="does not exist"):
        task("forecasting", **THREE).load(str(tmp_path / "nowhere"))


# -- trainings


def save(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def train(tmp_path, method, steps, model, bf16=False, **fields):
    return deltatune.finetune(
        task={"type": "forecasting", **SMALL, **fields},
        model=model,
        data={
            "train": save(tmp_path / "train.csv", waves(240)),
            "validation_fraction": 0.2,
            "test_fraction": 0.2,
        },
        method=method,
        training={
            "max_steps": steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 16,
            "lr_scheduler_type": "constant",
            "early_stopping_patience": None,
            "bf16": bf16,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


def test_a_wave_is_learnt_by_lora_scored_again_and_continued(tmp_path):
    model = patchtst(tmp_path / "model")
    run = train(tmp_path, {"type": "lora", "r": 4, "target_modules": "all-linear"}, 80, model, season=8)
    found = run.results
    assert found["test"]["loss"] < 0.7 * found["before"]["loss"]
    assert found["test"]["mean_quantile_loss"] < found["baseline"]["mean_quantile_loss"]
    assert found["baseline"]["name"] == "naive"
    assert set(found["baselines"]) == {"naive", "naive, scaled", "exponential smoothing", "seasonal naive"}
    assert found["metric"] == "mean_quantile_loss" and found["rows"]["rejected"] == 0
    held = save(tmp_path / "held.csv", waves(60, seed=1))
    scored = deltatune.evaluate(run.folder, held)
    assert scored["rows"] == 60 - 16 - 4 + 1 and scored["mean_quantile_loss"] < 2 * found["test"]["mean_quantile_loss"]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in waves(60, seed=1)))
    (answer,) = deltatune.predict(run.folder, file=str(tmp_path / "held.jsonl"))
    assert answer["series"] == "a" and 8 < min(answer["forecast"]) < max(answer["forecast"]) < 12
    assert answer["times"][0] == (date(2020, 1, 6) + timedelta(days=60)).isoformat()


def test_a_sampler_learns_a_wave_by_lora_is_scored_again_and_continued(tmp_path):
    model = sampler(tmp_path / "model", encoder_layerdrop=0.0, decoder_layerdrop=0.0)
    run = train(tmp_path, {"type": "lora", "r": 4, "target_modules": "all-linear"}, 40, model, season=8)
    found = run.results
    assert found["test"]["loss"] < found["before"]["loss"] - 0.5
    assert found["test"]["mean_quantile_loss"] < found["baseline"]["mean_quantile_loss"]
    held = save(tmp_path / "held.csv", waves(60, seed=1))
    assert deltatune.evaluate(run.folder, held)["rows"] == 60 - 16 - 4 + 1
    answer, short, bad = deltatune.predict(
        run.folder, rows=[*waves(30), *table([1.0, 2.0], name="short"), {"time": "soon", "value": 1, "series": "x"}]
    )
    assert 8 < min(answer["forecast"]) < max(answer["forecast"]) < 12
    assert "series 'short': 2 values are known before the forecast; the model reads 16" in short["error"]
    assert "time is not a time ('soon'" in bad["error"]


def test_histories_that_cannot_be_continued_say_so_beside_the_others(tmp_path):
    run = train(tmp_path, "linear-probe", 1, patchtst(tmp_path / "model"))
    rows = [*waves(30), *table([1.0, 2.0], name="short"), {"time": "soon", "value": 1, "series": "x"}]
    answer, short, bad = deltatune.predict(run.folder, rows=rows)
    assert len(answer["forecast"]) == 4
    assert "series 'short': 2 values are known before the forecast; the model reads 16" in short["error"]
    assert "time is not a time ('soon'" in bad["error"]
    assert deltatune.predict(run.folder, rows=rows[-1:]) == [bad | {"error": bad["error"].replace("rows:33", "rows:1")}]
    (ended,) = deltatune.predict(run.folder, rows=[*waves(30), *table([None], start=date(2020, 2, 5))])
    assert ended["times"][0] == answer["times"][0]  # a forecast begins behind the last value that is known
    (padded,) = deltatune.predict(run.folder, rows=waves(10))
    assert len(padded["forecast"]) == 4


METHODS = ["lora", "ia3", "adapter", "bitfit", {"type": "prefix", "num_virtual_tokens": 3}, "linear-probe", "full"]


@pytest.mark.parametrize("make", [patchtst, timesfm, sampler])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method if isinstance(method, str) else method["type"])
def test_methods_of_every_kind_of_site_train(tmp_path, method, make):
    run = train(tmp_path, method, 2, make(tmp_path / "model"))
    assert run.results["train"]["steps"] == 2 and math.isfinite(run.results["test"]["loss"])


@pytest.mark.parametrize("make", [patchtst, timesfm, sampler])
def test_a_training_in_bfloat16_reads_values_of_many_digits(tmp_path, make):
    run = train(tmp_path, "lora", 2, make(tmp_path / "model"), bf16=True)
    assert math.isfinite(run.results["test"]["loss"])
    assert len(deltatune.predict(run.folder, rows=waves(30))[0]["forecast"]) == 4


@pytest.mark.parametrize("make", [patchtst, timesfm, sampler])
def test_prompts_have_no_place_before_patches(tmp_path, make):
    with pytest.raises(DeltatuneError, match="no embedded tokens that virtual tokens could stand in front of"):
        train(tmp_path, {"type": "prompt", "num_virtual_tokens": 2}, 2, make(tmp_path / "model"))
    assert not (tmp_path / "run").exists()
