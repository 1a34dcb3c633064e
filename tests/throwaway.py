"""A project in a temporary directory: six notebooks of a few lines around a copy of srlib, for test_runs and others."""

import json
import shutil
from pathlib import Path

import srlib

COMMON = """\
run_dir: str = "runs/last"  # where the run lives
seed: int = 0  # of everything
"""

OWN = {
    "01_data": 'data: str = "world"  # where examples come from\n',
    "02_sft": 'arm: str = "sft"  # which judge\nmodel: str = "base"  # a path\nlr: float = 0.1  # step [> 0]\n',
    "03_sample": "iteration: int = 1  # which round [1 ..]\nn_samples: int = 4  # judgments a prompt [1 ..]\n",
    "04_curate": "iteration: int = 1  # which round [1 ..]\nmargin: float = 2.0  # in scores [>= 0]\n",
    "05_dpo": "iteration: int = 1  # which round [1 ..]\nbeta: float = 0.1  # inverse temperature [> 0]\n",
    "06_eval": 'arms: list[str] = ["base", "sft"]  # what is evaluated\niterations: int = 1  # rounds [1 ..]\n',
}

OPEN = 'from srlib import runs\nstage = runs.open_stage("{name}", globals())\n'
WORK = """\
import os
if not stage.done:
    with open(stage.run / "log.txt", "a") as log:
        log.write(stage.stage.name + "\\n")
    (stage.path / "out.txt").write_text(stage.stage.name)
"""
FINISH = 'stage.finish(threads=os.environ.get("OMP_NUM_THREADS"), nice=os.nice(0))\n'
RESULTS = """\
from srlib import files as store
row = dict(metric="accuracy", ci_low=0.4, ci_high=0.6, n=9, seed=seed, iteration=0, protocol="greedy")
rows = [row | dict(arm=arm, split=s, value=0.5) for arm in arms for s in ("test", "ood", "pairwise")]
store.write_json(stage.run / "results.json", rows)
"""


def write_notebook(path: Path, cells: dict[str, str]) -> None:
    """`cells` maps a tag to the source of its code cell."""
    made = [
        {
            "cell_type": "code",
            "id": tag,
            "metadata": {"tags": [tag]},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for tag, text in cells.items()
    ]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": made, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}))


def make_project(root: Path, **work: str) -> Path:
    """Notebooks, a YAML file and a copy of srlib, which nobody edits during the test; `work` replaces the work cell: `n02_sft="1 / 0"`."""
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    (root / "params").mkdir(exist_ok=True)
    if not (root / "srlib").exists():
        shutil.copytree(Path(srlib.__file__).parent, root / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name, own in OWN.items():
        cells = {"parameters": COMMON + own, "open": OPEN.format(name=name), "work": work.get(f"n{name}", WORK)}
        cells["finish"] = FINISH + (RESULTS if name == "06_eval" else "")
        write_notebook(root / "notebooks" / f"{name}.ipynb", cells)
    (root / "params" / "tiny.yaml").write_text("seed: 0\n")
    return root


def namespace(root: Path, notebook: str, **changes) -> dict:
    """What `globals()` holds in a notebook whose parameters cell has run."""
    from srlib import config as params

    own = params.of_notebook(notebook, root / "notebooks")
    return {name: param.default for name, param in own.items()} | changes


def log(run: Path) -> list[str]:
    """The stages whose work cell really worked, in order."""
    return (run / "log.txt").read_text().split()
