"""A stage from inside its notebook, and the judge that a run takes home.

stage = open_stage("05_dpo", globals())   # checks parameters and inputs, says why it runs
with stage.track() as wandb_run: ...      # work in stage.path; after a kill the same directory is there again
stage.finish(pairs=412)                   # write the manifest, give the directory its name"""

import contextlib
import datetime
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from srlib import config, files
from srlib.hardware import machine
from srlib.run import stages
from srlib.run.stages import RunError, Stage

PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "numpy")
MAKES = {"data": "01", "judges": "02, 05 or 13", "judgments": "03", "pairs": "04", "eval": "06", "rationales": "09"}


class NotFirst(Exception):
    """The end of a notebook in all processes but the first, which saves what they have made (see execute.py)."""


class OpenStage:
    """A stage while its notebook runs: its parameters `cfg`, the directories `inputs` that it reads, by name, and the
    directory `path` for its files, which is partial until `finish`. `done` says that all of it has been computed, and
    `facts` is what `finish` was given then. `checkpoints` is a directory that goes when the stage is finished, `changed` names
    the parts (`stages.parts`) in which the finished stage that this one replaces differs, all if there is none, and `skipped`
    maps what the run cannot have to the reason: `{"judges/sre_1": "pairs/1 holds no pair"}`."""

    def __init__(self, stage: Stage, run: Path, cfg: config.Parameters, parts: dict[str, Any], lock: Path) -> None:
        self.name, self.run, self.cfg, self.skipped = stage.name, run, cfg, stages.skipped(cfg, run)
        self.inputs = {name: run / name for name in stage.inputs if name not in self.skipped}
        self._head = {"stage": stage.name, "key": stages.key(parts), "parts": parts}
        self._output, self._lock, self._started = run / stage.output, lock, time.monotonic()
        self.checkpoints, force = run / ".checkpoints" / stage.name, "SRLIB_FORCE" in os.environ
        number, together = config.together()
        self._first = number == 0
        old = {} if force else stages.manifest(self._output).get("parts", {})
        self.changed = {name for name in {*old, *parts} if old.get(name, ...) != parts.get(name, ...)}
        self.done = not force and stages.manifest(self._output).get("key") == self._head["key"]
        self.path = self._output if self.done else self._output.with_name(f"{self._output.name}.partial")
        self.facts = stages.manifest(self.path).get("facts", {})
        self._begun = not force and stages.manifest(self.path).get("key") == self._head["key"]  # by a killed session
        if self._first and not self._begun:
            for begun in filter(Path.exists, (self.path, self.checkpoints)):
                shutil.rmtree(begun, ignore_errors=True)
                if begun.exists():  # it would count as made with these parameters
                    raise files.StoreError(f"{begun}: cannot be deleted; close what has it open, then repeat this")
            files.write_json(self.path / "manifest.json", self._head)
        files.meet(lock, number, together)  # the first process has cleared the directory
        for folder in [] if self.done or not self._first else [self.path, *filter(Path.is_dir, self.path.rglob("*"))]:
            files.sweep(folder)

    def finish(self, **facts: Any) -> None:
        """Write the manifest with these facts, then give the directory its name. Does nothing if the stage is done."""
        self.first_only()
        if self.done:
            return
        packages = {name: sys.modules[name].__version__ for name in PACKAGES if name in sys.modules}
        manifest = self._head | {
            "params": {k: v for k, v in self.cfg.model_dump(mode="json").items() if k in self._head["parts"]},
            "versions": {"python": sys.version.split()[0], **packages},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),  # tells two runs apart
            "seconds": None if self._begun else round(time.monotonic() - self._started, 3),  # not known after a kill
            "peak_memory": machine.peak_memory(),
            "peak_gpu_memory": machine.peak_gpu_memory(),
            "facts": facts,
            "content": files.sha256(self.path, but="manifest.json"),  # which later stages compare with what they read
        }
        files.write_json(self.path / "manifest.json", manifest)
        files.sync(self.path)
        with files.writing(self._output):  # a stage killed in here resumes in the partial directory
            (self._output / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self._output, ignore_errors=True)
            self.path.rename(self._output)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.done, self.path, self.facts = True, self._output, facts
        files.release(self._lock)

    def first_only(self) -> None:
        """What follows is done by the first of the processes that execute the stage together; the others end here."""
        if not self._first:
            raise NotFirst

    def track(self) -> contextlib.AbstractContextManager[Any]:
        """A wandb run for the stage, in the group of its run; None if tracking is off or the stage is done. Nobody is
        asked to log in: `wandb_mode` auto is online if WANDB_API_KEY is set, else offline."""
        if self.done or not self._first or self.cfg.wandb_mode == "disabled":
            return contextlib.nullcontext()
        import wandb

        auto = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        mode = auto if self.cfg.wandb_mode == "auto" else self.cfg.wandb_mode
        quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "x_disable_stats": True}
        wandb.setup(wandb.Settings(**quiet, x_save_requirements=False))  # to list them takes a second
        names = {"group": self.run.name, "job_type": self.name, "name": f"{self.run.name}/{self.name}", "mode": mode}
        return wandb.init(project="srlib", dir=self.run, config=self.cfg.model_dump(), **names)


