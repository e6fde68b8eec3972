"""Whether a stage fits, which sharding auto takes, what is told when nothing does, and how the plan shows it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from large_model import MakePlan, count, facts, gpus, planned
from PIL import Image, ImageColor
from rich.console import Console

from launcher.cluster import Cluster
from launcher.costs.peak import GIB, Activations, NotCounted
from launcher.errors import UserError
from launcher.plan import StagePlan, fit, memory_plot, memory_table, plan_json, search, ways
from launcher.plan import table as plan_table


def test_what_fits_is_said_to(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(80), sharding={"strategy": "zero3"})
    for stage in plan.stages:
        assert stage.memory is not None
        assert stage.fits
        assert stage.memory.peak_bytes <= 80 * GIB
        assert f"needs {stage.memory.peak_bytes / GIB:.3g} GiB in the {stage.memory.peak_at} of the 80 GiB" in stage.why
    assert ways.shortage(plan, facts(), count) is None


def test_what_does_not_fit_names_what_is_missing_and_what_would(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(40), sharding={"strategy": "ddp"})
    head, full = plan.stages
    assert head.fits
    assert full.fits is False
    assert full.memory is not None
    assert f"{full.memory.peak_bytes / GIB - 40:.3g} GiB are missing" in full.why
    told = ways.shortage(plan, facts(), count)
    assert told is not None
    lines = told.splitlines()
    assert lines[0] == f"stage full: {full.why}"
    assert lines[1].startswith("  would fit: sharding: {strategy: zero")
    assert any("train: [head, 'layers[-" in line for line in lines)
    assert len(lines) <= 1 + ways.MOST_WAYS


def test_where_all_was_tried_layers_and_texts_are_left(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(5, nodes=2), batch={"global_size": 64})
    assert plan.stages[1].fits is False
    assert plan.stages[1].settings.sharding.offload == "cpu", "the nearest that was tried"
    told = ways.shortage(plan, facts(), count)
    assert told is not None
    found = [line.strip().removeprefix("would fit: ") for line in told.splitlines() if "would fit" in line]
    assert [way.partition(":")[0] for way in found] == ["train", "data.max_length"], told


def test_masters_of_ddp_need_less_and_are_not_proposed_for_zero(make_plan: MakePlan) -> None:
    ddp = {"sharding": {"strategy": "ddp"}, "precision": "bf16"}
    plain, split, least = (
        planned(make_plan, gpus(30), **ddp, optimizer={"kind": "adamw", **layout})
        for layout in ({}, {"master": "split16"}, {"master": "split16", "state_dtype": "bf16"})
    )
    states = [
        sum(getattr(stage.memory, f"{part}_bytes") for part in ("parameters", "gradients", "master", "optimizer"))
        for stage in (plan.stages[1] for plan in (plain, split, least))
    ]
    assert [num_bytes / states[0] for num_bytes in states] == [1, 14 / 16, 10 / 16]
    told = ways.shortage(split, facts(), count)
    assert told is not None
    found = [line for line in told.splitlines() if "strategy: zero" in line]
    assert found
    assert all("}, optimizer.master: none (" in line for line in found)


@pytest.mark.parametrize("gib", [24, 30, 40, 60, 200])
def test_auto_takes_the_fastest_that_fits(make_plan: MakePlan, gib: float) -> None:
    """Against every other plan that the recipe leaves open, each asked for by itself."""
    again = (False, True)
    plan = planned(make_plan, gpus(gib))
    others = [
        planned(
            make_plan, gpus(gib), sharding={"strategy": strategy, "offload": offload},
            gradient_checkpointing=checkpoints, batch={"global_size": 8, "micro_size": size},
        )
        for strategy, offload in search.LADDER for checkpoints in again for size in (1, 2)
    ]  # fmt: skip
    for stage in plan.stages:
        assert stage.time
        fitting = [other.stages[stage.index] for other in others if other.stages[stage.index].fits]
        if not fitting:
            assert "all else that auto may take lacks more" in stage.why
            continue
        assert stage.fits
        fastest = min(other.time.seconds for other in fitting if other.time)
        assert stage.time.seconds <= search.ALIKE * fastest
        faster = [
            other.stages[stage.index] for other in others
            if (time := other.stages[stage.index].time) and time.seconds * search.ALIKE < stage.time.seconds
        ]  # fmt: skip
        assert not any(other.fits for other in faster)
        for other in faster:
            assert f"{other.settings.sharding.strategy} " in stage.choice, "each faster one is told, with what it lacks"


def test_auto_differs_with_the_memory(make_plan: MakePlan) -> None:
    taken = [planned(make_plan, gpus(gib)).stages[1].settings.sharding for gib in (7, 14, 200)]
    assert len({(each.strategy, each.offload) for each in taken}) == 3


def test_auto_takes_the_largest_micro_size_that_fits(make_plan: MakePlan) -> None:
    """A GiB for each row under a fixed strategy; 16 rows a rank."""
    batch, sharding = {"global_size": 64}, {"strategy": "zero3"}
    taken = {}
    for gib in (25, 30, 40, 200):
        stage = planned(make_plan, gpus(gib), batch=batch, sharding=sharding).stages[1]
        assert stage.fits
        assert stage.batch.micro_size * stage.batch.accumulation == 16
        assert stage.settings.evaluate.micro_size == 2 * stage.batch.micro_size
        assert stage.settings.batch.micro_size == stage.batch.micro_size
        taken[gib] = stage.batch.micro_size
        if taken[gib] < 16:
            assert f"auto chose micro size {taken[gib]} (" in stage.choice
            assert "auto chose zero3" not in stage.choice, "the recipe sets it"
            assert "the fastest that fits: zero3 at micro size 16 (" in stage.choice
            larger = batch | {"micro_size": 2 * taken[gib]}
            assert planned(make_plan, gpus(gib), batch=larger, sharding=sharding).stages[1].fits is False
    assert list(taken.values()) == sorted(taken.values())
    assert len(set(taken.values())) > 2


def test_auto_checkpoints_before_it_offloads_and_never_where_it_is_told_not_to(make_plan: MakePlan) -> None:
    def less_again(stage: StagePlan, length: int | None = None) -> Activations:
        found = count(stage, length)
        return replace(found, saved=found.saved // 8) if stage.settings.gradient_checkpointing else found

    def settled(**changes: Any) -> StagePlan:
        batch = {"global_size": 32, "micro_size": 8}
        plan = make_plan(cluster=gpus(28), batch=batch, **changes)
        return search.with_memory(plan, facts(), less_again).stages[1]

    stage = settled()
    assert (stage.settings.gradient_checkpointing, stage.settings.sharding.offload) == (True, "none")
    assert ", gradient checkpointing (" in stage.choice
    assert "; zero3 at micro size 8 (" in stage.choice
    told = settled(gradient_checkpointing=False)
    assert (told.settings.gradient_checkpointing, told.settings.sharding.offload) == (False, "cpu")


@pytest.mark.parametrize("unit", [0.031, 1.0, 7.3])
def test_auto_takes_the_simplest_within_five_percent_of_the_fastest_that_fits(make_plan: MakePlan, unit: float) -> None:
    """Whatever the times are, and those of what does not fit."""
    stage = make_plan().stages[0]
    ways = [(number, fit.checkpointed(stage, number == 1)) for number in range(4)]

    def taken(*seconds: float, missing: int = 3) -> tuple[int, list[int]]:
        def candidates(of: Sequence[tuple[int, StagePlan]]) -> list[search.Candidate]:
            counted.extend(number for number, _ in of)
            return [search.Candidate(way, number, unit * seconds[number]) for number, way in of]

        counted: list[int] = []
        found = search._simplest_of_the_fastest(ways, candidates, lambda one: one.way != missing)
        assert found
        return found.way, counted

    assert taken(1.0499, 2, 1, 0.9) == (0, [0, 2, 3, 1]), "the fourth, which does not fit, is no measure"
    assert taken(1.0501, 2, 1, 0.9) == (2, [0, 2, 3, 1])
    assert taken(1.0501, 1.04, 1, 1.2) == (1, [0, 2, 3, 1]), "what computes again is simpler than another sharding"
    assert taken(1.0499, 1.04, 1, 1.2) == (0, [0, 2, 3]), "and is not counted where it is not simpler"
    assert taken(1, 1, 1.1, 1.2, missing=2)[0] == 0
    assert search._simplest_of_the_fastest(ways, lambda of: [], lambda one: True) is None


@given(st.integers(8, 120), st.sampled_from([4, 24, 32, 60]), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_auto_never_takes_what_its_own_model_refuses(
    make_plan: MakePlan, gib: int, global_size: int, checkpoints: bool
) -> None:
    again = {"gradient_checkpointing": "auto" if checkpoints else False}
    plan = planned(make_plan, gpus(gib), batch={"global_size": global_size}, **again)
    for stage in plan.stages:
        found = fit.verdict(stage, plan.cluster, facts(), count)
        assert found.fits == stage.fits
        assert found.memory == stage.memory
        assert stage.fits or "all else that auto may take lacks more" in stage.why


def test_auto_keeps_batch_norm_in_low_precision_from_zero(make_plan: MakePlan) -> None:
    """Which refuses it when the stage begins."""
    norms = replace(facts(), has_batch_norm=True)
    for precision, strategies in (("bf16", {"ddp"}), ("fp32", {"zero2", "zero3"})):
        plan = make_plan(cluster=gpus(40), precision=precision)
        taken = search.with_memory(plan, norms, count).stages[1].settings.sharding
        assert taken.strategy in strategies
    plan = search.with_memory(make_plan(cluster=gpus(20), precision="bf16"), norms, count)
    told = ways.shortage(plan, norms, count)
    assert told is not None
    assert "zero" not in told, "nor is it proposed"


def test_on_the_cpu_auto_stays_ddp_and_nothing_is_refused(make_plan: MakePlan) -> None:
    machine = Cluster(gpus_per_node=0, ranks_per_node=2, host_memory_bytes=8 * GIB)
    plan = planned(make_plan, machine)
    full = plan.stages[1]
    assert (full.settings.sharding.strategy, full.fits) == ("ddp", False)
    assert "of the 4 GiB of a CPU rank's share of the host" in full.why
    assert ways.shortage(plan, facts(), count) is None


def test_host_memory_limits_offload(make_plan: MakePlan) -> None:
    sharding = {"strategy": "zero3", "offload": "cpu"}
    roomy, narrow = (planned(make_plan, gpus(80, host_gib=host), sharding=sharding).stages[1] for host in (500, 20))
    assert roomy.memory is not None
    assert roomy.memory.host_bytes > 0
    assert (roomy.fits, narrow.fits) == (True, False)
    assert "of the 20 GiB of a node's host" in narrow.why


def test_nvme_is_autos_last_resort_and_taken_only_where_there_is_a_disk(make_plan: MakePlan) -> None:
    """Where neither the GPUs nor the host have room; the plan's table and its verdict say what lies on the disk."""
    narrow = gpus(9, host_gib=26)
    disk = narrow.model_copy(update={"nvme_bytes": 500 * GIB})
    without, found = (planned(make_plan, cluster).stages[1] for cluster in (narrow, disk))
    assert without.fits is False
    assert (found.fits, found.settings.sharding.offload) == (True, "nvme"), found.why
    assert "zero3 with offload to the host" in found.choice
    assert found.memory is not None
    assert found.memory.nvme_bytes > 0
    assert found.time is not None
    assert any("of the node's own disk a rank" in told for told in found.time.assumptions)
    assert "NVMe: " in shown(memory_table.explained(planned(make_plan, disk), "full"))
    full = narrow.model_copy(update={"nvme_bytes": 1 * GIB})
    asked = planned(make_plan, full, sharding={"strategy": "zero3", "offload": "nvme"}).stages[1]
    assert asked.fits is False
    assert "of the 1 GiB free on a node's own disk" in asked.why


