"""Thawline: fine-tuning in stages, each with its own frozen layers and its own sharding.

The modules, in the order to read them:

    errors       what can go wrong, and the exit codes
    recipe       what a user writes; recipe_io reads it, rules compare its fields
    cluster      the hardware there is
    parameters   which parameters a pattern names, in which groups, at which rates
    plan         recipe + cluster + facts about model and data -> everything resolved; memory counts bytes;
                 survey collects those facts; plan_table prints the result
    run_dir      every path of a run
    session      is a run new, unfinished, or another recipe's (recipe_differences, run_lock)
    launch       starts the ranks, forwards signals, ends them together; orphans makes them die with it
    worker       one rank, from plan to exit code
    train        the loop; the file to read first if you only read one
    stages       what thaws, and the proof afterwards
    schedule     the learning rate as a function of the step; optim builds the optimizer
    distributed  rank, device, reduce, barrier; backends/ wrap the model for DDP and ZeRO
    data         rows -> batches; tasks/ turn rows into features, a loss and metrics
    models       load, name the layers, export
    checkpoint   write, commit, verify, fall back
    tracking     metrics.jsonl, status.json, wandb; console draws progress; status reads it back
    slurm_submit a recipe becomes a SLURM job: slurm_options, slurm_script, and slurm_attempt inside the job;
                 slurm_preflight looks at its nodes, slurm_watch for ranks that hang; split_stages: a job a stage
    ssh_nodes    several machines without SLURM
    doctor       whether a machine can train
    inference    evaluate and predict with an exported model
    cli          the commands
"""

__version__ = "0.1.0"
