"""A world of 1,024 ranks on paper: torch's fake process group gives every answer its shape and moves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher import checkpoint, cluster
from launcher.checkpoint import Position
from launcher.data import order
from launcher.distributed import Runtime
from launcher.errors import RecipeError
from launcher.plan import micro_size, resolve_batch
from launcher.recipe import Batch, Stage
from launcher.run_dir import RunDir, parse_checkpoint

RANKS = 1024


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """The last rank's view."""
    dist.init_process_group("fake", rank=RANKS - 1, world_size=RANKS, store=FakeStore())
    yield Runtime(RANKS - 1, RANKS, 7, torch.device("cpu"))
    dist.destroy_process_group()


def test_what_a_launcher_says_of_the_world() -> None:
    env = {"RANK": "1023", "WORLD_SIZE": "1024", "LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": ""}
    found = cluster.from_env(env)
    assert found is not None
    assert (found.nodes, found.ranks_per_node, found.ranks) == (128, 8, RANKS)


def test_batches_divide_or_are_refused() -> None:
    stage = Stage(name="full", train=["all"], steps=1, batch=Batch(global_size=4096, micro_size=2))
    batch = resolve_batch(stage, RANKS)
    assert (batch.ranks, batch.micro_size, batch.accumulation) == (RANKS, 2, 2)
    with pytest.raises(RecipeError, match="1024"):
        resolve_batch(stage.model_copy(update={"batch": Batch(global_size=4095, micro_size=2)}), RANKS)


@pytest.mark.parametrize("num_rows", [4096, 4097, 700])
def test_every_row_is_one_ranks(num_rows: int) -> None:
    """Each row of an epoch once, over all ranks and windows; ranks that have none count nothing."""
    rows = order.order(0, 1, 2, num_rows)
    seen: list[int] = []
    for step in range(-(-num_rows // 4096)):
        window = order.window(rows, step, 4096)
        accumulation = micro_size.num_micro_batches(len(window), RANKS, 2)
        shares = [order.share(window, rank, RANKS, accumulation) for rank in range(RANKS)]
        assert {len(share) for share in shares} == {accumulation}, "all ranks reach every forward pass"
        seen += [row for share in shares for micro in share for row, weight in micro if weight]
    assert sorted(seen) == list(range(num_rows))


def test_the_control_flow_of_a_rank(runtime: Runtime) -> None:
    assert runtime.sum(1.0, 2.0) == [1.0, 2.0]
    assert len(runtime.gather({"a": "b"})) == RANKS
    runtime.barrier()
    assert not runtime.is_first


def test_a_checkpoint_of_as_many_files_has_one_name(runtime: Runtime, tmp_path: Path) -> None:
    """As the first rank commits it, with a shard of every rank."""
    run = RunDir(tmp_path)
    run.create()
    first = Runtime(0, RANKS, 0, torch.device("cpu"))

    def shards(folder: Path) -> None:
        for rank in range(RANKS):
            (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"x")

    position = Position(stage_index=12, stage="full", step=123_456_789, is_stage_end=False, ranks=RANKS)
    saved = checkpoint.write(run, first, position, shards)
    assert parse_checkpoint(saved.folder.name) == (12, 123_456_789, "full")
    assert len(list(saved.folder.glob("zero_pp_rank_*"))) == RANKS
    listed = json.loads((saved.folder / checkpoint.MANIFEST).read_text())["files"]
    everything = sorted(str(file.relative_to(saved.folder)) for file in saved.folder.iterdir())
    everything.remove(checkpoint.MANIFEST)
    assert sorted(listed) == everything[::RANKS], "its share of the hashing; the other ranks' are theirs"
