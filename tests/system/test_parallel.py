from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from evitseg.errors import EvitsegError
from evitseg.system.machine import logical_cores, physical_cores
from evitseg.system.parallel import interrupts_deferred, ordered_map, process_map


def test_results_come_in_order_though_work_ends_out_of_it() -> None:
    def work(i: int) -> int:
        time.sleep(0.02 if i % 2 == 0 else 0)
        return i * i

    assert list(ordered_map(range(20), work, workers=4)) == [i * i for i in range(20)]


def test_as_many_are_under_way_at_once_as_there_are_workers() -> None:
    together = threading.Barrier(3, timeout=30)  # breaks unless three wait at it at the same time
    assert sum(1 for _ in ordered_map(range(9), lambda i: together.wait(), workers=3)) == 9


def test_no_more_are_held_than_workers_and_waiting() -> None:
    drawn, given, most = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield i

    for _ in ordered_map(items(), lambda i: i, workers=2, waiting=3):
        given += 1
        most = max(most, drawn - given)
    assert given == 100
    assert most == 4  # beside the one that the caller has


def test_what_the_work_raises_comes_at_its_place() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    got = []
    with pytest.raises(ValueError, match="three"):
        for i in ordered_map(range(10), work):
            got.append(i)
    assert got == [0, 1, 2]


def test_who_stops_early_waits_for_begun_work_alone() -> None:
    begun, ended = [], []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.01)
        ended.append(i)
        return i

    before = threading.active_count()
    results = ordered_map(range(1000), work, workers=2, waiting=5)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 7
    assert threading.active_count() == before


_offset = 0


def prepare(offset: int) -> None:
    global _offset
    _offset = offset


def handling_of_interrupts(number: int) -> tuple[bool, bool]:
    """Whether they are ignored, and whether they were blocked from the start."""
    blocked = not hasattr(signal, "pthread_sigmask") or signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN, blocked


def test_worker_processes_leave_ctrl_c_to_their_parent() -> None:
    before = handling_of_interrupts(0)
    assert list(process_map(range(2), handling_of_interrupts, 1)) == [(True, True)] * 2
    assert handling_of_interrupts(0) == before


def shifted(item: int) -> int:
    return item + _offset


def end_at_three(item: int) -> int:
    if item == 3:
        os._exit(1)
    return item


def test_processes_give_results_in_order_and_are_prepared_once() -> None:
    assert list(process_map(range(10), shifted, 2, partial(prepare, 5))) == list(range(5, 15))
    assert _offset == 0


def cores(item: int) -> tuple[int, int]:
    return physical_cores(), logical_cores()


def test_processes_divide_the_cores() -> None:
    own = cores(0)
    assert list(process_map(range(2), cores, 2)) == [(max(1, own[0] // 2), max(1, own[1] // 2))] * 2
    assert list(process_map(range(2), cores, 1)) == [own] * 2
    assert cores(0) == own


def test_a_killed_process_is_one_sentence() -> None:
    with pytest.raises(EvitsegError, match="killed"):
        list(process_map(range(10), end_at_three, 2))


def test_an_interrupt_waits_for_the_end_of_a_block_and_a_second_does_not() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with interrupts_deferred() as waiting:
            signal.raise_signal(signal.SIGINT)
            done.append(list(waiting))
    assert done == [[signal.SIGINT]]
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append([])
    assert len(done) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_deferred() as waiting:
        pass
    assert not waiting


def test_other_threads_defer_no_interrupts() -> None:
    def handler() -> object:
        with interrupts_deferred():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() is signal.default_int_handler
