"""Progress reports: what lands on the stream, when, and how far off the ETA is."""

from __future__ import annotations

import io
import json

import pytest

from echoir.runtime.progress import JSON_INTERVAL, PLAIN_INTERVAL, Progress, duration

JSON_KEYS = {"event", "task", "done", "total", "unit", "elapsed_s", "eta_s", "message", "fields"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def records(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_plain_lines_come_at_most_once_per_interval_and_once_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("train", 1000, "steps", stream=stream, clock=clock) as progress:
        for _ in range(1000):
            clock.now += PLAIN_INTERVAL / 100
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert 9 <= len(lines) <= 11
    assert lines[-1] == "train: 1000/1000 steps, 1:40 elapsed"


def test_eta_is_exact_at_a_constant_rate() -> None:
    clock = Clock()
    with Progress("train", 50, stream=io.StringIO(), clock=clock) as progress:
        for step in range(1, 51):
            clock.now += 2.0
            progress.advance()
            assert progress.eta == pytest.approx(2.0 * (50 - step))


def test_work_done_before_this_run_does_not_count_in_the_eta() -> None:
    clock = Clock()
    with Progress("train", 100, done=90, stream=io.StringIO(), clock=clock) as progress:
        assert progress.eta is None
        clock.now += 3.0
        progress.advance()
        assert progress.eta == pytest.approx(27.0)


def test_json_lines_have_the_same_keys_in_every_event() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("train", 4, log_json=True, stream=stream, clock=clock) as progress:
        progress.advance(loss=0.25)
        clock.now += JSON_INTERVAL
        progress.advance(loss=0.125)
        progress.note("checkpoint saved", path="last.safetensors")
    lines = records(stream)
    assert [line["event"] for line in lines] == ["start", "progress", "note", "end"]
    assert all(set(line) == JSON_KEYS for line in lines)
    assert (lines[1]["done"], lines[1]["total"], lines[1]["eta_s"]) == (2, 4, JSON_INTERVAL)
    assert lines[1]["fields"] == {"loss": 0.125}
    assert (lines[2]["message"], lines[2]["fields"]) == ("checkpoint saved", {"path": "last.safetensors"})


def test_json_says_when_the_work_was_cut_short() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress("train", 4, log_json=True, stream=stream):
        raise KeyboardInterrupt
    assert records(stream)[-1]["event"] == "aborted"


def test_quiet_keeps_notes_and_nothing_else() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("restore", 2, quiet=True, stream=stream, clock=clock) as progress:
        clock.now += 2 * PLAIN_INTERVAL
        progress.advance(2)
        progress.note("a.png: cannot be read")
    assert stream.getvalue() == "a.png: cannot be read\n"


def test_a_terminal_gets_a_bar_with_the_count_and_notes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress("restore", 7, "tiles", stream=stream) as progress:
        progress.advance(7, file="[bold].png")
        progress.note("[red]name.png: failed")
    assert "\r" in stream.getvalue() or "\x1b[" in stream.getvalue()
    assert "7/7" in stream.getvalue()
    # Brackets in file names are text, not markup.
    assert "[red]name.png: failed" in stream.getvalue()
    assert "[bold].png" in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("restore", 1, "tiles", stream=stream) as progress:
        progress.advance()
    assert stream.getvalue().startswith("restore: 1/1 tiles")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (187, "3:07"), (3723, "1:02:03")])
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text
