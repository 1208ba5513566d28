"""Jobs that overlap and take turns: order, overlap, and what a failure or a stop does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from echoir.runtime.turns import StoppedError, Turn, Turns

LONG = 10.0  # seconds that nothing here takes


def test_the_part_is_done_in_order_while_the_rest_overlaps() -> None:
    """The second job's beginning and the first one's end wait for each other: they would never meet one by one."""
    turns, log = Turns(ValueError), list[str]()
    met = threading.Barrier(2, timeout=LONG)

    def job(number: int) -> None:
        with Turn(turns, number, False, lambda done: log.append(f"{number} {done}")) as turn:
            if number == 1:
                met.wait()
            for part in turn.take(iter("ab")):
                log.append(f"{number}{part}")
            if number == 0:
                met.wait()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(job, number) for number in range(3)]:
            future.result(LONG)
    assert log == [line for n in "012" for line in (f"{n} 0", f"{n}a", f"{n}b", f"{n} None")]


def test_a_job_that_is_alone_overlaps_with_none() -> None:
    turns, under_way, most = Turns(), 0, 0

    def job(number: int) -> None:
        nonlocal under_way, most
        with Turn(turns, number, True, lambda done: None) as turn:
            under_way += 1
            most = max(most, under_way)
            list(turn.take(iter("ab")))
            time.sleep(0.01)
            under_way -= 1

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(job, number) for number in range(6)]:
            future.result(LONG)
    assert most == 1


def test_a_forgiven_failure_ends_its_turn_and_another_stops_all() -> None:
    turns, done = Turns(ValueError), list[int]()

    def job(number: int, error: Exception | None) -> None:
        with Turn(turns, number, False, lambda _: None) as turn:
            if error is not None:
                raise error
            list(turn.take(iter("a")))
            done.append(number)

    with ThreadPoolExecutor(2) as pool:
        errors: list[Exception | None] = [ValueError("a"), None, ValueError("b"), None, OSError("c"), None]
        futures = [pool.submit(job, number, error) for number, error in enumerate(errors)]
        assert isinstance(futures[0].exception(LONG), ValueError)
        assert isinstance(futures[4].exception(LONG), OSError)
        assert isinstance(futures[5].exception(LONG), StoppedError)
    assert done == [1, 3]


def test_what_comes_behind_the_turn_is_done_by_one_at_a_time() -> None:
    turns, log = Turns(ValueError), list[str]()

    def job(number: int) -> None:
        with Turn(turns, number, False, lambda _: None) as turn:
            if number == 2:
                raise ValueError
            list(turn.take(iter("a")))
            log.append(f"{number} begins")
            time.sleep(0.01)
            log.append(f"{number} ends")

    with ThreadPoolExecutor(4) as pool:
        for number, future in enumerate([pool.submit(job, number) for number in range(5)]):
            assert (future.exception(LONG) is not None) == (number == 2)
    assert log == [f"{number} {what}" for number in (0, 1, 3, 4) for what in ("begins", "ends")]


def test_who_has_the_turn_stops_at_the_next_part() -> None:
    turns = Turns()
    parts = Turn(turns, 0, False, lambda _: None).take(iter(range(1000)))
    next(parts)
    turns.stop()
    with pytest.raises(StoppedError):
        next(parts)
    with pytest.raises(StoppedError):
        turns.wait(1)
