"""SLURM: a recipe becomes a job that survives what clusters do to it. The script's template is in ``slurm/``.

submit       recipe -> script -> job; script: the text, a pure function; array: a run for each value
attempt      inside the job: how it begins, how it ended, and whether it goes on
preflight    is every node fit to take part
watch        ranks that hang
queue        what squeue, scontrol and sacct say
status       a run and its jobs, for `thawline status` and `watch`
"""
