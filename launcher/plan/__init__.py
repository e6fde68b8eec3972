"""The plan: recipe + cluster + facts of model and data -> everything resolved, and what it costs.

data_facts, parameters   what a plan must know of the data and of the model
update_size              how large an update can be, and whether fp32 can hold it
run_plan                 batch arithmetic, steps, precision, groups and rates; nothing is defaulted after it
micro_size               the sizes there are, and the smaller ones after a shortage of memory
fit                      what one way to train a stage takes, against what there is
search                   the fastest way that fits; ways: those near it when none does
assumed                  the facts where the data are not here
saved                    the plan of a run's folder; measured_time: its estimates against what was measured
free_space               checkpoints against the file system of the run's folder
table, memory_table, memory_plot, as_json   what `thawline plan` shows
"""

from launcher.plan.as_json import plan_json
from launcher.plan.run_plan import (
    LARGEST_AUTO_MICRO_SIZE,
    BatchPlan,
    GroupPlan,
    Planned,
    RunPlan,
    StagePlan,
    resolve,
    resolve_batch,
    resolve_precision,
)

__all__ = [
    "LARGEST_AUTO_MICRO_SIZE",
    "BatchPlan",
    "GroupPlan",
    "Planned",
    "RunPlan",
    "StagePlan",
    "plan_json",
    "resolve",
    "resolve_batch",
    "resolve_precision",
]
