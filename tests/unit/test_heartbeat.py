"""Which rank hangs, from the files that all of them write; the thread that writes them; what the watch does."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from launcher import heartbeat
from launcher.heartbeat import Beat, Heart, Watch
from launcher.slurm import watch as slurm_watch


def beat(rank: int, beats: int, moves: int, where: str = "all_reduce under sum") -> Beat:
    return Beat(f"n{rank // 2}", 100 + rank, beats, moves, where)


def test_ranks_that_move_never_hang() -> None:
    watch = Watch(4, 60)
    for turn in range(1000):
        assert watch.look({rank: beat(rank, turn, turn) for rank in range(4)}, now=10.0 * turn) is None


def test_a_rank_that_writes_no_more_is_named_with_its_host_and_process() -> None:
    watch = Watch(4, 900)
    for turn in range(100):
        beats = {rank: beat(rank, 3 if rank == 2 else turn, 3, "forward (x.py:1)") for rank in range(4)}
        if found := watch.look(beats, now=10.0 * turn):
            break
    assert turn == 18, "180 s after it was first seen as it is"
    assert found is not None
    assert found.startswith("rank 2 on n1 (process 102) gave no sign of life for 180 s")
    assert "forward (x.py:1)" in found


def test_while_all_write_and_none_moves_the_one_that_stands_elsewhere_is_named() -> None:
    watch = Watch(4, 60)
    for turn in range(100):
        beats = {rank: beat(rank, turn, 5) for rank in range(4)}
        beats[3] = replace(beats[3], where="read (rows.py:9)")
        if found := watch.look(beats, now=10.0 * turn):
            break
    assert turn == 6
    assert found == (
        "no rank moved for 60 s: 3 of 4 stand in all_reduce under sum, apart from rank 3 on n1 in read (rows.py:9)"
    )


def test_one_that_moves_keeps_the_others_waiting() -> None:
    """The first rank downloads, writes or compiles while the others stand in a collective."""
    watch = Watch(2, 60)
    for turn in range(100):
        beats = {0: beat(0, turn, turn), 1: beat(1, turn, 1)}
        assert watch.look(beats, now=10.0 * turn) is None


def test_one_that_is_done_is_not_missed() -> None:
    watch = Watch(2, 60)
    done = replace(beat(1, 1, 1), is_over=True)
    for turn in range(100):
        assert watch.look({0: beat(0, turn, turn), 1: done}, now=10.0 * turn) is None


def test_one_that_never_came_is_named() -> None:
    watch = Watch(3, 60)
    beats = [{0: beat(0, turn, 1), 2: beat(2, turn, 1)} for turn in range(31)]
    found = [watch.look(each, now=10.0 * turn) for turn, each in enumerate(beats)]
    assert found[:30] == [None] * 30, "the others stand still and wait for it"
    assert found[30] == "rank 1 gave no first sign of life in 300 s"


def test_a_watch_that_slept_itself_blames_nobody() -> None:
    """A suspended job: everything stands still, the watch too."""
    watch = Watch(1, 60)
    assert watch.look({0: beat(0, 1, 1)}, now=0.0) is None
    assert watch.look({0: beat(0, 1, 1)}, now=5000.0) is None
    assert watch.look({0: beat(0, 2, 2)}, now=5010.0) is None


def test_of_many_a_few_are_named() -> None:
    watch = Watch(1024, 600)
    found = [watch.look({0: beat(0, turn, turn)}, now=50.0 * turn) for turn in range(14)][-1]
    assert found is not None
    assert found.startswith("rank 1, rank 2, ")
    assert "and 1015 more gave no first sign of life in 600 s" in found


def test_the_thread_writes_and_knows_when_the_main_thread_moves(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "beats", 7, hang_timeout_s=0)
    try:
        seen = [wait_for(tmp_path, 7, beats=1)]
        seen.append(wait_for(tmp_path, 7, beats=seen[-1].beats + 1))  # in a sleep or a read: somewhere else
        assert seen[1].where.endswith(")")
    finally:
        heart.stop()
    last = heartbeat.read(tmp_path / "beats")[7]
    assert last.is_over
    (tmp_path / "beats" / "rank-8").write_text('{"host": "n1", "p')
    assert set(heartbeat.read(tmp_path / "beats")) == {7}, "half a file is looked at again later"


def wait_for(folder: Path, rank: int, beats: int) -> Beat:
    deadline = time.monotonic() + 60
    while (found := heartbeat.read(folder / "beats").get(rank)) is None or found.beats < beats:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_tick_is_a_movement_and_the_same_place_is_none(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "beats", 0, hang_timeout_s=1000)
    try:
        wait_for(tmp_path, 0, beats=1)  # the thread's own; the next is seconds away
        moves = []
        for ticks in (0, 0, 0, 1, 0):  # each time round the main thread stands at the same instruction
            for _ in range(ticks):
                heartbeat.tick()
            heart._write()
            moves.append(heartbeat.read(tmp_path / "beats")[0].moves)
        assert [after - before for before, after in pairwise(moves[1:])] == [0, 1, 0]
    finally:
        heart.stop()


def test_a_long_write_is_a_movement(tmp_path: Path) -> None:
    """The main thread stands in one call all the while, as torch.save does."""
    heart = Heart(tmp_path / "beats", 0, 1000.0)
    heart.stop()  # on a slow machine its thread would write amid the loop, and see another line of it
    moves = []
    with (tmp_path / "large").open("wb") as file:
        for size in (0, 0, 3 * 2**20, *[10] * 4000):  # what the signs themselves write is no movement, ever
            file.write(bytes(size))
            heart._write()
            moves.append(heartbeat.read(tmp_path / "beats")[0].moves)
    assert [after - before for before, after in pairwise(moves[1:])] == [1, *[0] * 4000]


def test_ranks_that_are_done_and_whose_launchers_do_not_end_are_told() -> None:
    watch = Watch(2, 60.0)
    done = {rank: Beat("n", 1, 9, 9, "at its end", is_over=True) for rank in range(2)}
    assert [watch.look(done, float(now)) for now in (0, 20, 40, 59)] == [None] * 4
    assert watch.look(done, 61.0) == "all ranks ended their work 60 s ago, and their launchers did not end"


def test_without_the_steps_number_the_queue_tells_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 41.batch 41.extern 41.1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm_watch._steps("41", tmp_path / "step") == ["41.1"]
    (tmp_path / "step").write_text("3\n")
    assert slurm_watch._steps("41", tmp_path / "step") == ["41.3"]


def test_what_hangs_is_written_down_and_its_step_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder, attempt = tmp_path / "bin", tmp_path / "attempt"
    bin_folder.mkdir()
    (attempt / "beats").mkdir(parents=True)
    (attempt / "step").write_text("3\n")
    scancel = bin_folder / "scancel"
    scancel.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n[ -e {tmp_path}/up ] || {{ touch {tmp_path}/up; exit 1; }}\n'
    )
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(slurm_watch.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(slurm_watch.time, "sleep", lambda seconds: None)
    assert slurm_watch.main([str(attempt), "--ranks", "2", "--hang-timeout", "60"]) == 0
    assert (attempt / "hung").read_text() == "rank 0, rank 1 gave no first sign of life in 300 s"
    assert (tmp_path / "asked").read_text() == 2 * "--signal=KILL 41.3\n", "again, when the controller did not answer"
