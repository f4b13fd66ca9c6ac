"""Progress: lines without a terminal, a panel with one, nothing when quiet."""

import contextlib
import io
import os
import re
import sys
import threading
from dataclasses import replace

import pytest

from deltatune.train.live import View
from deltatune.train.loop import train
from deltatune.train.plan import Position
from deltatune.train.progress import Progress
from train.toy import Toy, job


def run(folder, *, quiet: bool = False):
    train(replace(job(folder, max_steps=6, eval_steps=3), quiet=quiet))


def test_lines_without_a_terminal(tmp_path, capsys):
    run(tmp_path)
    captured = capsys.readouterr()
    found = captured.err.splitlines()
    assert captured.out == "" and len(found) == 4
    assert found[0].startswith("step 3/6  loss 0.") and found[0].endswith(" s left") and "tokens/s" in found[0]
    assert found[1].startswith("validation accuracy 0.") and found[1].endswith("(best so far)")
    assert "accuracy 0." in found[2]


def test_nothing_when_quiet(tmp_path, capsys):
    run(tmp_path, quiet=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_lines_say_what_the_task_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Toy, "counted", "images")
    run(tmp_path)
    assert "images/s" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_a_panel_on_a_terminal(tmp_path, monkeypatch, quiet):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run(tmp_path, quiet=quiet)
    for word in ("6/6", "validation accuracy", "loss", "memory"):
        assert (word in terminal.getvalue()) == (not quiet), word


def test_lines_on_a_terminal_that_cannot_move(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    run(tmp_path)
    assert terminal.getvalue().startswith("step 3/6  loss 0.") and "\x1b" not in terminal.getvalue()


def listen(terminal, said):
    """Takes what is written to the other end until that is closed."""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            said.extend(chunk)


@pytest.mark.parametrize("plain", [False, True])
def test_a_real_pseudo_terminal(tmp_path, monkeypatch, plain):
    """What stands there at the end are the evaluations: the panel is taken away again."""
    ours, theirs = os.openpty()
    said = bytearray()
    reader = threading.Thread(target=listen, args=(ours, said))
    reader.start()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        run(tmp_path)
    reader.join(20)
    os.close(ours)
    text = said.decode()
    assert "6/6" in text and "\x1b[?25l" in text and text.rstrip("\r\n").endswith("\x1b[2K")
    assert bool(re.search(r"\x1b\[(\d+;)*(3\d|38|9\d)[;m]", text)) == (not plain)


def test_steps_draw_nothing_themselves(monkeypatch):
    """A clock of rich's draws, four times a second: a step is one assignment."""
    drawn = []
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(View, "__rich_console__", lambda *_: drawn.append(1) or iter(()))
    with Progress(50_000, Position(), quiet=False) as progress:
        assert progress.live.refresh_per_second == 4
        before = len(drawn)
        for number in range(50_000):
            progress.step(number)
        assert len(drawn) - before < 500 and progress.view.step == 49_999


def test_trainings_that_share_their_passes_take_as_long_as_all_of_them():
    """A line has a share of the seconds: eight at once showed an eighth of the time left and eight times the speed."""
    progress = Progress(100, Position(), quiet=True, together=8)
    for number in range(8):
        line = {"step": 10, "loss": 1.0, "learning_rate": 1e-3, "tokens": 8000, "seconds": 10.0}
        progress.log(line, f"run {number}")
    tracks = list(progress.view.tracks.values())
    assert max(track.left for track in tracks) == 720.0 and sum(track.per_second for track in tracks) == 800.0
