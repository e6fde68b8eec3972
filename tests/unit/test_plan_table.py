"""What ``thawline plan`` shows."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from launcher.cluster import Cluster
from launcher.plan import GroupPlan, RunPlan
from launcher.plan.table import group_rows, tables


def shown(plan: RunPlan) -> list[str]:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(tables(plan))
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip(" ─")]


def test_all_of_it(make_plan: Callable[..., RunPlan]) -> None:
    machine = Cluster(
        nodes=2, gpus_per_node=2, ranks_per_node=2, gpu_kind="H100", gpu_memory_bytes=80 * 2**30, bf16=True
    )
    sharding = {"strategy": "zero3", "offload": "cpu"}
    plan = make_plan(cluster=machine, sharding=sharding, schedule={"kind": "linear", "warmup": 0.1})
    assert shown(plan) == [
        "tiny: somewhere/tiny on 2 nodes x 2 x H100 (80 GiB)",
        "100 training, 20 validation, 0 test rows",
        "2 labels: bad, good; the most common is 60.0% of the validation rows",
        "stage trains trainable frozen steps epochs batch = micro x accumulation x ranks sharding precision schedule",
        "head head 16 256 13 1 8 = 2 x 1 x 4 zero3, offload cpu bf16 linear, warm-up 10%",
        "full all 272 0 26 2 8 = 2 x 1 x 4 zero3, offload cpu bf16 linear, warm-up 10%",
        "stage parameters of learning rate weight decay elements",
        "head head 0.001 0.01 16",
        "full embeddings 2.441e-09 0.01 16",
        "layers[0] 4.883e-09 0.01 / 0 20",
        "layers[1] 9.766e-09 0.01 / 0 20",
        "… 8 more 1.953e-08 to 2.5e-06 160",
        "layers[10] 5e-06 0.01 / 0 20",
        "layers[11] 1e-05 0.01 / 0 20",
        "head 2e-05 0.01 16",
    ]


def test_names_are_not_read_as_markup(make_plan: Callable[..., RunPlan]) -> None:
    """rich reads [0] and [/bold] as markup unless told not to."""
    assert any("layers[0]" in line for line in shown(make_plan()))


def test_few_groups_are_all_shown() -> None:
    groups = [
        GroupPlan(pattern=f"p{n}", learning_rate=1e-3, weight_decay=0.0, parameters=5, names=[]) for n in range(10)
    ]
    assert [row[0] for row in group_rows(groups)] == [f"p{n}" for n in range(10)]
    assert len(group_rows([*groups, groups[0]])) == 7
