"""A run goes on with the rows it was planned for, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from running import ROOT, recipe, thawline, tiny_bert

ROWS = ["text,label", *(f"a day of {word},{label}" for word in ("rain", "sun", "wind", "snow") for label in "abab")]
PLAN_ONLY = """
import sys
from pathlib import Path
from launcher import session
session.open_run(Path(sys.argv[1]), run_dir=Path(sys.argv[2]))
"""


def test_a_run_refuses_to_go_on_with_a_changed_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(ROWS))
    data = {"source": "csv", "files": str(file), "max_length": 8, "split": {"validation": 0.25}}
    model = {"source": str(tiny_bert(tmp_path / "bert")), "weights": "random"}
    run = tmp_path / "run"
    planned = recipe(tmp_path, [{"name": "head", "train": ["head"], "steps": 2}], model=model, data=data)
    subprocess.run([sys.executable, "-c", PLAN_ONLY, planned, run], check=True, cwd=ROOT)
    file.write_text("\n".join(ROWS).replace("snow", "hail", 1))
    done = thawline("resume", run, check=False)
    assert done.returncode == 2, done.stderr
    assert "the data is not what was planned: rows hold other values, or lie in another order; restore" in done.stderr
    assert "Traceback" not in done.stderr
    file.write_text("\n".join(ROWS))
    thawline("resume", run)
    file.write_text("\n".join([*ROWS, "a day of hail,a"]))
    measured = thawline("evaluate", run, check=False)
    assert measured.returncode == 2, measured.stderr
    assert "the data is not what the run was planned with: " in measured.stderr
