"""The search of rates and sizes: what is tried, chosen and kept, with several processes, kills and a damaged file."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.comparison.choice import Choice, Tried, best, leading
from deltatune.comparison.entry import Entry
from deltatune.comparison.search import OWN, Search, sizes
from deltatune.core import registry
from deltatune.core.errors import SettingsError
from deltatune.store.lock import held
from shapes import count
from words import csv_file, model_folder, reviews

pytest.importorskip("optuna")

LORA = Entry("lora", {"type": "lora"}, 1e-3)
SIZED = sorted(name for name in registry.methods() if name != "mix" and registry.methods()[name]().sizes())


# -- sizes


@pytest.mark.parametrize("name", SIZED)
def test_every_size_is_settings_of_the_method_and_trains_another_number_of_values(name):
    own = registry.method(name)
    sized = [registry.method({"type": name, **own.model_dump(mode="json"), **one}) for one in own.sizes()]
    assert len({one.model_dump_json() for one in sized}) == len(sized) >= 3
    if name != "diff-pruning":  # trains two values per entry whatever it keeps
        assert len({count(one, "bert-base") for one in sized}) >= 3


@pytest.mark.parametrize("given", [{}, {"use_rslora": True}, {"r": 4, "lora_alpha": 32}])
def test_a_rank_keeps_the_scale(given):
    own = deltatune.LoRA(**given)

    def scale(method):
        return method.lora_alpha / (math.sqrt(method.r) if method.use_rslora else method.r)

    for one in own.sizes():
        assert scale(deltatune.LoRA(**{**given, **one})) == pytest.approx(scale(own))


def test_the_own_size_is_there_once():
    found = sizes(LORA)
    assert found[0] == OWN and len(found) == len(set(found))
    assert [json.loads(one)["r"] for one in found[1:]] == [2, 4, 16, 32, 64]
    assert sizes(Entry("full", {"type": "full"}, 1e-4)) == [OWN]


# -- choices


def test_the_longest_trials_choose_and_what_diverged_never_leads():
    own, fast = Choice(1e-3), Choice(1e-2, {"r": 4})
    tried = [Tried(own, 0.25, 0.7), Tried(fast, 0.25, float("-inf")), Tried(Choice(2e-3), 0.25, 0.7)]
    assert best(tried, own) == own
    assert leading(tried, own, 3) == [own, Choice(2e-3)]
    assert best([*tried, Tried(Choice(2e-3), 0.5, 0.1)], own) == Choice(2e-3)
    assert best([*tried, Tried(own, 0.5, float("-inf"))], own) == Choice(2e-3)  # longer it diverged
    assert best([Tried(fast, 0.25, float("-inf"))], own) == own == best([], own)


# -- the search by itself


def score(choice):
    """Best at a rate of 4e-3 with rank 16."""
    return -abs(math.log(choice.rate / 4e-3)) - abs(math.log(choice.changes.get("r", 8) / 16))


def searched(search, number):
    with search.opened([LORA], number):
        while (asked := search.ask(LORA)) is not None:
            search.tell(asked, score(asked.choice), 1.0)
    return search.found(LORA)


def test_the_method_as_it_is_comes_first_and_better_settings_are_found(tmp_path):
    found = searched(Search(tmp_path, 7), 25)
    assert found[0].choice == Choice(1e-3)
    assert len(found) == 25 and len({one.name for one in found}) == 25
    assert all(1e-4 <= one.choice.rate <= 1e-2 for one in found)
    late = sum(one.score for one in found[-8:]) / 8
    assert late > sum(one.score for one in found[1:9]) / 8  # what was learnt guides
    assert max(one.score for one in found) > found[0].score + 1


def test_the_same_seed_tries_the_same(tmp_path):
    first, second = (searched(Search(tmp_path / name, 7), 8) for name in "ab")
    other = searched(Search(tmp_path / "c", 8), 8)
    assert [one.choice for one in first] == [one.choice for one in second] != [one.choice for one in other]


def test_a_search_goes_on_with_what_it_knows_and_does_not_repeat_its_draws(tmp_path):
    before = searched(Search(tmp_path, 7), 5)
    after = searched(Search(tmp_path, 7), 9)
    assert after[:5] == before and len(after) == 9
    assert len({one.choice.rate for one in after}) == 9


def test_a_search_of_a_version_with_other_sizes_goes_on_with_these(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("deltatune.comparison.search.sizes", lambda entry: [OWN, json.dumps({"r": 3})])
        before = searched(Search(tmp_path, 7), 2)
    after = searched(Search(tmp_path, 7), 12)
    assert after[:2] == before and len(after) == 12
    assert {one.choice.changes.get("r") for one in after} == {None, 3}


def test_two_processes_share_a_search_and_no_trial_is_made_twice(tmp_path):
    first, second = Search(tmp_path, 7), Search(tmp_path, 7)
    assert not second.runs
    names = []
    with first.opened([LORA], 6):
        assert second.runs
        with second.joined():
            for search in (first, second, first, second):
                asked = search.ask(LORA)
                names.append(asked.name)
                if search is first:
                    search.tell(asked, 0.5, 1.0)
            assert first.waits(LORA) and second.ask(LORA) is not None and first.ask(LORA) is not None
            assert first.ask(LORA) is None
    assert len(set(names)) == 4 and not second.runs


def test_a_trial_of_a_process_that_died_is_given_to_the_next_and_at_the_second_death_is_the_worst(tmp_path):
    """`joined` ends without a word on the trial, as a kill does."""
    asked = []
    for _ in range(2):
        search = Search(tmp_path, 7)
        with search.opened([LORA], 3):
            asked.append(search.ask(LORA))
    assert asked[0].name == asked[1].name and asked[0].choice == asked[1].choice
    search = Search(tmp_path, 7)
    with search.opened([LORA], 3):
        assert search.ask(LORA).name != asked[0].name
    (worst,) = search.found(LORA)
    assert worst.name == asked[0].name and worst.score == float("-inf")


def test_a_trial_that_a_signal_stopped_any_number_of_times_goes_on(tmp_path):
    asked = []
    for _ in range(4):
        search = Search(tmp_path, 7)
        with search.opened([LORA], 3):
            asked.append(search.ask(LORA))
            search.put_back(asked[-1])
    assert len({one.name for one in asked}) == 1 and not search.found(LORA)


def test_one_trial_is_the_method_as_it_is_and_what_was_put_back_is_made_at_the_limit_too(tmp_path):
    (one,) = searched(Search(tmp_path / "one", 7), 1)
    assert one.choice == Choice(1e-3)
    search = Search(tmp_path / "two", 7)
    with search.opened([LORA], 1):
        search.put_back(search.ask(LORA))
    assert len(searched(Search(tmp_path / "two", 7), 1)) == 1


def test_what_comes_after_a_trial_was_given_up_is_not_told(tmp_path):
    late, other = Search(tmp_path, 7), Search(tmp_path, 7)
    with other.opened([LORA], 3):
        with late.joined():
            asked = late.ask(LORA)
        again = other.ask(LORA)  # it looked dead
        assert again.choice == asked.choice
        late.tell(asked, 0.9, 1.0)
        assert not other.found(LORA)
        other.tell(again, 0.4, 1.0)
    assert [one.score for one in other.found(LORA)] == [0.4]


def test_a_damaged_database_is_said(tmp_path):
    searched(Search(tmp_path, 7), 2)
    path = tmp_path / "search.db"
    path.write_bytes(path.read_bytes()[:5000] + b"\0" * 3000)
    with pytest.raises(SettingsError, match=r"search\.db is damaged: .*remove it"):
        Search(tmp_path, 7)


def test_without_optuna_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("deltatune.comparison.search.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'deltatune\[hpo\]'"):
        Search(tmp_path, 7)


# -- comparisons


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    model_folder(folder / "model", spread=0.2)
    csv_file(folder / "reviews.csv", reviews(100))
    config = {
        "task": "text-classification",
        "model": str(folder / "model"),
        "data": {"train": str(folder / "reviews.csv")},
        "method": {"type": "lora", "r": 2},
        "training": {"num_train_epochs": 3, "per_device_train_batch_size": 2, "bf16": False},
        "output_dir": str(folder / "run"),
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder


@pytest.fixture
def no_baselines(monkeypatch):
    monkeypatch.setattr("deltatune.comparison.entry.BASELINES", ())


def compared(place, out, **how):
    given = {"seeds": 1, "tune": "settings", "trials": 3, "quiet": True, **how}
    return deltatune.compare_config(place / "run.yaml", {"training.max_steps": "140"}, output_dir=out, **given)


def test_whole_runs_have_the_best_settings_of_the_longest_trials(place, tmp_path, no_baselines):
    done = compared(place, tmp_path / "searched")
    own = done.results["methods"]["lora"]
    short, long = (sorted({one["share"] for one in own["rates"]}) + [None])[:2]
    assert len([one for one in own["rates"] if one["share"] == short]) == 3
    finals = [one for one in own["rates"] if one["share"] == long]
    assert len(finals) == 2
    top = max(finals, key=lambda one: one["value"])
    assert own["learning_rate"] in [one["learning_rate"] for one in finals if one["value"] == top["value"]]
    run = yaml.safe_load((done.folder / "runs" / "lora-seed42" / "config.yaml").read_text())
    assert run["training"]["learning_rate"] == own["learning_rate"]
    assert run["method"] == {key: own["settings"][key] for key in run["method"]}
    assert own["rates"][0]["changes"] == {} and own["rates"][0]["learning_rate"] == 1e-3
    for trial in (tmp_path / "searched" / "trials").iterdir():
        assert "test" not in json.loads((trial / "results.json").read_text())
    again = compared(place, tmp_path / "searched", resume=True, trials=9, seeds=2)
    assert again.results["methods"]["lora"] | {"seeds": [42]} == {
        **again.results["methods"]["lora"],
        **{key: own[key] for key in ("learning_rate", "changes", "settings", "seeds", "rates")},
    }
    assert again.results["methods"]["lora"]["seeds"] == [42, 43]


def command(place, folder, *more):
    return [
        *(sys.executable, "-m", "deltatune.cli.main", "compare", str(place / "run.yaml")),
        *("--training.max_steps", "20", "--output", str(folder), "--quiet", *more),
    ]


def started(place, folder, *more):
    return subprocess.Popen(command(place, folder, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trials_of(folder):
    return sorted((folder / "trials").glob("*/results.json")) if (folder / "trials").is_dir() else []


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.timeout(400)  # four processes that load everything
def test_a_killed_search_goes_on_and_a_worker_takes_part_and_ends_with_it(place, tmp_path):
    folder = tmp_path / "killed"
    many = ("--tune", "--trials", "50", "--seeds", "1")
    with started(place, folder, *many) as begun:
        until(lambda: len(trials_of(folder)) >= 2)
        begun.kill()
    assert not held(folder / ".search" / "open")
    alone = CliRunner().invoke(build(), command(place, folder, "--worker")[3:])
    assert isinstance(alone.exception, SettingsError) and "no search runs in" in str(alone.exception)
    with started(place, folder, *many, "--resume") as resumed:
        until(lambda: held(folder / ".search" / "open"))
        with started(place, folder, "--worker") as worker:
            until(lambda: any(path.stat().st_size for path in (folder / ".search").glob("*.jsonl")))
            resumed.terminate()
            resumed.communicate()
            said, errors = worker.communicate()
    assert resumed.returncode == 143 and worker.returncode == 0, errors
    assert int(said.split("; ")[1].split()[0]) >= 1
    made = len(trials_of(folder))
    last = command(place, folder, "--tune", "--trials", "1", "--seeds", "1", "--resume", "--json")
    results = json.loads(subprocess.run(last, capture_output=True, text=True, check=True).stdout)
    rates = [one for own in results["methods"].values() for one in own["rates"]]
    assert sum(one["value"] is not None for one in rates) == len(trials_of(folder)) >= made >= 3  # others are refused
    assert all(len(own["seeds"]) == 1 for own in results["methods"].values())


def test_ctrl_c_in_a_worker_stops_the_worker_alone(place, tmp_path):
    folder = tmp_path / "stopped"
    with started(place, folder, "--tune", "--trials", "30") as begun:
        until(lambda: len(trials_of(folder)) >= 1)
        with started(place, folder, "--worker") as worker:
            until(lambda: list((folder / ".search").glob("*.jsonl")))
            worker.send_signal(signal.SIGINT)
            worker.communicate()
        assert worker.returncode == 130
        assert begun.poll() is None
        begun.send_signal(signal.SIGTERM)
        begun.communicate()
    assert begun.returncode == 143


@pytest.mark.parametrize(
    "given, message",
    [
        (["--worker", "--tune"], "--tune has no say with --worker"),
        (["--worker", "--budget", "3m"], "--budget has no say with --worker"),
        (["--worker", "--methods", "ia3"], "--methods has no say with --worker"),
        (["--own-rates", "--tune"], "--tune has no say with --own-rates"),
        (["--trials", "3"], "trials is the number of a search's"),
        (["--worker"], "no comparison in"),
    ],
)
def test_options_that_say_nothing_are_refused(place, tmp_path, given, message):
    found = CliRunner().invoke(build(), ["compare", str(place / "run.yaml"), "--output", str(tmp_path / "x"), *given])
    assert isinstance(found.exception, SettingsError) and message in str(found.exception)
