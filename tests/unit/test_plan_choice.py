"""The plan's words for who chose a sharding and what would be faster, its total times, and its tables at 80 columns."""

from __future__ import annotations

import io
import re

import pytest
from large_model import MakePlan, count, facts, gpus, planned
from rich.console import Console

from launcher.costs.amounts import bytes_text, duration_text
from launcher.costs.step_time import CHECKED
from launcher.plan import RunPlan, fit, plan_json, search
from launcher.plan import table as plan_table

FIXED = {"global_size": 64, "micro_size": 2}
OFFLOADED = {"strategy": "zero3", "offload": "cpu"}


def shown(plan: RunPlan, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(plan_table.tables(plan))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("batch", [FIXED, {"global_size": 64}])
def test_what_the_recipe_sets_is_not_said_to_be_autos_choice(make_plan: MakePlan, batch: dict[str, int]) -> None:
    """And the faster one that is named fits and is as much faster as is said, planned by itself."""
    plan = planned(make_plan, gpus(200), sharding=OFFLOADED, batch=batch)
    for stage in plan.stages:
        assert "auto chose zero3" not in stage.choice
        said = re.search(
            r"zero3 with offload to the host is set by the recipe; (\w+) would fit too, (\d+)% faster", stage.choice
        )
        assert said, stage.choice
        other = fit.verdict(fit.sharded(stage, said[1], "none"), plan.cluster, facts(), count)
        assert other.fits
        assert other.time
        assert stage.time
        assert round(100 * (1 - other.time.seconds / stage.time.seconds)) == int(said[2]) > 0
        assert stage.choice in plan_json(plan)["stages"][stage.index]["why"]


def test_nothing_faster_is_invented(make_plan: MakePlan) -> None:
    """Under ddp, which is the fastest here, and where what is faster does not fit."""
    under_ddp = planned(make_plan, gpus(200), sharding={"strategy": "ddp"}, batch=FIXED).stages[1]
    assert under_ddp.choice == "ddp is set by the recipe"
    narrow = planned(make_plan, gpus(20), sharding=OFFLOADED, batch=FIXED).stages[1]
    assert narrow.fits
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        assert not fit.verdict(fit.sharded(narrow, strategy, "none"), gpus(20), facts(), count).fits
        assert f"{strategy} would fit" not in narrow.choice
    by_auto = planned(make_plan, gpus(200)).stages[1]
    assert by_auto.choice.startswith(f"auto chose {by_auto.settings.sharding.strategy}, micro size ")
    assert "set by the recipe" not in by_auto.choice


def test_times_of_stages_add_up(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(200), batch=FIXED)
    seconds = [stage.steps * stage.time.seconds for stage in plan.stages if stage.time]
    text = " ".join(shown(plan, 160).split())
    steps = sum(stage.steps for stage in plan.stages)
    assert f"all stages: {steps} steps in about {duration_text(sum(seconds))}, plus evaluations, checkpoints" in text
    for each in seconds:
        assert f" {duration_text(each)} fits" in text
    assert "error of the estimate: unknown on this hardware; use it to compare settings" in text


def test_a_checked_gpu_says_its_measured_error(make_plan: MakePlan) -> None:
    cluster = gpus(80).model_copy(update={"gpu_kind": "NVIDIA H100 80GB HBM3"})
    text = " ".join(shown(planned(make_plan, cluster, batch=FIXED), 160).split())
    assert f"error of the estimate: {CHECKED['H100', 'bf16']}" in text


@pytest.mark.parametrize("width", [80, 100])
def test_at_80_columns_every_word_and_number_is_whole(make_plan: MakePlan, width: int) -> None:
    stages = [
        {"name": f"stage-with-a-long-name-{number}", "train": ["head", "layers[-8:]"], "steps": 1000 * number}
        for number in range(1, 6)
    ]
    plan = planned(make_plan, gpus(200), stages=stages, batch=FIXED, sharding=OFFLOADED)
    text = shown(plan, width)
    assert max(map(len, text.splitlines())) <= width
    for stage in plan.stages:
        assert stage.time
        for whole in (stage.name, f"{stage.trainable:,}", f"{stage.steps:,}", "zero3, offload cpu"):
            assert re.search(rf"(?<![\w,]){re.escape(whole)}(?![\w,])", text), whole
    assert "peak GiB per rank" in text
    assert not re.search(r"\de-\d+", text.partition("parameters of")[0]), "no 7e-07 GiB"


def test_amounts_for_people() -> None:
    assert [bytes_text(n) for n in (0, 812, 750, 1 << 20, int(1.5 * 2**30), 80 * 2**30, 5 * 2**40)] == [
        "0 bytes", "812 bytes", "750 bytes", "1 MiB", "1.5 GiB", "80 GiB", "5 TiB",
    ]  # fmt: skip
    assert [duration_text(s) for s in (0.0123, 8.04, 99, 180, 7800, 7200, 272_000)] == [
        "0.012 s", "8 s", "99 s", "3 min", "2 h 10 min", "2 h", "3 d 4 h",
    ]  # fmt: skip
    assert "e-" not in fit.gib(800)


def test_the_ladder_is_tried_once_for_each_stage(make_plan: MakePlan) -> None:
    """What would be faster costs no more counts than there are rungs."""
    asked: list[str] = []

    def counting(stage, length=None):  # type: ignore[no-untyped-def]
        asked.append(stage.name)
        return count(stage, length)

    search.with_memory(
        make_plan(cluster=gpus(200), batch=FIXED, sharding={"strategy": "zero3"}, gradient_checkpointing=False),
        facts(), counting,
    )  # fmt: skip
    assert max(asked.count(name) for name in asked) <= len(search.LADDER) + 2
