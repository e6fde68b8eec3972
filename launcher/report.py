"""``thawline report``: a run on one page of HTML that needs nothing beside it: curves, stages, memory, time, goodput.

Owns the page. Pure from the run's files, as `status`; imports no torch, and knows of no run that is not on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from launcher import proof
from launcher.errors import UserError
from launcher.memory_record import MemoryRecord, read_all
from launcher.plan import RunPlan, StagePlan, measured_time, micro_size
from launcher.plan.measured_time import Record
from launcher.plan.saved import read_plan
from launcher.run_dir import RunDir, write_atomic
from launcher.status import Status, duration, event_words, number, read_status

WIDTH, HEIGHT, EDGE = 640, 180, 50
"""Pixels of a curve, and of the room for its numbers."""
NO_CURVE = {"time", "stage", "step", "epoch", "split", "memory_bytes", "tokens_per_second"}
COLOURS = {"train": "#4c72b0", "validation": "#dd8452"}
STYLE = (
    "body{font:15px sans-serif;max-width:72em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}svg{display:block}h2{margin-top:1.6em}"
)


def write(run: RunDir) -> str:
    """Write ``report.html`` into the run's folder, anew each time; returns its path.

    Raises:
        UserError: the folder is no run's, or it has no plan yet.
    """
    status = read_status(run)
    if not run.plan.is_file():
        raise UserError(f"{run.path}: has no plan.json yet, so there is nothing to report")
    plan = read_plan(run)
    write_atomic(run.report, _page(run, status, plan, measured_time.read(run)))
    return str(run.report)


def _page(run: RunDir, status: Status, plan: RunPlan, records: list[Record]) -> str:
    title = escape(f"{plan.recipe.name}: {status.state}")
    rows = f"{plan.data.train_rows:,} training, {plan.data.validation_rows:,} validation"
    facts = [
        ("run", str(run.path)), ("model", plan.recipe.model.source), ("machines", str(plan.cluster)),
        ("task", plan.recipe.task.kind), ("rows", rows),
        *((name, number(value)) for name, value in status.metrics.items()),
        ("message", status.message or ""),
    ]  # fmt: skip
    if found := measured_time.goodput(records, plan):
        useful, since = map(duration, found)
        share = f"{found[0] / found[1]:.1%}: {useful} of optimizer steps in the {since} since the first began"
        facts.append(("goodput", share))
    body = [
        f"<h1>{title}</h1>", _table([], facts),
        "<h2>Stages</h2>", _table(
            ["stage", "trains", "trainable", "frozen", "sharding", "batch", "precision", "steps", "proof"],
            [_stage_row(run, stage) for stage in plan.stages],
        ),
        "<h2>Memory and time, predicted and measured</h2>",
        _table(["stage", "what", "predicted", "measured", "error"], _compared(plan, read_all(run), records)),
    ]  # fmt: skip
    if warnings := proof.warnings(run, [stage.name for stage in plan.stages]):
        body += ["<h2>Warnings</h2>", _table([], [[line] for line in warnings])]
    if events := micro_size.events(run):
        body += ["<h2>Events</h2>", _table([], [[event_words(event)] for event in events])]
    body += ["<h2>Curves</h2>", *_curves(plan, records)]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return "\n".join([head, *body, "</html>"]) + "\n"


def _stage_row(run: RunDir, stage: StagePlan) -> list[str]:
    sharding, batch = stage.settings.sharding, stage.batch
    offload = f", offload {sharding.offload}" if sharding.offload != "none" else ""
    file = run.proof(stage.index, stage.name)
    holds = {True: "holds", False: "fails"}[json.loads(file.read_bytes())["holds"]] if file.is_file() else ""
    return [
        stage.name, ", ".join(stage.settings.train), f"{stage.trainable:,}", f"{stage.frozen:,}",
        f"{sharding.strategy}{offload}{', checkpointed' * (stage.settings.gradient_checkpointing is True)}",
        f"{batch.global_size} = {batch.micro_size} x {batch.accumulation} x {batch.ranks}", stage.settings.precision,
        f"{stage.steps:,}", holds,
    ]  # fmt: skip


def _compared(plan: RunPlan, memories: Iterable[MemoryRecord], records: Sequence[Record]) -> list[list[str]]:
    rows = []
    by_stage = {record.stage: record.compared() for record in memories}
    times = {time.stage: time for time in measured_time.timed(plan, records)}
    for stage in plan.stages:
        if found := by_stage.get(stage.name):
            sizes = [f"{num_bytes / 2**20:,.1f} MiB" for num_bytes in (found.predicted, found.measured)]
            rows.append([stage.name, found.what, *sizes, f"{found.error:+.1%}"])
        if time := times.get(stage.name):
            cells = [f"{seconds:.3g} s" for seconds in (time.estimated, time.measured)]
            rows.append([stage.name, "a step", *cells, f"{time.error:+.0%}"])
    return rows


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{head}{''.join(lines)}</table>"


def _curves(plan: RunPlan, records: Sequence[Record]) -> list[str]:
    """One for each number, over the optimizer steps of all stages in a row."""
    offsets, total = {}, 0
    for stage in plan.stages:
        offsets[stage.name], total = total, total + stage.steps
    names = dict.fromkeys(name for one in records for name in one if name not in NO_CURVE)
    found = []
    for name in names:
        lines = {
            split: [
                (offsets[one["stage"]] + one["step"], one[name]) for one in records
                if one["split"] == split and isinstance(one.get(name), int | float)
            ]
            for split in COLOURS
        }  # fmt: skip
        if any(lines.values()):
            found.append(_curve(name, lines, total))
    return found


def _curve(name: str, lines: Mapping[str, Sequence[tuple[int, float]]], steps: int) -> str:
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    span = high - low or 1.0
    drawn = []
    for split, points in lines.items():
        places = [
            (EDGE + step / steps * (WIDTH - EDGE), HEIGHT - 20 - (value - low) / span * (HEIGHT - 40))
            for step, value in points
        ]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{joined}" fill="none" stroke="{COLOURS[split]}" stroke-width="1.5"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{COLOURS[split]}"/>' for x, y in places[:500]]
    drawn.append(f'<text x="0" y="24" font-size="12">{number(high)}</text>')
    drawn.append(f'<text x="0" y="{HEIGHT - 16}" font-size="12">{number(low)}</text>')
    drawn.append(f'<text x="{WIDTH - 70}" y="{HEIGHT - 2}" font-size="12">step {steps}</text>')
    shown = ", ".join(
        f'<span style="color:{COLOURS[split]}">{split}</span>' for split, points in lines.items() if points
    )
    return f'<h3>{escape(name)} ({shown})</h3><svg width="{WIDTH}" height="{HEIGHT}">{"".join(drawn)}</svg>'