def test_unknown_is_not_a_verdict(make_plan: MakePlan) -> None:
    unsized = planned(make_plan, gpus(None)).stages[1]
    assert (unsized.fits, unsized.settings.sharding.strategy) == (None, "ddp")
    assert unsized.time
    assert "say it with --gpu-memory" in unsized.why

    def blind(stage: StagePlan, length: int | None = None) -> Activations:
        raise NotCounted("Net looks at values")

    stage = search.with_memory(make_plan(cluster=gpus(80)), facts(), blind).stages[1]
    assert (stage.memory, stage.fits, stage.why) == (None, None, "not estimated: Net looks at values")


def test_the_json_has_the_keys_that_programs_read(make_plan: MakePlan) -> None:
    stage = plan_json(planned(make_plan, gpus(80)))["stages"][1]
    assert stage["memory"].keys() >= {
        "peak_bytes", "parameters_bytes", "gradients_bytes", "master_bytes", "optimizer_bytes", "activations_bytes",
        "logits_bytes", "buffers_bytes", "margin_bytes", "host_bytes",
    }  # fmt: skip
    assert stage["fits"] in (True, False)
    parts = {"compute", "recomputation", "communication", "optimizer", "offload"}
    assert stage["step_time"].keys() == parts | {"seconds", "assumptions", "error"}
    assert stage["step_time"]["seconds"] == pytest.approx(sum(stage["step_time"][part] for part in parts))
    assert stage["why"]


