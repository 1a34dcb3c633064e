"""A project in a temporary directory: notebooks of a few lines around a copy of srlib, for the tests of runs."""

import json
import shutil
from pathlib import Path

import srlib
from srlib import config

OWN = {
    "01_data": ["seed", "data"],
    "02_sft": ["seed", "arm", "model", "sft_steps"],
    "03_sample": ["seed", "iteration", "n_samples"],
    "04_curate": ["iteration", "margin"],
    "05_dpo": ["iteration", "beta"],
    "06_eval": ["arms"],
    "07_diagnose": ["audit_items"],
}
OPEN = 'from srlib.run import open_stage\nstage = open_stage("{name}", globals())\ncfg = stage.cfg\n'
WORK = """\
if not stage.done:
    with open(stage.run / "log.txt", "a") as log:
        log.write(stage.name + "\\n")
    (stage.path / "out.txt").write_text(stage.name)
"""
FINISH = 'import os\nstage.finish(threads=os.environ.get("OMP_NUM_THREADS"), micro_batch_size=cfg.micro_batch_size)\n'
RESULTS = """\
from srlib import files
row = dict(metric="accuracy", ci_low=0.4, ci_high=0.6, n=9, seed=cfg.seed, iteration=0, protocol="greedy")
rows = [row | dict(arm=arm, split=s, value=0.5) for arm in arms for s in ("test", "ood", "pairwise")]
files.write_json(stage.run / "results.json", rows)
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
    for name, own in OWN.items():
        defaults = {parameter: config.FIELDS[parameter].default for parameter in own}
        cells = {"parameters": "".join(f"{parameter} = {value!r}\n" for parameter, value in defaults.items())}
        cells |= {"open": OPEN.format(name=name), "work": work.get(f"n{name}", WORK)}
        cells["finish"] = FINISH + (RESULTS if name == "06_eval" else "")
        write_notebook(root / "notebooks" / f"{name}.ipynb", cells)
    (root / "params" / "tiny.yaml").write_text("seed: 0\n")
    return root


def namespace(notebook: str, **changes: object) -> dict:
    """What `globals()` holds in a notebook whose parameters cell has run."""
    return {name: config.FIELDS[name].default for name in config.declared_in(notebook)} | changes


def log(run: Path) -> list[str]:
    """The stages whose work cell really worked, in order."""
    return (run / "log.txt").read_text().split()
