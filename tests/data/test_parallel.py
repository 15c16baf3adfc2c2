import os
import signal
from itertools import count

import pytest

from gemma_tune.data import parallel
from gemma_tune.errors import DataError


def doubled(piece: int) -> tuple[int, int]:
    return 2 * piece, os.getpid()


def killed_at_three(piece: int) -> int:
    if piece == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def failing_at_three(piece: int) -> int:
    return 1 // (3 - piece)


@pytest.fixture
def two_cores(monkeypatch):
    """However small the work is, two processes do it."""
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)


def nothing(piece: object) -> int:
    return 0


def test_little_work_is_done_here_in_order_and_piece_by_piece():
    taken = []
    found = parallel.in_order(doubled, (taken.append(n) or n for n in range(5)), nothing)
    assert list(found) == [(2 * n, os.getpid()) for n in range(5)] and taken == list(range(5))
    assert list(parallel.in_order(doubled, [], nothing)) == []


def test_much_work_is_done_by_a_process_per_core_in_order(two_cores):
    found = list(parallel.in_order(doubled, range(40), nothing))
    assert [value for value, _ in found] == [2 * n for n in range(40)]
    assert os.getpid() not in {pid for _, pid in found}


def test_what_is_worth_it_is_decided_by_the_bytes_of_the_pieces(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 100)
    seen = []
    monkeypatch.setattr(parallel, "_on_all_cores", lambda work, pieces: seen.append(list(pieces)) or iter([]))
    assert len(list(parallel.in_order(doubled, range(9), lambda piece: 11))) == 9 and not seen
    list(parallel.in_order(doubled, range(10), lambda piece: 11))
    assert seen == [list(range(10))]
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    assert len(list(parallel.in_order(doubled, range(10), lambda piece: 11))) == 10 and len(seen) == 1


def test_few_pieces_of_an_endless_source_are_taken_ahead(two_cores):
    taken = []
    found = parallel.in_order(doubled, (taken.append(n) or n for n in count()), nothing)
    for done in range(1, 20):
        next(found)
        assert len(taken) <= done + 2 * (1 + parallel.PIECES_AHEAD)
    found.close()


def test_a_process_that_is_killed_is_said_and_not_waited_for(two_cores):
    with pytest.raises(DataError, match="ended by the system.*lack of memory.*read fewer rows"):
        list(parallel.in_order(killed_at_three, range(50), nothing))


def test_what_fails_in_a_process_fails_here(two_cores):
    with pytest.raises(ZeroDivisionError):
        list(parallel.in_order(failing_at_three, range(50), nothing))


def test_a_broken_off_loop_leaves_no_process(two_cores):
    found = parallel.in_order(doubled, count(), nothing)
    pids = {next(found)[1] for _ in range(6)}
    found.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_cores_are_those_that_this_process_may_use():
    assert 1 <= parallel.cores() <= (os.cpu_count() or 1)
