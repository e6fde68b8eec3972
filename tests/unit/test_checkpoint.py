"""Checkpoints: whole or not there, verified byte by byte, and never fewer than a run needs to go on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launcher import checkpoint, walk
from launcher.checkpoint import Best, Position, Saved
from launcher.distributed import Runtime
from launcher.errors import UserError
from launcher.run_dir import RunDir

ALONE = Runtime(rank=0, ranks=1, local_rank=0, device=torch.device("cpu"))
ENGINE = "engine/engine.pt"
MODEL = "model/shards/model.safetensors"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create()
    return made


def position(step: int, stage_index: int = 0, *, is_stage_end: bool = False, best: Best | None = None) -> Position:
    return Position(
        stage_index=stage_index, stage="ab"[stage_index], step=step, is_stage_end=is_stage_end, ranks=1, best=best
    )


def parts(content: bytes = b"weights") -> Callable[[Path], None]:
    def write_parts(folder: Path) -> None:
        for name in (ENGINE, MODEL):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(name.encode() + content)

    return write_parts


def written(run_dir: RunDir, *positions: Position) -> list[Saved]:
    return [checkpoint.write(run_dir, ALONE, each, parts()) for each in positions]


def names(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.checkpoints.iterdir())


def spoil(saved: Saved, name: str = ENGINE) -> None:
    """Flip the lowest bit of the byte in the middle."""
    content = bytearray((saved.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved.folder / name).write_bytes(bytes(content))


# --- write ------------------------------------------------------------------------------------------------------------
def test_what_is_written_verifies_and_is_the_newest(run_dir: RunDir) -> None:
    first, second = written(run_dir, position(2), position(4))
    assert names(run_dir) == ["00-a-step-00000002", "00-a-step-00000004"], "no temporary folder stays"
    assert run_dir.latest.read_text() == "00-a-step-00000004\n"
    assert checkpoint.verify(first.folder) == checkpoint.verify(second.folder) == []
    assert checkpoint.newest(run_dir) == second
    assert (second.engine / "engine.pt").read_bytes() == b"engine/engine.ptweights"
    assert second.model == second.folder / "model"
    assert second.optimizer == second.folder / "optimizer"
    manifest = json.loads((second.folder / checkpoint.MANIFEST).read_text())
    assert sorted(manifest["files"]) == [ENGINE, MODEL, checkpoint.STATE]
    assert manifest["files"][ENGINE]["bytes"] == len(b"engine/engine.ptweights")


def test_a_write_that_fails_leaves_no_checkpoint_and_the_next_one_works(run_dir: RunDir) -> None:
    [before] = written(run_dir, position(2))

    def half(folder: Path) -> None:
        assert folder.name != run_dir.checkpoint(0, "a", 4).name, "built under another name"
        (folder / "engine").mkdir()
        (folder / "engine" / "leftover.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(run_dir, ALONE, position(4), half)
    assert not run_dir.checkpoint(0, "a", 4).exists()
    assert run_dir.latest.read_text() == before.folder.name + "\n"
    assert checkpoint.newest(run_dir) == before
    [after] = written(run_dir, position(4))
    assert checkpoint.newest(run_dir) == after
    assert not (after.engine / "leftover.pt").exists(), "nothing of the first try is in the second"


def test_the_manifest_is_written_before_the_checkpoint_has_its_name(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the last moment before the commit, the run has the checkpoint before and nothing else."""
    [before] = written(run_dir, position(2))
    seen: list[list[str]] = []

    def killed(temporary: Path, final: Path) -> None:
        assert not final.exists()
        seen.append(checkpoint.verify(temporary))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(run_dir, ALONE, position(4), parts())
    assert seen == [[]], "whole before it is named"
    assert checkpoint.newest(run_dir) == before


def test_a_checkpoint_of_the_same_name_is_replaced(run_dir: RunDir) -> None:
    written(run_dir, position(2))
    again = checkpoint.write(run_dir, ALONE, position(2), parts(b"others"))
    assert names(run_dir) == ["00-a-step-00000002"]
    assert checkpoint.verify(again.folder) == []
    assert (again.engine / "engine.pt").read_bytes() == b"engine/engine.ptothers"


