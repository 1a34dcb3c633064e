"""What a run tells Weights & Biases: one group per run, its stages as jobs, curves, the table of results.

`wandb_mode` auto is online where WANDB_API_KEY is set and offline (files beside the run) everywhere else; nobody is ever
asked to log in. The key itself never leaves the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def track(stage: Any, mode: str = "auto") -> Iterator[Any]:
    """A wandb run for the stage of a notebook while the block lasts, or None where tracking is off or the stage is done.

    with track(stage, wandb_mode) as run: ...
    """
    mode = _mode(mode)
    if mode == "disabled" or stage.done:
        yield None
        return
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True,
        x_save_requirements=False,  # a second to list what is installed, in every stage; the manifest has what matters
    )  # fmt: skip
    run = wandb.init(
        project="srlib", group=stage.run.name, job_type=stage.stage.name, name=f"{stage.run.name}/{stage.stage.name}",
        mode=mode, dir=str(stage.run), config=dict(vars(stage.params)), settings=settings,
    )  # fmt: skip
    try:
        yield run
    finally:
        run.finish()


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def log_table(run: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of plain values as one wandb table; nothing where tracking is off."""
    if run is None or not rows:
        return
    import wandb

    columns = list(rows[0])
    run.log({name: wandb.Table(columns=columns, data=[[row.get(c) for c in columns] for row in rows])})