def shown(what: Any) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_has_a_bar_for_every_strategy_and_a_line(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = planned(make_plan, gpus(40), sharding={"strategy": "zero2"})
    bars = search.at_each_strategy(plan, facts(), count)
    assert [list(found) for found in bars.values()] == 2 * [
        [
            "ddp",
            "zero1",
            "zero2 (the plan)",
            "zero3",
            "zero2 with offload to the host",
            "zero3 with offload to the host",
        ]
    ]
    assert bars["full"]["zero2 (the plan)"] == plan.stages[1].memory
    memory_plot.draw(plan, bars, 40 * GIB, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        pixels = image.load()
        assert pixels is not None
        widest = max(memory.peak_bytes for found in bars.values() for memory in found.values())
        y = 3 * memory_plot.ROW + memory_plot.ROW + 5  # inside the first bar, ddp's of the head
        colours = [pixels[x, y] for x in range(memory_plot.LEFT, image.width)]
        line = memory_plot.LEFT + round(40 * GIB * memory_plot.WIDTH / widest)
    taken = bars["head"]["ddp"]
    for name, num_bytes in taken.moments[taken.peak_at].items():
        width = sum(colour == ImageColor.getrgb(memory_plot.COLOURS[name]) for colour in colours)
        assert width == pytest.approx(num_bytes * memory_plot.WIDTH / widest, abs=3), name
    assert colours[line - memory_plot.LEFT] == (0, 0, 0)
    with pytest.raises(UserError, match=r"give the name of a \.png file"):
        memory_plot.draw(plan, bars, None, tmp_path / "plan.pdf")


def test_the_table_and_the_breakdown(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(40), sharding={"strategy": "ddp"})
    table = shown(plan_table.tables(plan))
    assert "does not fit" in table
    assert plan.stages[1].why[:40] in table
    text = shown(memory_table.explained(plan, "full"))
    assert "reduction, the peak:" in text, "ddp's largest gradient is on its way into its bucket"
    moments, _, seconds = text.partition("a step, estimated: ")
    assert "estimated from: a GPU of unknown kind taken for A100 (--gpu-kind); 33% of" in seconds
    assert "compute" in seconds
    rows = {line.split()[0]: line for line in moments.splitlines() if line.startswith("  ")}
    assert rows["optimizer"].count("█") > rows["activations"].count("█")
    with pytest.raises(UserError, match="--explain last: the stages are head, full"):
        memory_table.explained(plan, "last")
