"""The page that ``thawline report`` writes: from the run's files alone, and nothing beside it."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher import proof, report
from launcher.costs.memory import ModelStates
from launcher.costs.peak import GIB, Activations, plan_memory
from launcher.costs.step_time import StepTime
from launcher.errors import Shortage, UserError
from launcher.memory_record import Measured, MemoryRecord
from launcher.plan import RunPlan, micro_size
from launcher.proof import Proof
from launcher.run_dir import RunDir
from launcher.tracking import open_tracker


class Reader(HTMLParser):
    """Cells of tables, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.points: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.loads += [str(found[key]) for key in ("src", "href") if key in found]
        self.points += [str(found["points"])] if tag == "polyline" else []

    def handle_data(self, data: str) -> None:
        self.cells.append(data.strip())


def test_all_of_a_run_is_on_one_page(make_plan: Callable[..., RunPlan], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run<1>")
    run.create()
    plan = make_plan()
    memory = plan_memory(ModelStates(parameters=GIB), Activations(), 0.0, is_gpu=True)
    time = StepTime(seconds=0.1, compute=0.1, recomputation=0, communication=0, optimizer=0, offload=0, assumptions=[])
    stages = [stage.model_copy(update={"memory": memory, "time": time}) for stage in plan.stages]
    plan = plan.model_copy(update={"stages": stages})
    run.plan.write_text(plan.model_dump_json())
    tracker = open_tracker(run, plan, is_first=True)
    with tracker:
        for stage in plan.stages:
            tracker.stage_started(stage, 0)
            for step in (5, 10):
                tracker.training(
                    step=step, epoch=step / 13, loss=1 / step, learning_rate=1e-3, grad_norm=2.0,
                    samples_per_second=100.0, tokens_per_second=900.0, memory_bytes=2**30,
                )  # fmt: skip
            tracker.evaluated(10, 1.0, "validation", {"accuracy": 0.75, "loss": 0.4})
        tracker.finished("finished", "accuracy 0.75", {"accuracy": 0.75, "loss": 0.4})
    measured = Measured(allocated=GIB // 2)
    record = MemoryRecord(stage="full", micro_size=8, predicted=memory, measured=measured, ranks=[measured])
    run.memory(1, "full").parent.mkdir(parents=True)
    run.memory(1, "full").write_text(record.model_dump_json())
    run.proof(1, "full").write_text('{"holds": true}')
    page = Path(report.write(run)).read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.loads == []
    assert "tiny: finished" in reader.cells
    at = reader.cells.index("peak of what torch allocates on the GPU")
    assert reader.cells[at - 1 : at + 4] == ["full", reader.cells[at], "1,024.0 MiB", "512.0 MiB", "+100.0%"]
    at = reader.cells.index("a step")
    assert reader.cells[at + 1 : at + 4] == ["0.1 s", "0.08 s", "+25%"], "8 samples at 100 a second"
    assert "holds" in reader.cells
    assert str(run.path) in reader.cells, "escaped, and read back"
    curves = {name.split(" (")[0] for name in reader.cells if name.endswith("(")}
    assert {"loss", "accuracy", "learning_rate", "samples_per_second"} <= curves
    loss = [len(points.split()) for points in reader.points[:2]]
    assert loss == [4, 2], "of training and of validation, over both stages"
    micro_size.after_out_of_memory(run, Shortage("full", "step", 8), 1, "no memory")
    change = {"event": "other_ranks", "before": "2 CPU ranks", "after": "1 CPU rank"}
    micro_size.append_event(run, change | {"checkpoint": "00-head-step-00000004"})
    wild = Proof(
        index=0, stage="head", engine={}, holds=True, groups=[], moved_though_frozen=[], still_though_trained=[],
        unused=[], diverged="stage head diverged: lower the learning rate", parameters=[],
    )  # fmt: skip
    proof.write(run, wild)
    page = Path(report.write(run)).read_text()
    assert "<h2>Warnings</h2>" in page
    assert "stage head diverged: lower the learning rate" in page
    assert "8 became 4" in page
    assert "planned for 2 CPU ranks, goes on with 1 CPU rank from 00-head-step-00000004" in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        report.write(RunDir(tmp_path))
