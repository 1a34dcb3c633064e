"""A run directory, and a stage from inside its notebook: opened, worked in, finished.

    stage = runs.open_stage("05_dpo", globals())   # checks parameters and inputs, says why it runs
    if not stage.done: ...                         # work in stage.path, which a killed stage finds again
    stage.finish(pairs=412)                        # manifest, then the directory gets its name

What the stages are and when one has to run again is in stages.py.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from srlib import config as parameters
from srlib import files as store
from srlib.hardware import machine
from srlib.run import stages
from srlib.run.stages import RunError, Stage

USED = ("seconds", "peak_memory", "peak_gpu_memory", "energy")
PACKAGES = ("srlib", "torch", "transformers", "trl", "peft", "unsloth", "numpy")


class OpenStage:
    """One stage while its notebook runs. `path` is where its files are: partial until `finish`, then the output."""

    def __init__(self, stage: Stage, run: Path, params: Mapping[str, Any], now: dict[str, Any]) -> None:
        self.stage, self.run, self.params = stage, run, SimpleNamespace(**params)
        self.inputs = {name: run / name for name in stage.inputs}
        self.parts, self.key = now, stages.key(now)
        self._output, self._partial = run / stage.output, stages.partial_of(run / stage.output)
        self._started, self._energy = time.monotonic(), machine.energy()
        self.done = self._is_current(self._output)
        if not self.done:
            self._open_partial()
        self.path = self._output if self.done else self._partial

    def _is_current(self, path: Path) -> bool:
        return (stages.manifest(path) or {}).get("key") == self.key

    def _open_partial(self) -> None:
        if self._is_current(self._partial):  # killed between the manifest and the renaming
            self._publish()
            self.done = True
        elif (stages.recorded(self._partial) or {}).get("key") != self.key:
            shutil.rmtree(self._partial, ignore_errors=True)
            store.write_json(self._partial / "stage.json", {"key": self.key, "parts": self.parts})

    @property
    def facts(self) -> dict[str, Any]:
        """What `finish` was told when this stage was done; empty before."""
        return (stages.manifest(self.path) or {}).get("facts", {})

    @property
    def used(self) -> dict[str, float | None]:
        """What the stage took so far: seconds, peak memory (bytes) of its largest process and of a GPU, joules of the
        GPUs; None where there is none or nobody counts. Of a resumed stage, that of its last session."""
        if self.done:
            return {name: (stages.manifest(self.path) or {}).get(name) for name in USED}
        energy = machine.energy()
        joules = None if energy is None or self._energy is None else round(energy - self._energy, 1)
        seconds = round(time.monotonic() - self._started, 3)
        return dict(zip(USED, (seconds, machine.peak_memory(), machine.peak_gpu_memory(), joules), strict=True))

    def finish(self, **facts: Any) -> None:
        """Write the manifest and give the directory its name; `facts` are what this stage wants remembered.

        Nothing happens when the stage was done already.
        """
        if self.done:
            return
        manifest = {
            "stage": self.stage.name,
            "key": self.key,
            "params": {name: value for name, value in vars(self.params).items() if name not in stages.NOT_IDENTITY},
            "inputs": {name: self.parts[f"input {name}"] for name in self.stage.inputs},
            "versions": _versions(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self.used,
            "facts": facts,
            "parts": self.parts,
        }
        store.write_json(self._partial / "manifest.json", manifest)
        (self._partial / "stage.json").unlink(missing_ok=True)
        self._publish()
        self.done, self.path = True, self._output
        store.release(_stage_lock(self.run, self.stage))

    def _publish(self) -> None:
        """No directory replaces another at once: the old one steps aside, and `_open_partial` mends a kill between."""
        old = self._output.with_name(f"{self._output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        with store.writing(self._output):
            if self._output.exists():
                self._output.rename(old)
            self._partial.rename(self._output)
        shutil.rmtree(old, ignore_errors=True)


def open_stage(notebook: str, namespace: Mapping[str, Any], root: Path | None = None) -> OpenStage:
    """Check parameters and inputs of a running notebook and find its place: `open_stage("03_sample", globals())`.

    What the notebook does not declare (say, how many iterations there are) comes from the run's params.yaml. Raises
    ParamError on a parameter, RunError on a missing input or when another process is in this stage.
    """
    root = root or parameters.project_root()
    values = parameters.check(notebook, namespace, root / "notebooks")
    run = open_run(values.get("run_dir", "runs/last"), root)
    recorded = run / "params.yaml"
    run_params = parameters.load(recorded if recorded.exists() else None, (), root / "notebooks") | values
    stage = stages.find(notebook, values, run_params)
    _require(run, stage.inputs, run_params)
    _enter(run, stage, patience=20)
    now = stages.parts(stage, values, run, root)
    why = stages.reason(run / stage.output, now)
    print(f"{stage.name}: " + ("cached" if why is None else f"runs ({why})"))
    opened = OpenStage(stage, run, values, now)
    if opened.done:
        store.release(_stage_lock(run, stage))  # a notebook left open after a look is in nobody's way
    return opened


def open_to_read(notebook: str, namespace: Mapping[str, Any], needs: tuple[str, ...], root: Path | None = None) -> Path:
    """The run directory, for a notebook that is no stage and reads what stages made: `needs=("data", "eval")`.

    Raises ParamError on a parameter, RunError where something it needs is missing.
    """
    root = root or parameters.project_root()
    run = open_run(parameters.check(notebook, namespace, root / "notebooks")["run_dir"], root)
    recorded = run / "params.yaml"
    _require(run, needs, parameters.load(recorded if recorded.exists() else None, (), root / "notebooks"))
    return run


def _require(run: Path, outputs: tuple[str, ...], run_params: Mapping[str, Any]) -> None:
    makes = {stage.output: stage.notebook for stage in [*stages.every(stages.iterations(run_params)), stages.EVAL]}
    for name in outputs:
        if stages.manifest(run / name) is None:
            raise RunError(
                f"{name} is not there in run {run.name}: run notebook {makes[name]} for it first, or everything with "
                "`srlib run params/tiny.yaml`"
            )


def open_run(run_dir: str, root: Path) -> Path:
    """The run directory; `runs/last` is a link to the last run, and to a new runs/tiny where there was none."""
    path = root / Path(run_dir).expanduser()
    if path == root / "runs" / "last" and not path.exists():
        path = root / "runs" / "tiny"
        store.make_dir(path)
        link_last(path, root)
    store.make_dir(path)
    return path.resolve()


def link_last(run: Path, root: Path) -> None:
    """Point runs/last at a run, in one step; a directory of that name is left alone."""
    link = root / "runs" / "last"
    with contextlib.suppress(OSError):  # a convenience: a file system without links is no reason to stop
        if link.is_symlink() or not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary = link.with_name(f".last.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(run.resolve(), link.parent.resolve()))
            os.replace(temporary, link)


def kept(run: Path, params: Mapping[str, Any]) -> str:
    """The judge that a run takes home, `"judges/sre_2"`: with `keep: last` the last one of the chain, with `best` the one
    whose accuracy on the validation split is highest in results.json, on ties the earlier. Only arms were evaluated, so
    only arms can be best. RunError where none was."""
    judges = [s.output for s in stages.of(params) if s.notebook == "05_dpo" or s.name == "sft"]
    if params.get("keep", "last") == "last":
        return judges[-1]
    rows = [r for r in store.read_json(run / "results.json") if (r["split"], r["metric"]) == ("validation", "accuracy")]
    accuracy = {f"judges/{row['arm']}": row["value"] for row in rows if row["value"] is not None}
    evaluated = [judge for judge in judges if judge in accuracy]
    if not evaluated:
        names = ", ".join(Path(judge).name for judge in judges)
        raise RunError(
            f"{run.name}: keep is best, but none of {names} was evaluated on the validation split; put them into arms, "
            "and see that there are validation examples, or set keep to last"
        )
    return max(evaluated, key=accuracy.__getitem__)  # the first of equals


def take_home(run: Path, params: Mapping[str, Any]) -> Path:
    """Copy the judge that is `kept` to <run>/judge, where users look for it; nothing when it is there already."""
    source, target = run / kept(run, params), run / "judge"
    if stages.manifest(source) == (stages.manifest(target) or {}):
        return target
    temporary = run / ".judge.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise store.StoreError(
            f"{target}: cannot be written ({error}); free space, then run the same command"
        ) from None
    return target


@contextlib.contextmanager
def alone_in(run: Path, stage: Stage, patience: float = 0.0) -> Iterator[None]:
    """Nobody else is in this stage of the run while the block lasts. Raises RunError where somebody is."""
    _enter(run, stage, patience)
    try:
        yield
    finally:
        store.release(_stage_lock(run, stage))


def _enter(run: Path, stage: Stage, patience: float) -> None:
    if not store.acquire(_stage_lock(run, stage), timeout=patience):
        pid = store.holder(_stage_lock(run, stage))
        raise RunError(f"stage {stage.name} of {run.name} is open in process {pid}; let it end or stop it first")


def _stage_lock(run: Path, stage: Stage) -> Path:
    return run / ".locks" / stage.name


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
