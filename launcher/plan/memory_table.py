"""A plan's memory for people: one row a stage, and the breakdown of one stage with bars.

Owns the layout of what `fit` found; `plan.plan_json` is the same for programs. Decides nothing.
"""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher import memory_record
from launcher.costs.amounts import duration_text
from launcher.costs.peak import GIB
from launcher.costs.step_time import StepTime
from launcher.errors import UserError
from launcher.plan import fit, measured_time
from launcher.plan.run_plan import RunPlan, StagePlan
from launcher.plan.stage_table import StageTable
from launcher.run_dir import RunDir

BAR_WIDTH = 40
COLUMNS = (
    "stage", "peak GiB per rank", "of", "peak in", "model and optimizer", "activations", "loss", "host GiB",
    "checkpoint", "s per step", "stage time", "",
)  # fmt: skip
LEFT = frozenset({"stage", "peak in", ""})
FITS = {True: "fits", False: "does not fit", None: "not known"}


def rows(plan: RunPlan) -> list[RenderableType]:
    """The memory and time of all stages, and why where it is not plain; nothing where none was estimated."""
    if not any(stage.memory or stage.why for stage in plan.stages):
        return []
    table = StageTable(COLUMNS, [_row(plan, stage) for stage in plan.stages], LEFT)
    told = []
    for stage in plan.stages:
        needs = stage.why if _needs_words(stage) else ""
        reasons = [needs, stage.choice, _routed(stage), _on_disk(plan, stage)]
        told += [f"{stage.name}: {'; '.join(filter(None, reasons))}"] if any(reasons) else []
    return [table, Text("\n".join([*told, *_whole_time(plan)]))]


def _whole_time(plan: RunPlan) -> list[str]:
    """The run's time in all, and what the estimate rests on."""
    timed = [(stage, stage.time) for stage in plan.stages if stage.time]
    if not timed:
        return []
    seconds = sum(stage.steps * time.seconds for stage, time in timed)
    missing = [stage.name for stage in plan.stages if not stage.time]
    without = f" (without {', '.join(missing)})" if missing else ""
    steps = sum(stage.steps for stage, _ in timed)
    assumed = dict.fromkeys(told for _, time in timed for told in time.assumptions)
    errors = dict.fromkeys(time.error for _, time in timed)
    return [
        f"all stages{without}: {steps:,} steps in about {duration_text(seconds)}, plus evaluations, checkpoints and "
        f"start-up; error of the estimate: {'; '.join(errors)}",
        f"time is estimated from: {'; '.join(assumed)}",
    ]


def explained(plan: RunPlan, name: str) -> RenderableType:
    """What takes the memory of one stage, in each of its moments.

    Raises:
        UserError: the plan has no such stage, or its memory is not estimated.
    """
    found = next((stage for stage in plan.stages if stage.name == name), None)
    if found is None:
        raise UserError(f"--explain {name}: the stages are {', '.join(stage.name for stage in plan.stages)}")
    if found.memory is None:
        raise UserError(f"--explain {name}: {found.why or 'its memory is not estimated'}")
    blocks: list[RenderableType] = [Text(f"{name}: {found.why}")]
    for moment, parts in found.memory.moments.items():
        blocks.append(_moment(moment, parts, found.memory.peak_bytes, is_peak=moment == found.memory.peak_at))
    if found.memory.host_bytes:
        blocks.append(Text(f"host memory: {_gib(found.memory.host_bytes)} GiB a rank"))
    if on_disk := _on_disk(plan, found):
        blocks.append(Text(on_disk))
    if routed := _routed(found):
        blocks.append(Text(routed))
    if found.disk:
        sizes = [found.disk.checkpoint_bytes, found.disk.model_bytes, found.disk.most_bytes]
        told = "disk: {} GiB a checkpoint inside the stage, {} the model at its end, {} at most while it runs"
        blocks.append(Text(told.format(*map(_gib, sizes))))
    if found.time:
        blocks += _time(found.time)
    return Group(*blocks)


def _needs_words(stage: StagePlan) -> bool:
    is_bound = stage.memory is not None and stage.memory.activations_are != "counted"
    return stage.fits is not True or is_bound or bool(stage.choice)


