"""The stages of a run, what each depends on, and when one has to run again.

A stage is one notebook with some parameters fixed; it makes one directory of a run directory. The directory is complete
when it holds manifest.json, and current when the key in there is the one that code, parameters and inputs give now:

>>> [stage.name for stage in of({"iterations": 1, "arms": ["sft", "sre_1"]})]
['data', 'sft', 'sample_1', 'curate_1', 'dpo_1', 'eval']

Until it is complete it is called `<output>.partial`, and a killed stage resumes in there (runs.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from srlib import config as parameters
from srlib import files as store
from srlib.run import keys as fingerprint
from srlib.schema import SrlibError

# Where a run happens and who watches, not what it computes: these may change without anything running again.
ENDPOINT = ("endpoint", "endpoint_concurrency", "endpoint_left_out")  # a server may move while its judgments are drawn
ALARMS = (
    "stop_on_alarm", "alarm_score_drift", "alarm_saturation", "alarm_parse_fall", "alarm_length_growth",
    "alarm_distinct_fall", "alarm_entropy_fall", "alarm_logp_fall", "alarm_meta_higher",
)  # fmt: skip
NOT_IDENTITY = ("run_dir", "wandb_mode", "workers", "keep", *ENDPOINT, *ALARMS)
CONTENT = ("model", "data", "data_pairwise")  # parameters that may be local paths: what lies there counts, not its name
SFT_ARMS = ("sft", "sft_score_only", "sft_careful_only")
FROM_PAIRS = ("sft_continued", "rft")
ARMS = ("base", *SFT_ARMS, *FROM_PAIRS, "sft_self_consistency", "sft_best_of_n")


class RunError(SrlibError):
    """A stage that cannot start: an unknown arm, a missing input, somebody else at work. Says what to do."""


@dataclass(frozen=True)
class Stage:
    name: str  # "dpo_2"
    notebook: str  # "05_dpo"
    fixed: dict[str, Any] = field(default_factory=dict)  # {"iteration": 2}
    inputs: tuple[str, ...] = ()  # ("data", "pairs/2", "judges/sre_1"), relative to the run directory
    output: str = ""  # "judges/sre_2"


EVAL = Stage("eval", "06_eval", {}, ("data",), "eval")  # and the judges of its arms


def of(params: Mapping[str, Any]) -> list[Stage]:
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
        for stage in every(iterations)
        if stage.name in ("data", "sft") or stage.name in arms or (need_chain and "iteration" in stage.fixed)
    ]
    judges = tuple(stage.output for stage in made if stage.output.startswith("judges/"))
    return [*made, replace(EVAL, inputs=("data", *judges))]


def every(iterations: int) -> list[Stage]:
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
    return reason(run_dir / stage.output, parts(stage, params, run_dir, root))


def reason(output: Path, now: Mapping[str, Any]) -> str | None:
    partial, made = partial_of(output), manifest(output)
    if made and made["key"] == key(now):
        return None
    if (recorded(partial) or {}).get("key") == key(now):
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


def made_otherwise(output: Path, params: Mapping[str, Any]) -> str:
    """In which parameters a complete stage directory differs from these, `"beta 0.1 -> 0.3"`; "" in none. A run whose
    parameters were changed, and that was stopped, holds them in params.yaml beside what was made before."""
    made = (manifest(output) or {}).get("params", {})
    named = {name for stage in every(1) for name in stage.fixed}  # arm, iteration: of the stage, not of the run
    changed = sorted(name for name in made.keys() & params.keys() - named if made[name] != params[name])
    return ", ".join(f"{name} {store.shorten(made[name])} -> {store.shorten(params[name])}" for name in changed)


def partial_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def recorded(partial: Path) -> dict[str, Any] | None:
    return _read_keyed(partial / "stage.json")


def _read_keyed(path: Path) -> dict[str, Any] | None:
    try:
        found = store.read_json(path)
    except store.RowError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("key"), str) else None


def find(notebook: str, values: Mapping[str, Any], run_params: Mapping[str, Any]) -> Stage:
    candidates = [*every(iterations(run_params)), of(run_params)[-1]]
    candidates = [stage for stage in candidates if stage.notebook == notebook]
    for stage in candidates:
        if all(values.get(name) == value for name, value in stage.fixed.items()):
            return stage
    asked = {name: values.get(name) for stage in candidates for name in stage.fixed}
    known = ", ".join(str(value) for stage in candidates for value in stage.fixed.values())
    raise RunError(f"no stage of notebook {notebook} has {asked}; there are {known or 'none'}")


def iterations(run_params: Mapping[str, Any]) -> int:
    return max(run_params.get("iterations", 2), run_params.get("iteration", 1))
