"""A project in a temporary directory, notebooks of a few lines around a copy of srlib, and `srlib run` as a process."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import srlib
from srlib import config

OWN = {
    "01_data": ["seed", "data"], "02_sft": ["run_dir", "arm", "model", "sft_steps"], "03_sample": ["iteration", "n_samples"],
    "04_curate": ["iteration", "margin"], "05_dpo": ["iteration", "beta"], "06_eval": ["arms"], "07_diagnose": ["n_boot"],
}  # fmt: skip
OPEN = 'from srlib.run import open_stage\nstage = open_stage("{name}", globals())\ncfg = stage.cfg\n'
WORK = """\
if not stage.done:
    with open(stage.run / "log.txt", "a") as log:
        log.write(stage.name + " ")
    (stage.path / "out.txt").write_text(stage.name)
    (stage.path / "weights.txt").write_text(cfg.model_dump_json(exclude={"run_dir"}))  # other parameters, another judge
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


PATIENCE = 900  # seconds: only a process that hangs needs so many


def make_project(root: Path, **work: str) -> Path:
    """Notebooks, a YAML file, a base model of one file and a copy of srlib; `work` replaces a work cell: `n02_sft="1 / 0"`."""
    for folder in ("notebooks", "params", "models/notes-base"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if not (root / "srlib").exists():
        shutil.copytree(Path(srlib.__file__).parent, root / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "models" / "notes-base" / "weights").write_text("1")
    (root / "params" / "tiny.yaml").write_text("seed: 0\n")
    for name, own in OWN.items():
        cells = {"parameters": "".join(f"{field} = {config.FIELDS[field].default!r}\n" for field in own)}
        cells |= {"open": OPEN.format(name=name), "work": work.get(f"n{name}", WORK)}
        cells["finish"] = FINISH + (RESULTS if name == "06_eval" else "")
        write_notebook(root / "notebooks" / f"{name}.ipynb", cells)
    return root


def srlib_run(root: Path, run_dir: str, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **parameters):
    """`srlib run` in a process group of its own; SIGINT is not ignored, as it is in jobs in the background."""
    command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml", "--anyway"]
    command += [part for name, value in parameters.items() for part in ("-p", f"{name}={value}")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([*command, "--run-dir", run_dir], cwd=root, preexec_fn=preexec_fn, **pipes)


def stop(process, condition, how=signal.SIGKILL) -> str:
    """Wait for a condition, then stop the process: what it has printed."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"over before it was noticed: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=PATIENCE)[0]
