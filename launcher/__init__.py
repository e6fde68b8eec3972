"""Thawline: fine-tuning in stages, each with its own frozen layers and its own sharding.

The modules, in the order to read them; a name with a slash is a folder, whose own docstring goes on:

    errors       what can go wrong, and the exit codes
    recipe/      what a user writes, and how it is read and checked
    cluster      the hardware there is; host_limits: of this host; oversubscription: more ranks than it can hold
    costs/       what a stage takes: bytes of memory and disk, seconds
    plan/        recipe + cluster + facts about model and data -> everything resolved
    data_survey  what can be said of the data without the model, before torch is imported
    survey       collects those facts (text_survey, typical_length: of texts; cpu_measurement: of this machine)
    run_dir      every path of a run
    session      is a run new, unfinished, or another recipe's (run_lock: only one plans it)
    launch       starts the ranks, forwards signals, ends them together; orphans makes them die with it
    worker       one rank, from plan to exit code
    walk         from stage to stage; seen_rows says at its start what the model will see
    train        the loop; the file to read first if you only read one
    stages       what thaws, and the proof afterwards (proof: its file and verdict; gradient_witness: what was pushed)
    stage_end    a stage is saved, then judged; divergence: losses that run away
    schedule     the learning rate as a function of the step; optim builds the optimizer
    distributed  rank, device, reduce, barrier; backends/ wrap the model for DDP and ZeRO
    data/        files -> rows -> batches; tasks/ turn rows into features, a loss and metrics
    models/      load, name the layers, count what a forward keeps; export writes a plain model
    checkpoint   write, commit, verify, fall back
    phases       what a starting run is at
    tracking     metrics.jsonl, status.json, wandb; console draws progress; status reads it back
    slurm/       a recipe becomes a SLURM job; split_stages: a job a stage
    ssh_nodes    several machines without SLURM
    doctor       whether a machine can train
    inference    evaluate and predict with an exported model
    first_recipe/ a recipe for data that is looked at: what `thawline init` writes
    cli          the commands; cli_recipes, cli_models and cli_cluster have some of them, cli_help their order
"""

__version__ = "0.1.0"