def test_metrics_that_are_not_finite_survive(run_dir: RunDir) -> None:
    metrics = {"loss": math.nan, "perplexity": math.inf, "margin": -math.inf, "accuracy": 0.1}
    best = Best(metric="loss", value=math.inf, checkpoint="00-a-step-00000002", metrics=metrics)
    stands = position(2, best=best).model_copy(update={"metrics": metrics, "had_gradient": ["head.weight"]})
    checkpoint.write(run_dir, ALONE, stands, parts())
    found = checkpoint.newest(run_dir)
    assert found is not None
    assert repr(found.position) == repr(stands), "by repr: nan is not equal to itself"
    assert checkpoint.bests(run_dir, 1) == {"00-a-step-00000002"}
    json.loads((found.folder / checkpoint.STATE).read_text(), parse_constant=pytest.fail)  # JSON as others read it


# --- verify -----------------------------------------------------------------------------------------------------------
def manifest_without_its_end(saved: Saved) -> None:
    path = saved.folder / checkpoint.MANIFEST
    path.write_text(path.read_text()[:-20])


DAMAGE: dict[str, tuple[Callable[[Saved], object], str]] = {
    "a missing file": (lambda saved: (saved.folder / ENGINE).unlink(), "engine/engine.pt is missing"),
    "a missing state": (lambda saved: (saved.folder / "state.json").unlink(), "manifest or state unreadable: "),
    "an extra file": (
        lambda saved: (saved.engine / "other.pt").write_bytes(b""), "engine/other.pt is not in the manifest"
    ),
    "one flipped bit": (spoil, "engine/engine.pt has another sha256"),
    "one flipped bit deep down": (lambda saved: spoil(saved, MODEL), f"{MODEL} has another sha256"),
    "a byte too few": (
        lambda saved: (saved.folder / ENGINE).write_bytes(b"x" * 22), "engine/engine.pt has 22 bytes instead of 23"
    ),
    "a truncated manifest": (manifest_without_its_end, "manifest or state unreadable: "),
    "an empty manifest": (
        lambda saved: (saved.folder / checkpoint.MANIFEST).write_text(""), "manifest or state unreadable: "
    ),
    "no manifest": (lambda saved: (saved.folder / checkpoint.MANIFEST).unlink(), "manifest or state unreadable: "),
    "a state of another version": (
        lambda saved: (saved.folder / "state.json").write_text('{"step": 2}'), "manifest or state unreadable: "
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_taken(
    damage: str, run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    do, message = DAMAGE[damage]
    oldest, middle, newest = written(run_dir, position(2), position(4), position(6))
    do(newest)
    [problem] = checkpoint.verify(newest.folder)
    assert problem.startswith(message)
    assert checkpoint.newest(run_dir) == middle
    assert f"{newest.folder.name} is damaged ({problem}" in caplog.text
    do(middle)
    assert checkpoint.newest(run_dir) == oldest


def test_several_problems_come_at_once(run_dir: RunDir) -> None:
    [saved] = written(run_dir, position(2))
    spoil(saved)
    (saved.folder / MODEL).unlink()
    (saved.folder / "note.txt").write_text("mine")
    assert sorted(checkpoint.verify(saved.folder)) == [
        "engine/engine.pt has another sha256",
        f"{MODEL} is missing",
        "note.txt is not in the manifest",
    ]


def test_a_damaged_checkpoint_is_put_aside_and_does_not_count_for_a_whole_one(run_dir: RunDir) -> None:
    first, second, third = written(run_dir, position(2), position(4), position(6))
    spoil(third)
    assert checkpoint.newest(run_dir) == second
    assert not third.folder.exists()
    checkpoint.retain(run_dir, 2, set())
    assert first.folder.exists()
    assert second.folder.exists()


def test_nothing_to_resume_from(run_dir: RunDir, tmp_path: Path) -> None:
    assert checkpoint.newest(RunDir(tmp_path / "nowhere")) is None
    assert checkpoint.newest(run_dir) is None
    [first] = written(run_dir, position(0))
    spoil(first)
    assert checkpoint.newest(run_dir) is None, "nothing was trained yet"


def test_where_all_that_was_trained_is_damaged_nothing_is_begun_anew(run_dir: RunDir) -> None:
    for saved in written(run_dir, position(0), position(2)):
        spoil(saved)
    before = names(run_dir)
    for _ in range(2):
        with pytest.raises(UserError, match=r"00-a-step-00000002 is damaged .*\n.*00-a-step-00000000 is damaged"):
            checkpoint.newest(run_dir)
    assert names(run_dir) == before


# --- order and stages -------------------------------------------------------------------------------------------------
def test_later_stages_are_newer_and_steps_count_as_numbers(run_dir: RunDir) -> None:
    later = position(1, stage_index=1)
    *_, high = written(run_dir, later, position(99_999_999), position(100_000_000))
    newest = checkpoint.newest(run_dir)
    assert newest is not None
    assert newest.position == later
    checkpoint.retain(run_dir, 2, set())
    assert names(run_dir) == [high.folder.name, newest.folder.name]


def test_a_stage_starts_where_the_one_before_ended(run_dir: RunDir) -> None:
    written(run_dir, position(0), position(2), position(4), position(8, is_stage_end=True), position(3, stage_index=1))
    starts = [checkpoint.stage_start(run_dir, index) for index in range(3)]
    assert [start and start.folder.name for start in starts] == ["00-a-step-00000000", "00-a-step-00000008", None]


def test_a_stage_does_not_start_from_a_damaged_end(run_dir: RunDir) -> None:
    *_, end = written(run_dir, position(0), position(2), position(8, is_stage_end=True))
    spoil(end, MODEL)
    assert checkpoint.stage_start(run_dir, 1) is None
    assert checkpoint.stage_start(run_dir, 0) is not None


# --- retain and clear -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keep", "protected", "kept"),
    [
        (1, [], [10]),
        (2, [], [8, 10]),
        (2, [2, 6], [2, 6, 8, 10]),
        (2, [10], [8, 10]),
        (5, [], [2, 4, 6, 8, 10]),
        (99, [], [2, 4, 6, 8, 10]),
    ],
)
def test_the_newest_and_the_protected_are_kept(
    keep: int, protected: list[int], kept: list[int], run_dir: RunDir
) -> None:
    saved = {step: written(run_dir, position(step))[0] for step in range(2, 12, 2)}
    checkpoint.retain(run_dir, keep, {saved[step].folder.name for step in protected})
    assert names(run_dir) == [saved[step].folder.name for step in kept]
    assert all(checkpoint.verify(saved[step].folder) == [] for step in kept)


def test_bests_are_those_that_the_newest_speak_of(run_dir: RunDir) -> None:
    def best(name: str) -> Best:
        return Best(metric="loss", value=1.0, checkpoint=name, metrics={})

    written(run_dir, position(2, best=best("one")), position(4, best=best("two")), position(6))
    assert [checkpoint.bests(run_dir, keep) for keep in (1, 2, 3, 9)] == [set(), {"two"}, *[{"one", "two"}] * 2]


def test_leftovers_are_not_seen_and_are_cleared(run_dir: RunDir) -> None:
    """What a kill leaves inside `write`, inside `retain`, and between the two renames of a replacement."""
    first, second = written(run_dir, position(2), position(4))
    for name in ("00-a-step-00000006", "00-a-step-00000001", "old-00-a-step-00000004"):
        leftover = run_dir.checkpoints / (checkpoint.TEMPORARY + name)
        (leftover / "engine").mkdir(parents=True)
        (leftover / "engine" / "engine.pt").write_bytes(b"half")
    assert checkpoint.newest(run_dir) == second
    checkpoint.retain(run_dir, 2, set())
    assert first.folder.exists(), "a leftover is none of the newest two"
    checkpoint.clear_unfinished(run_dir)
    assert names(run_dir) == [first.folder.name, second.folder.name]
    checkpoint.clear_unfinished(run_dir)


def test_killed_inside_retain_the_half_deleted_one_is_no_checkpoint(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = written(run_dir, position(2), position(4))
    rmtree = shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).is_dir():
            (Path(path) / checkpoint.STATE).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.retain(run_dir, 1, set())
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert not saved[0].folder.exists()
    assert checkpoint.bests(run_dir, 9) == set(), "reads the state of every checkpoint there is"
    assert checkpoint.newest(run_dir) == saved[1]
    checkpoint.clear_unfinished(run_dir)
    assert names(run_dir) == [saved[1].folder.name]


def test_the_best_checkpoint_is_exported_while_it_verifies(run_dir: RunDir) -> None:
    best = Best(metric="loss", value=0.5, checkpoint="00-a-step-00000001", metrics={"loss": 0.5})
    first, last = written(run_dir, position(1, best=best), position(2, is_stage_end=True, best=best))
    assert walk.chosen(run_dir, last) == (first.folder, best)
    spoil(first, MODEL)
    assert walk.chosen(run_dir, last) == (last.folder, None)
    assert walk.chosen(run_dir, Saved(last.folder, position(2))) == (last.folder, None)
