"""A project in a temporary directory: notebooks of a few lines around a copy of srlib, for the tests of runs."""

import json
import shutil
from pathlib import Path

import srlib
from srlib import config

OWN = {
    "01_data": ["seed", "data"], "02_sft": ["seed", "arm", "model", "sft_steps"], "03_sample": ["iteration", "n_samples"],
    "04_curate": ["iteration", "margin"], "05_dpo": ["iteration", "beta"], "06_eval": ["arms"], "07_diagnose": ["n_boot"],
}  # fmt: skip
OPEN = 'from srlib.run import open_stage\nstage = open_stage("{name}", globals())\ncfg = stage.cfg\n'
WORK = """\
if not stage.done:
    with open(stage.run / "log.txt", "a") as log:
        log.write(stage.name + " ")
    (stage.path / "out.txt").write_text(stage.name)
"""
FINISH = 'import os\nstage.finish(threads=os.environ.get("OMP_NUM_THREADS"), micro_batch_size=cfg.micro_batch_size)\n'
RESULTS = """\
from srlib import files
row = dict(split="test", metric="accuracy", value=0.5, ci_low=0.4, ci_high=0.6, n=9, seed=cfg.seed, protocol="greedy")
files.write_json(stage.run / "results.json", [row | dict(arm=arm, iteration=0) for arm in arms])
"""


def write_notebook(path: Path, cells: dict[str, str]) -> None:
    """`cells` maps a tag to the source of its code cell."""
    code = {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [code | {"id": tag, "metadata": {"tags": [tag]}, "source": text} for tag, text in cells.items()]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}))


def make_project(root: Path, **work: str) -> Path:
    """Notebooks, a YAML file, a base model of one file and a copy of srlib; `work` replaces a work cell: `n02_sft="1 / 0"`."""
    for folder in ("notebooks", "params", "runs", "models/tiny-base"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if not (root / "srlib").exists():
        shutil.copytree(Path(srlib.__file__).parent, root / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "models" / "tiny-base" / "weights").write_text("1")
    (root / "params" / "tiny.yaml").write_text("seed: 0\n")
    for name, own in OWN.items():
        cells = {"parameters": "".join(f"{field} = {config.FIELDS[field].default!r}\n" for field in own)}
        cells |= {"open": OPEN.format(name=name), "work": work.get(f"n{name}", WORK)}
        cells["finish"] = FINISH + (RESULTS if name == "06_eval" else "")
        write_notebook(root / "notebooks" / f"{name}.ipynb", cells)
    return root