def _routed(stage: StagePlan) -> str:
    """What a mixture's activations take by where its routers send the tokens; empty where there are no experts."""
    memory = stage.memory
    if memory is None or memory.even_routing_bytes is None or memory.worst_routing_bytes is None:
        return ""
    even, worst = _gib(memory.even_routing_bytes), _gib(memory.worst_routing_bytes)
    return (
        f"experts: {even} GiB of activations if all get equal shares of the tokens, {worst} GiB if every token chooses "
        "the same ones; the plan takes the larger"
    )


def _on_disk(plan: RunPlan, stage: StagePlan) -> str:
    """What ``offload: nvme`` puts on the nodes' own disks; empty where it puts nothing."""
    if not stage.memory or not stage.memory.nvme_bytes:
        return ""
    a_rank, ranks = stage.memory.nvme_bytes, plan.cluster.ranks_per_node
    return f"NVMe: {_gib(a_rank)} GiB a rank, {_gib(ranks * a_rank)} GiB on a node's own disk"


def _time(time: StepTime) -> list[RenderableType]:
    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left")
    table.title = f"a step, estimated: {time.seconds:.2g} s"
    for part in ("compute", "recomputation", "communication", "optimizer", "offload"):
        seconds = getattr(time, part)
        bar = "█" * round(BAR_WIDTH * seconds / time.seconds)
        table.add_row(Text(f"  {part}"), Text(f"{seconds:.3g}", justify="right"), Text(bar))
    return [table, Text(f"estimated from: {'; '.join(time.assumptions)}; error: {time.error}")]


def compared(plan: RunPlan, run: Path) -> RenderableType:
    """What the plan predicts of memory and time against what a run of the same stages measured.

    Raises:
        UserError: the run has measured none of them.
    """
    records = {record.stage: record for record in memory_record.read_all(RunDir(run))}
    lines = measured_time.read(RunDir(run))
    times = {time.stage: time for time in measured_time.timed(plan, lines)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = (
        "stage",
        "micro size",
        "GiB predicted",
        "measured",
        "error",
        "of",
        "s a step estimated",
        "measured",
        "error",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("stage", "of") else "right")
    for stage in plan.stages:
        record, time = records.get(stage.name), times.get(stage.name)
        found = record.compared(stage.memory) if record else None
        sizes = str(stage.batch.micro_size)
        if record and record.micro_size != stage.batch.micro_size:
            sizes += f", ran {record.micro_size}"
        cells = (_gib(found.predicted), _gib(found.measured), f"{found.error:+.1%}", found.what) if found else [""] * 4
        times_cells = (f"{time.estimated:.3g}", f"{time.measured:.3g}", f"{time.error:+.0%}") if time else [""] * 3
        if found or time:
            table.add_row(*map(Text, (stage.name, sizes, *cells, *times_cells)))
    if not table.row_count:
        measured = ", ".join(dict.fromkeys([*records, *(one["stage"] for one in lines)])) or "none"
        raise UserError(f"--compare {run}: it has measured no stage of this recipe's names ({measured})")
    return table


def _row(plan: RunPlan, stage: StagePlan) -> tuple[str, ...]:
    memory = stage.memory
    if memory is None:
        return stage.name, *[""] * 10, FITS[None]
    there = fit.rank_memory(plan.cluster)
    states = memory.parameters_bytes + memory.gradients_bytes + memory.master_bytes + memory.optimizer_bytes
    return (
        stage.name,
        _gib(memory.peak_bytes),
        _gib(there) if there else "?",
        memory.peak_at,
        _gib(states),
        _gib(memory.activations_bytes),
        _gib(memory.logits_bytes),
        _gib(memory.host_bytes) if memory.host_bytes else "",
        _gib(stage.disk.checkpoint_bytes) if stage.disk else "",
        f"{stage.time.seconds:.2g}" if stage.time else "",
        duration_text(stage.steps * stage.time.seconds) if stage.time else "",
        FITS[stage.fits],
    )


def _moment(name: str, parts: dict[str, int], widest: int, *, is_peak: bool) -> Table:
    total = sum(parts.values())
    title = f"{name}, the peak: {_gib(total)} GiB" if is_peak else f"{name}: {_gib(total)} GiB"
    table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
    for part, num_bytes in sorted(parts.items(), key=lambda item: -item[1]):
        bar = "█" * round(BAR_WIDTH * num_bytes / widest)
        table.add_row(Text(f"  {part}"), Text(_gib(num_bytes), justify="right"), Text(bar))
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}" if num_bytes >= GIB / 200 or not num_bytes else "<0.01"
