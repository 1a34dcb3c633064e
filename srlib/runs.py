"""What a run consists of: its stages, what each depends on, and when one has to run again.

A stage is one notebook with some parameters fixed; it makes one directory of a run directory. The directory is complete
when it holds manifest.json, and current when the key in there is the one that code, parameters and inputs give now:

>>> [stage.name for stage in stages({"iterations": 1, "arms": ["sft", "sre_1"]})]
['data', 'sft', 'sample_1', 'curate_1', 'dpo_1', 'eval']

Until it is complete it is called `<output>.partial`, and a killed stage resumes in there. In a notebook:

    stage = runs.open_stage("05_dpo", globals())   # checks parameters and inputs, says why it runs
    if not stage.done: ...                         # work in stage.path
    stage.finish(pairs=412)                        # manifest, then the directory gets its name
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from srlib import fingerprint, machine, store
from srlib import params as parameters

# Where a run happens and who watches, not what it computes: these may change without anything running again.
ENDPOINT = ("endpoint", "endpoint_concurrency", "endpoint_left_out")  # a server may move while its judgments are drawn
ALARMS = (
    "stop_on_alarm", "alarm_score_drift", "alarm_saturation", "alarm_parse_fall", "alarm_length_growth",
    "alarm_distinct_fall", "alarm_entropy_fall", "alarm_logp_fall", "alarm_meta_higher",
)  # fmt: skip
NOT_IDENTITY = ("run_dir", "wandb_mode", "wandb_project", "workers", "keep", *ENDPOINT, *ALARMS)
CONTENT = ("model", "data", "data_pairwise")  # parameters that may be local paths: what lies there counts, not its name
SFT_ARMS = ("sft", "sft_score_only", "sft_careful_only")
FROM_PAIRS = ("sft_continued", "rft")
ARMS = ("base", *SFT_ARMS, *FROM_PAIRS, "sft_self_consistency", "sft_best_of_n")
USED = ("seconds", "peak_memory", "peak_gpu_memory", "energy")
PACKAGES = ("srlib", "torch", "transformers", "trl", "peft", "unsloth", "numpy")


class RunError(RuntimeError):
    """A stage that cannot start: an unknown arm, a missing input, somebody else at work. Says what to do."""


@dataclass(frozen=True)
class Stage:
    name: str  # "dpo_2"
    notebook: str  # "05_dpo"
    fixed: dict[str, Any] = field(default_factory=dict)  # {"iteration": 2}
    inputs: tuple[str, ...] = ()  # ("data", "pairs/2", "judges/sre_1"), relative to the run directory
    output: str = ""  # "judges/sre_2"


EVAL = Stage("eval", "06_eval", {}, ("data",), "eval")  # and the judges of its arms


def stages(params: Mapping[str, Any]) -> list[Stage]:
    """The stages that `params["arms"]` need, inputs first, the chain of iterations before the arms beside it.

    All of `params["iterations"]` (2) are made as soon as one arm needs any. Raises RunError on an arm that cannot be.
    """
    iterations, arms = params.get("iterations", 2), set(params.get("arms", ARMS))
    chain = {}
    for arm in sorted(arms - set(ARMS)):
        match = re.fullmatch(r"(?:sft|sre_(\d{1,3}))(?:_self_consistency|_best_of_n|_mean_of_n|_median_of_n)?", arm)
        if not match:
            raise RunError(
                f"arm {store.shorten(arm)} is unknown; there are {', '.join(ARMS)}, sre_N, and of sft and sre_N "
                "_self_consistency, _best_of_n, _mean_of_n and _median_of_n"
            )
        if match[1] is None:  # another reading of sft
            continue
        if not 1 <= int(match[1]) <= iterations:
            raise RunError(
                f"arm {arm} needs iteration {match[1]}, and there are {iterations}; set iterations, or leave it out"
            )
        chain[arm] = match[1]
    need_chain = bool(chain) or bool(arms & set(FROM_PAIRS))
    made = [
        stage
        for stage in every_stage(iterations)
        if stage.name in ("data", "sft") or stage.name in arms or (need_chain and "iteration" in stage.fixed)
    ]
    judges = tuple(stage.output for stage in made if stage.output.startswith("judges/"))
    return [*made, replace(EVAL, inputs=("data", *judges))]


def every_stage(iterations: int) -> list[Stage]:
    """All stages before `eval`, whatever the arms."""
    made = [Stage("data", "01_data", {}, (), "data"), Stage("sft", "02_sft", {"arm": "sft"}, ("data",), "judges/sft")]
    judge = "judges/sft"
    for t in range(1, iterations + 1):
        before = (f"judgments/{t - 1}",) if t > 1 else ()  # what the draws are held against
        made += [
            Stage(f"sample_{t}", "03_sample", {"iteration": t}, ("data", judge, *before), f"judgments/{t}"),
            Stage(f"curate_{t}", "04_curate", {"iteration": t}, ("data", f"judgments/{t}", judge), f"pairs/{t}"),
            Stage(f"dpo_{t}", "05_dpo", {"iteration": t}, ("data", f"pairs/{t}", judge), f"judges/sre_{t}"),
        ]
        judge = f"judges/sre_{t}"
    made += [Stage(arm, "02_sft", {"arm": arm}, ("data",), f"judges/{arm}") for arm in SFT_ARMS[1:]]
    pairs = tuple(f"pairs/{t}" for t in range(1, iterations + 1))
    return made + [
        Stage(arm, "02_sft", {"arm": arm}, ("data", "judges/sft", *pairs), f"judges/{arm}") for arm in FROM_PAIRS
    ]


# What a stage's result depends on


def parts(stage: Stage, params: Mapping[str, Any], run_dir: Path, root: Path | None = None) -> dict[str, Any]:
    """Everything that decides a stage's result, by name: `{"beta": 0.1, "code of srlib.train": "9f...", ...}`.

    The inputs count by the keys in their manifests, so they have to be complete (None otherwise).
    """
    root = root or parameters.project_root()
    notebooks = root / "notebooks"
    values = {**params, **stage.fixed}
    found: dict[str, Any] = {}
    for name in parameters.of_notebook(stage.notebook, notebooks):
        if name not in NOT_IDENTITY:
            found[name] = fingerprint.content(values[name], root) if name in CONTENT else values[name]
    try:
        code = fingerprint.code(notebooks / f"{stage.notebook}.ipynb", root / "srlib")
    except ValueError as error:
        raise RunError(str(error)) from None
    found |= {f"code of {name}": digest for name, digest in code.items()}
    for name in stage.inputs:
        found[f"input {name}"] = (manifest(run_dir / name) or {}).get("key")
    return found


def key(stage_parts: Mapping[str, Any]) -> str:
    """The parts of a stage as one hash; the same parts give the same key on every machine."""
    return hashlib.sha256(json.dumps(stage_parts, sort_keys=True).encode()).hexdigest()


def why(stage: Stage, params: Mapping[str, Any], run_dir: Path, root: Path | None = None) -> str | None:
    """Why a stage has to run, None when it is current: "beta 0.1 -> 0.3", "code of srlib.train changed", "new"."""
    return _why(run_dir / stage.output, parts(stage, params, run_dir, root))


def _why(output: Path, now: Mapping[str, Any]) -> str | None:
    partial, made = partial_of(output), manifest(output)
    if made and made["key"] == key(now):
        return None
    if (_recorded(partial) or {}).get("key") == key(now):
        return "incomplete"
    if made is None:
        return "incomplete" if output.exists() else "new"
    before, changes = made.get("parts", {}), []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new and (name.startswith(("code of ", "input ")) or name in CONTENT):
            changes.append(f"{name} changed")
        elif old != new:
            changes.append(f"{name} {store.shorten(old)} -> {store.shorten(new)}")
    return ", ".join(changes) or "incomplete"


def manifest(output: Path) -> dict[str, Any] | None:
    """The manifest of a complete stage directory; None where there is none that can be read."""
    return _read_keyed(output / "manifest.json")


def partial_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _recorded(partial: Path) -> dict[str, Any] | None:
    return _read_keyed(partial / "stage.json")


def _read_keyed(path: Path) -> dict[str, Any] | None:
    try:
        found = store.read_json(path)
    except store.RowError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("key"), str) else None


# A stage from inside its notebook


class OpenStage:
    """One stage while its notebook runs. `path` is where its files are: partial until `finish`, then the output."""

    def __init__(self, stage: Stage, run: Path, params: Mapping[str, Any], now: dict[str, Any]) -> None:
        self.stage, self.run, self.params = stage, run, SimpleNamespace(**params)
        self.inputs = {name: run / name for name in stage.inputs}
        self.parts, self.key = now, key(now)
        self._output, self._partial = run / stage.output, partial_of(run / stage.output)
        self._started, self._energy = time.monotonic(), machine.energy()
        self.done = self._is_current(self._output)
        if not self.done:
            self._open_partial()
        self.path = self._output if self.done else self._partial

    def _is_current(self, path: Path) -> bool:
        return (manifest(path) or {}).get("key") == self.key

    def _open_partial(self) -> None:
        if self._is_current(self._partial):  # killed between the manifest and the renaming
            self._publish()
            self.done = True
        elif (_recorded(self._partial) or {}).get("key") != self.key:
            shutil.rmtree(self._partial, ignore_errors=True)
            store.write_json(self._partial / "stage.json", {"key": self.key, "parts": self.parts})

    @property
    def facts(self) -> dict[str, Any]:
        """What `finish` was told when this stage was done; empty before."""
        return (manifest(self.path) or {}).get("facts", {})

    @property
    def used(self) -> dict[str, float | None]:
        """What the stage took so far: seconds, peak memory (bytes) of its largest process and of a GPU, joules of the
        GPUs; None where there is none or nobody counts. Of a resumed stage, that of its last session."""
        if self.done:
            return {name: (manifest(self.path) or {}).get(name) for name in USED}
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
            "params": {name: value for name, value in vars(self.params).items() if name not in NOT_IDENTITY},
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
    stage = _find(notebook, values, run_params)
    _require(run, stage.inputs, run_params)
    if not store.acquire(_stage_lock(run, stage), timeout=20):
        pid = store.holder(_stage_lock(run, stage))
        raise RunError(f"stage {stage.name} of {run.name} is open in process {pid}; let it end or stop it first")
    now = parts(stage, values, run, root)
    reason = _why(run / stage.output, now)
    print(f"{stage.name}: " + ("cached" if reason is None else f"runs ({reason})"))
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
    makes = {stage.output: stage.notebook for stage in [*every_stage(_iterations(run_params)), EVAL]}
    for name in outputs:
        if manifest(run / name) is None:
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
    judges = [s.output for s in stages(params) if s.notebook == "05_dpo" or s.name == "sft"]
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
    if manifest(source) == (manifest(target) or {}):
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


def _find(notebook: str, values: Mapping[str, Any], run_params: Mapping[str, Any]) -> Stage:
    candidates = [*every_stage(_iterations(run_params)), stages(run_params)[-1]]
    candidates = [stage for stage in candidates if stage.notebook == notebook]
    for stage in candidates:
        if all(values.get(name) == value for name, value in stage.fixed.items()):
            return stage
    asked = {name: values.get(name) for stage in candidates for name in stage.fixed}
    known = ", ".join(str(value) for stage in candidates for value in stage.fixed.values())
    raise RunError(f"no stage of notebook {notebook} has {asked}; there are {known or 'none'}")


def _iterations(run_params: Mapping[str, Any]) -> int:
    return max(run_params.get("iterations", 2), run_params.get("iteration", 1))


def _stage_lock(run: Path, stage: Stage) -> Path:
    return run / ".locks" / stage.name


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
