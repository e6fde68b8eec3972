"""Whether a stage fits, which sharding auto takes, what is told when nothing does, and how the plan shows it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from launcher import fit, memory_table, plan_table
from launcher.cluster import Cluster
from launcher.errors import UserError
from launcher.memory_peak import GIB, Activations, NotCounted
from launcher.parameters import ModelFacts, ParameterFacts
from launcher.plan import RunPlan, StagePlan, plan_json

MakePlan = Callable[..., RunPlan]
BLOCKS = 12
SIDE = 8192
"""Blocks of 268 million elements: 3.8 billion in all."""


def facts() -> ModelFacts:
    """The model of `make_plan`, large."""
    names = [f"encoder.{number}.{kind}" for number in range(BLOCKS) for kind in ("weight", "bias")]
    parameters = tuple(
        ParameterFacts(name, (SIDE,) if name.endswith("bias") else (SIDE, 4 * SIDE), "float32", True)
        for name in ("embed.weight", *names, "head.weight")
    )
    return ModelFacts(parameters, tuple((f"encoder.{number}.",) for number in range(BLOCKS)), ("head.",))


def count(stage: StagePlan) -> Activations:
    """A GiB for each row of the micro-batch, less where fewer parameters train."""
    share = len(stage.trained_names) / (2 * BLOCKS + 2)
    return Activations(saved=int(GIB * stage.batch.micro_size * share), largest=1000, logits=16, logits_forward=64)


def gpus(gib: float | None, *, nodes: int = 1, host_gib: float | None = None) -> Cluster:
    return Cluster(
        nodes=nodes, gpus_per_node=4, ranks_per_node=4, gpu_memory_bytes=int(gib * GIB) if gib else None, bf16=True,
        host_memory_bytes=int(host_gib * GIB) if host_gib else None,
    )  # fmt: skip


def planned(make_plan: MakePlan, cluster: Cluster, **changes: Any) -> RunPlan:
    return fit.with_memory(make_plan(cluster=cluster, **changes), facts(), count)


def test_what_fits_is_said_to(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(80), sharding={"strategy": "zero3"})
    for stage in plan.stages:
        assert stage.memory is not None
        assert stage.fits
        assert stage.memory.peak_bytes <= 80 * GIB
        assert f"needs {stage.memory.peak_bytes / GIB:.3g} GiB in the {stage.memory.peak_at} of the 80 GiB" in stage.why
    assert fit.shortage(plan, facts(), count) is None


def test_what_does_not_fit_names_what_is_missing_and_what_would(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(40), sharding={"strategy": "ddp"})
    head, full = plan.stages
    assert head.fits
    assert full.fits is False
    assert full.memory is not None
    assert f"{full.memory.peak_bytes / GIB - 40:.3g} GiB are missing" in full.why
    told = fit.shortage(plan, facts(), count)
    assert told is not None
    lines = told.splitlines()
    assert lines[0] == f"stage full: {full.why}"
    assert lines[1].startswith("  would fit: sharding: {strategy: zero")
    assert any("train: [head, 'layers[-" in line for line in lines)
    assert len(lines) <= 1 + fit.MOST_WAYS


@pytest.mark.parametrize("gib", [24, 30, 40, 60, 200])
def test_auto_takes_the_first_that_fits(make_plan: MakePlan, gib: float) -> None:
    plan = planned(make_plan, gpus(gib))
    for stage in plan.stages:
        sharding = stage.settings.sharding
        assert (sharding.strategy, sharding.offload) in fit.LADDER
        rung = fit.LADDER.index((sharding.strategy, sharding.offload))
        for strategy, offload in fit.LADDER[:rung]:
            cheaper = planned(make_plan, gpus(gib), sharding={"strategy": strategy, "offload": offload})
            assert cheaper.stages[stage.index].fits is False
            assert strategy in stage.why
        if stage.fits:
            assert stage.memory is not None
            assert stage.memory.peak_bytes <= gib * GIB, "auto never takes what its own model refuses"
        else:
            assert "no other strategy fits" in stage.why


def test_auto_differs_with_the_memory(make_plan: MakePlan) -> None:
    taken = [planned(make_plan, gpus(gib)).stages[1].settings.sharding for gib in (22, 40, 200)]
    assert [each.strategy for each in taken][-1] == "ddp"
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
            assert f"auto took zero3 at micro size {taken[gib]}: zero3 at micro size 16 needs" in stage.why
            larger = batch | {"micro_size": 2 * taken[gib]}
            assert planned(make_plan, gpus(gib), batch=larger, sharding=sharding).stages[1].fits is False
    assert list(taken.values()) == sorted(taken.values())
    assert len(set(taken.values())) > 2


def test_auto_checkpoints_before_it_offloads_and_never_where_it_is_told_not_to(make_plan: MakePlan) -> None:
    def less_again(stage: StagePlan) -> Activations:
        found = count(stage)
        return replace(found, saved=found.saved // 8) if stage.settings.gradient_checkpointing else found

    def settled(**changes: Any) -> StagePlan:
        batch = {"global_size": 32, "micro_size": 8}
        plan = make_plan(cluster=gpus(28), batch=batch, **changes)
        return fit.with_memory(plan, facts(), less_again).stages[1]

    stage = settled()
    assert (stage.settings.gradient_checkpointing, stage.settings.sharding.offload) == (True, "none")
    assert "with gradient checkpointing at micro size 8: ddp at micro size 8 needs" in stage.why
    told = settled(gradient_checkpointing=False)
    assert (told.settings.gradient_checkpointing, told.settings.sharding.offload) == (False, "cpu")


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
        assert stage.fits or "no other strategy fits" in stage.why


def test_on_the_cpu_auto_stays_ddp_and_nothing_is_refused(make_plan: MakePlan) -> None:
    machine = Cluster(gpus_per_node=0, ranks_per_node=2, host_memory_bytes=8 * GIB)
    plan = planned(make_plan, machine)
    full = plan.stages[1]
    assert (full.settings.sharding.strategy, full.fits) == ("ddp", False)
    assert "of the 4 GiB of a CPU rank's share of the host" in full.why
    assert fit.shortage(plan, facts(), count) is None


def test_host_memory_limits_offload(make_plan: MakePlan) -> None:
    sharding = {"strategy": "zero3", "offload": "cpu"}
    roomy, narrow = (planned(make_plan, gpus(80, host_gib=host), sharding=sharding).stages[1] for host in (500, 20))
    assert roomy.memory is not None
    assert roomy.memory.host_bytes > 0
    assert (roomy.fits, narrow.fits) == (True, False)
    assert "of the 20 GiB of a node's host" in narrow.why


def test_unknown_is_not_a_verdict(make_plan: MakePlan) -> None:
    unsized = planned(make_plan, gpus(None)).stages[1]
    assert (unsized.fits, unsized.settings.sharding.strategy) == (None, "ddp")
    assert "say it with --gpu-memory" in unsized.why

    def blind(stage: StagePlan) -> Activations:
        raise NotCounted("Net looks at values")

    stage = fit.with_memory(make_plan(cluster=gpus(80)), facts(), blind).stages[1]
    assert (stage.memory, stage.fits, stage.why) == (None, None, "not estimated: Net looks at values")


def test_the_json_has_the_keys_that_programs_read(make_plan: MakePlan) -> None:
    stage = plan_json(planned(make_plan, gpus(80)))["stages"][1]
    assert stage["memory"].keys() >= {
        "peak_bytes", "parameters_bytes", "gradients_bytes", "master_bytes", "optimizer_bytes", "activations_bytes",
        "logits_bytes", "buffers_bytes", "margin_bytes", "host_bytes",
    }  # fmt: skip
    assert stage["fits"] in (True, False)
    assert stage["why"]


def shown(what: Any) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_and_the_breakdown(make_plan: MakePlan) -> None:
    plan = planned(make_plan, gpus(40), sharding={"strategy": "ddp"})
    table = shown(plan_table.tables(plan))
    assert "does not fit" in table
    assert plan.stages[1].why[:40] in table
    text = shown(memory_table.explained(plan, "full"))
    assert "reduction, the peak:" in text, "ddp's largest gradient is on its way into its bucket"
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert rows["optimizer"].count("█") > rows["activations"].count("█")
    with pytest.raises(UserError, match="--explain last: the stages are head, full"):
        memory_table.explained(plan, "last")