def log_rows(tracked: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows as a table of the wandb run that `track` gave; nothing if that is None, or there are no rows."""
    if tracked is not None and rows:
        import wandb

        columns = list(rows[0])
        tracked.log({name: wandb.Table(columns, [[row[column] for column in columns] for row in rows])})


def open_stage(notebook: str, namespace: MutableMapping[str, Any]) -> OpenStage:
    """Check parameters and inputs of a running notebook and open its directory. What its parameters cell leaves at the default,
    or does not name, is as in the run's params.yaml. Raises ParamError; RunError if inputs are missing or another has it open."""
    config.in_namespace(notebook, namespace)  # before open_run changes anything
    run, values = open_run(namespace), config.in_namespace(notebook, namespace)
    recorded = run / "params.yaml"
    of_run = config.load(recorded if recorded.exists() else None)
    cfg = of_run.model_copy(update=values)
    every = [*stages.before_eval(cfg), *stages.of(cfg.model_copy(update={"diagnose": True}))[-2:]]
    stage = next((one for one in every if one.notebook == notebook and one.fixed.items() <= values.items()), None)
    if stage is None:
        why = {"02_sft": f"arm {cfg.arm}, sft_mode {cfg.sft_mode}", "09_rationales": "its rows have rationales"}
        raise RunError(f"notebook {notebook} is no stage of this run: {why.get(notebook, 'use open_run(globals())')}")
    if notebook < "04":  # in 04, the function may be in a cell that has not been saved
        stages.check_strategy(cfg.strategy)
    skipped = stages.skipped(cfg, run)
    if stage.output in skipped:
        raise RunError(f"{stage.output} cannot be made: {skipped[stage.output]}; go on with the next notebook")
    changed = [name for name, value in cfg if value != getattr(of_run, name) and name not in {"run_dir", *stage.fixed}]
    again = "".join(f" -p {name}={shlex.quote(config.spelled(getattr(cfg, name)))}" for name in changed)
    path = shlex.quote(files.relative(run))
    again = f"all with `srlib run {path}/params.yaml --run-dir {path}{again}`" if recorded.exists() else "`srlib run`"
    open_run(namespace, [name for name in stage.inputs if name not in skipped], again)
    lock, wait = run / ".locks" / stage.name, float(os.environ.get("SRLIB_WAIT", 20))
    # The kernel of a killed pipeline is gone within two seconds
    if config.together()[0] == 0 and not files.acquire(lock, wait):
        raise RunError(f"stage {stage.name} of {run.name} is open in process {files.holder(lock)}; stop it first")
    parts = stages.parts(stage, cfg, run)
    reason = stages.reason(run / stage.output, parts)
    opened = OpenStage(stage, run, cfg, parts, lock)
    print(f"{stage.name}: " + ("cached" if opened.done else f"runs ({reason or 'forced'})"))
    stale, later = {stage.output}, []
    for one in every:
        if stale & {*one.inputs} and stages.manifest(run / one.output):
            stale, later = stale | {one.output}, [*later, one.name]
    if later and not opened.done and "SRLIB_PROGRESS" not in os.environ:  # by hand, not by the pipeline
        print(f"After that, run again what depends on {stage.output}: {', '.join(later)}, or {again}")
        print(f"To keep {path}, stop now and copy it: `cp -r {path} {path}-2`, and set run_dir to {path}-2")
    if opened.done:
        files.release(lock)  # a notebook that stays open blocks nobody
    return opened


def open_run(namespace: MutableMapping[str, Any], needs: Sequence[str] = (), again: str = "") -> Path:
    """The run directory of a running notebook: `open_run(globals(), needs=("data", "eval"))`; parameters that the notebook
    leaves at the default come from params.yaml there. Before the first run, runs/last is runs/notes. Raises ParamError, and
    RunError if a directory that the notebook needs is not complete or stale; `again` says what makes it anew."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")  # transformers would copy the model to every GPU that it sees
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible.partition(",")[0]}
    os.chdir(config.project_root())  # JupyterLab starts a kernel beside its notebook; paths in parameters start here
    last = config.project_root() / "runs" / "last"
    run = config.project_root() / Path(namespace.get("run_dir", last)).expanduser()
    run = last.with_name("notes") if run == last and not last.exists() else run.resolve()
    config.load(None, namespace=namespace)  # refuses what papermill injects under a wrong name
    files.make_dir(run)
    for name in needs:
        if not stages.manifest(run / name):
            raise RunError(f"{name} is missing in run {run.name}: run notebook {MAKES[name.split('/')[0]]} first")
        if older := stages.outdated(run, name):
            again = again or f"all with `srlib run {files.relative(run)}/params.yaml --run-dir {files.relative(run)}`"
            advice = f"run notebook {MAKES[older[0].split('/')[0]]} again, or {again}"
            raise RunError(f"{older[0]} of run {run.name} is stale, for {older[1]} has changed since: {advice}")
    if (recorded := run / "params.yaml").exists():
        default, of_run = config.load(None), config.load(recorded)
        explicit = {"run_dir", "arm", "iteration", *config.injected_in(namespace)}
        left = [name for name, value in default if name not in explicit and namespace.get(name, ...) == value]
        if taken := {name: getattr(of_run, name) for name in left if getattr(of_run, name) != namespace[name]}:
            print(files.relative(recorded), "sets", ", ".join(f"{name} = {value!r}" for name, value in taken.items()))
            namespace.update(taken)
    return run


def kept(run: Path, cfg: config.Parameters) -> str:
    """The judge that a run takes home, `"judges/sre_2"`: the last one of the chain, or with `keep: best` the one with the
    highest accuracy on the validation split, on ties the earlier. Raises RunError if none of them was evaluated there."""
    gone = stages.skipped(cfg, run)
    judges = [s.output for s in stages.of(cfg) if (s.notebook == "05_dpo" or s.name == "sft") and s.output not in gone]
    if cfg.keep == "last":
        return judges[-1]
    rows = [r for r in files.read_json(run / "results.json") if (r["split"], r["metric"]) == ("validation", "accuracy")]
    accuracy = {f"judges/{row['arm']}": row["value"] for row in rows if row["value"] is not None}
    if not accuracy.keys() & set(judges):
        raise RunError(f"{run.name}: to keep the best, arms must hold sft or sre_N, and data a validation split")
    return max((judge for judge in judges if judge in accuracy), key=accuracy.__getitem__)


def take_home(run: Path, cfg: config.Parameters) -> Path:
    """Copy the judge that is `kept` to <run>/judge, unless it is there already."""
    source, target, temporary = run / kept(run, cfg), run / "judge", run / ".judge.tmp"
    if stages.manifest(source) != stages.manifest(target):
        stages.check_own(target, temporary.exists())
        with files.writing(target):
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary)
            files.sync(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
    about, results = target / "judge.json", run / "results.json"
    if about.is_file() and results.is_file():  # for `srlib judge`, which compares other rows with these
        rows = [r for r in files.read_json(results) if (r["arm"], r["split"]) == (source.name, "validation")]
        known = {r["metric"]: r["value"] for r in rows if r["metric"] in ("parse_rate", "prompt_nll_highest")}
        files.write_json(about, files.read_json(about) | ({"validation": known} if len(known) == 2 else {}))
    return target
