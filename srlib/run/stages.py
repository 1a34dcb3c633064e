"""The stages of a run, what each depends on, and when one has to run again.

A stage's key is a hash over parameters, code and inputs. Code counts without comments and docstrings: the notebook's code
cells and every srlib module behind their imports, except those that only run stages or draw figures. Parameters count if
the parameters cell sets them, or if that code reads them as `cfg.name`. Source is parsed, never executed.

>>> [stage.name for stage in of(config.load(None, ["iterations=1", "arms=sft,sre_1"]))]
['data', 'sft', 'sample_1', 'curate_1', 'dpo_1', 'eval']"""

import ast
import hashlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from srlib import config, curate, files
from srlib.evaluate import arms
from srlib.schema import SrlibError

FROM_PAIRS = ("sft_continued", "rft")  # SFT arms that need the pairs of all iterations
MAY_BE_PATHS = {"model", "writer", "data", "data_pairwise", "rubric"}  # of a path the content counts, not the name
NO_RESULTS = ("srlib.run.", "srlib.report.")  # code that decides no number
NOT_IDENTITY = {"run_dir", "wandb_mode", "workers", "keep", "diagnose", "stop_on_alarm"}  # nor do these parameters
NOT_IDENTITY |= {"endpoint", "endpoint_concurrency", "endpoint_left_out"}  # a server may move
NOT_IDENTITY |= {name for name in config.FIELDS if name.startswith("alarm_")}


class RunError(SrlibError):
    """A run or stage that cannot start: an unknown arm, a missing input, another process at work. Says what to do."""


class Stage(NamedTuple):
    """A notebook with some parameters fixed, which makes one directory of the run."""

    name: str  # "dpo_2"
    notebook: str  # "05_dpo"
    fixed: dict[str, Any]  # {"iteration": 2}
    inputs: tuple[str, ...]  # ("data", "pairs/2", "judges/sre_1"), relative to the run
    output: str  # "judges/sre_2"

    def shared(self, cfg: config.Parameters) -> bool:
        """Whether `cfg.gpus` processes execute it together: training, draws and evaluation, not a merge or a server's draws."""
        alone = (self.name == "sft" and cfg.sft_mode == "merge") or (self.notebook == "03_sample" and cfg.endpoint)
        return self.notebook in ("02_sft", "03_sample", "05_dpo", "06_eval") and not alone


def of(cfg: config.Parameters) -> list[Stage]:
    """The stages that `cfg.arms` need, inputs first; if one of them needs an iteration, all `cfg.iterations` are made."""
    stages = before_eval(cfg)
    judges = {stage.output.removeprefix("judges/"): stage for stage in stages if stage.output.startswith("judges/")}
    needed = {"sft"} | {arms.arm(name).judge or "sft" for name in cfg.arms}  # the base model has no judge
    if unknown := needed - judges.keys():
        known = f"with iterations={cfg.iterations} there are base, {', '.join(judges)}"
        advice = "correct arms (base has no draws), or raise iterations"
        raise RunError(f"arms need the judge {min(unknown)!r}, and {known}: {advice}")
    outputs = {output for judge in needed for output in (judges[judge].output, *judges[judge].inputs)}
    chain = any(output.startswith(("pairs/", "judgments/")) for output in outputs)
    stages = [stage for stage in stages if stage.output in outputs or (chain and "iteration" in stage.fixed)]
    made = tuple(stage.output for stage in stages if stage.output.startswith("judges/"))
    last = [Stage("eval", "06_eval", {}, ("data", *made), "eval")]
    last += [Stage("diagnose", "07_diagnose", {}, ("data", "eval", *made), "diagnose")] if cfg.diagnose else []
    return stages + last


def before_eval(cfg: config.Parameters) -> list[Stage]:
    """All stages before `eval`, whatever the arms; the chain of iterations comes before the arms beside it."""
    merged = ("sft_pointwise", "sft_pairwise") if cfg.sft_mode == "merge" else ()  # the two halves of sft
    rows = ("data", "rationales") if cfg.data else ("data",)  # the built-in world has a rationale in every row
    needs = {**dict.fromkeys(merged, rows), "sft": (*rows, *(f"judges/{half}" for half in merged))}
    chain, judge, iterations = [], "judges/sft", range(1, max(cfg.iterations, cfg.iteration) + 1)
    for t in iterations:
        before = [f"judgments/{t - 1}"] if t > 1 else []  # the alarms compare with the iteration before
        chain += [
            Stage(f"sample_{t}", "03_sample", {"iteration": t}, ("data", judge, *before), f"judgments/{t}"),
            Stage(f"curate_{t}", "04_curate", {"iteration": t}, ("data", f"judgments/{t}", judge), f"pairs/{t}"),
            Stage(f"dpo_{t}", "05_dpo", {"iteration": t}, ("data", f"pairs/{t}", judge), f"judges/sre_{t}"),
        ]
        judge = f"judges/sre_{t}"
    needs |= {"sft_score_only": rows, "sft_careful_only": ("data",)}  # sft_score_only: as sft
    needs |= dict.fromkeys(FROM_PAIRS, (*rows, "judges/sft", *(f"pairs/{t}" for t in iterations)))
    sft = [Stage(arm, "02_sft", {"arm": arm}, inputs, f"judges/{arm}") for arm, inputs in needs.items()]
    drawn = (f"judgments/{t}" for t in iterations)
    sft.append(Stage("grpo", "13_grpo", {}, ("data", "judges/sft", *drawn), "judges/grpo"))
    first = [Stage("data", "01_data", {}, (), "data")]
    first += [Stage("rationales", "09_rationales", {}, ("data",), "rationales")] if cfg.data else []
    return [*first, *sft[: len(merged) + 1], *chain, *sft[len(merged) + 1 :]]


def skipped(cfg: config.Parameters, run: Path) -> dict[str, str]:
    """Outputs that this run cannot have, each with the reason, as far as its finished stages tell:
    `{"judges/sre_1": "pairs/1 holds no pair", ...}`. Every other stage does without them."""
    data, reasons = manifest(run / "data").get("facts", {}), {}
    for stage in before_eval(cfg):
        pairs = [name for name in stage.inputs if name.startswith("pairs/")]
        empty = [name for name in pairs if name in reasons or manifest(run / name).get("facts", {}).get("pairs") == 0]
        missing = [name for name in stage.inputs if name in reasons and stage.notebook in ("03_sample", "04_curate")]
        if stage.name == "rationales" and data.get("without_rationale") == 0:
            reasons[stage.output] = "every training row has a rationale"
        elif stage.name == "sft_careful_only" and data.get("careful") == 0:
            reasons[stage.output] = "no training row says that its annotator is careful (meta.annotator)"
        elif pairs and empty == pairs:
            reasons[stage.output] = f"{empty[0]} holds no pair" if empty[0] not in reasons else reasons[empty[0]]
        elif missing:
            reasons[stage.output] = reasons[missing[0]]
    return reasons


def parts(stage: Stage, cfg: config.Parameters, run: Path) -> dict[str, Any]:
    """All that decides a stage's result, `{"beta": 0.1, "code of srlib.dpo": "9f...", "input data": "03...", ...}`."""
    root, declared, values = config.project_root(), config.declared_in(stage.notebook), cfg.model_dump(mode="json")
    code, read = code_of(root / "notebooks" / f"{stage.notebook}.ipynb", root / "srlib")
    names = {*declared, *read} & values.keys() - NOT_IDENTITY
    if stage.notebook == "02_sft":  # one notebook trains all arms: leave out what only other arms read
        of_others = [] if stage.name in FROM_PAIRS else ["dpo_", "continued_"]
        of_others += [] if stage.name == "sft" else ["merge_", "pairwise_weight"]
        names = {name for name in names if not name.startswith(tuple(of_others))}
    values = {name: values[name] for name in names} | stage.fixed
    values |= {name: content(values[name], root) for name in values.keys() & MAY_BE_PATHS}
    if file := values.get("strategy", "").rpartition(":")[0]:
        values[f"code of {file}"] = content(file, root)
    values |= {f"code of {module}": digest for module, digest in code.items()}
    gone = skipped(cfg, run)
    return values | {f"input {name}": manifest(run / name).get("content") for name in stage.inputs if name not in gone}


def outdated(run: Path, name: str) -> tuple[str, str] | None:
    """Whether a directory of a run, `"eval"`, or one behind it was computed from something that has been replaced since:
    (directory, input), `("judges/sre_1", "pairs/1")`, or None. An input that was deleted is not replaced."""
    queue, older = [name], None
    for reader in queue:  # it grows by all that is behind the directory
        parts = manifest(run / reader).get("parts", {})
        for source in [part.removeprefix("input ") for part in parts if part.startswith("input ")]:
            read = parts[f"input {source}"]
            older = (reader, source) if manifest(run / source).get("content", read) != read else older
            queue += [] if source in queue else [source]
    return older


def check_strategy(strategy: str) -> None:
    """Raise SrlibError on a rule that is neither built in nor, as far as its source tells, in notebook 04 or FILE.py:NAME."""
    file, _, name = strategy.rpartition(":")
    path = config.project_root() / (file or "notebooks/04_curate.ipynb")
    source = _source(path) if not file else path.read_text("utf-8", "replace") if path.is_file() else ""
    defined = re.search(rf"(?m)^(def |from .*\b)?(?=\w){re.escape(name)}(\(| *=|,|$)", source)
    if strategy not in curate.RULES and not defined:
        problem = f"{path} defines no function {name}" if path.is_file() else f"there is no file {path}"
        raise SrlibError(f"strategy {strategy}: {problem}; built-in rules: {', '.join(curate.RULES)}")


def key(parts: dict[str, Any]) -> str:
    """The parts of a stage as one hash."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_own(output: Path, replacing: bool) -> None:
    """RunError if a stage would replace a directory that none has made; `replacing`: one was killed while it did so."""
    if output.is_dir() and not (replacing or "key" in manifest(output)) and any(output.iterdir()):
        raise RunError(f"{output}: exists, and no stage has made it; set another run_dir, or move it away")


def reason(output: Path, now: dict[str, Any]) -> str | None:
    """Why a stage has to run, None if it is current: "beta 0.1 -> 0.3", "code of srlib.dpo changed", "new"; or `check_own`'s error."""
    before, partial = manifest(output), manifest(output.with_name(f"{output.name}.partial"))
    check_own(output, "content" in partial)
    if before.get("key") == key(now):
        return None
    if partial.get("key") == key(now) or (output.exists() and not before):
        return "incomplete"
    old, changes = before.get("parts", {}), []
    for name in sorted(name for name in {*old, *now} if old.get(name) != now.get(name)):
        values = f"{files.shorten(old.get(name))} -> {files.shorten(now.get(name))}"
        changes.append(f"{name} {'changed' if ' ' in name or name in MAY_BE_PATHS else values}")
    return ", ".join(changes) if before else "new"


def manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a stage directory, {} if there is none."""
    read = files.read_json(path) if (path := directory / "manifest.json").exists() else {}
    return read if isinstance(read, dict) else {}


def code_of(notebook: Path, package: Path) -> tuple[dict[str, str], set[str]]:
    """Hashes of a notebook's code and of every module of `package` behind it, and the names that they read from `cfg`.
    Cells tagged `parameters` (they count by their values) or `setup` (they work in Colab only) are left out."""
    try:
        digest, queue, names = _examined(_source(notebook), "")
    except SyntaxError as error:
        raise RunError(f"{notebook}: code line {error.lineno} is not Python ({error.msg}); correct it") from None
    digests = {notebook.stem: digest}
    while queue:
        module, *queue = queue
        path = package.joinpath(*module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module not in digests and path.is_file() and not f"{module}.".startswith(NO_RESULTS):
            inside = module if path.stem == "__init__" else module.rpartition(".")[0]
            digests[module], modules, read = _examined(path.read_text("utf-8"), inside)
            queue, names = queue + modules, names | read
            if (tables := path.with_suffix(".yaml")).is_file():  # data of the module, such as the words of the world
                digests[f"{module}, tables"] = hashlib.sha256(tables.read_bytes()).hexdigest()
    return digests, names


def _source(notebook: Path) -> str:
    cells = [cell for cell in json.loads(notebook.read_bytes())["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in cells if not {"parameters", "setup"} & set(cell["metadata"].get("tags", []))]
    return re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", "\n".join("".join(cell["source"]) for cell in cells))  # magics


@cache
def _examined(source: str, package: str) -> tuple[str, list[str], set[str]]:
    """(hash without docstrings, names that may be modules of srlib, names read from `cfg`) of code inside `package`."""
    tree, imported, read = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            imported |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", getattr(node.value, "attr", "")) == "cfg":
            read.add(node.attr)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
            node.body = [] if getattr(node, "name", "") == "Parameters" else node.body  # which count by their values
    ours = {name for name in imported if f"{name}.".startswith("srlib.")}
    modules = {name[: dot.start()] for name in ours for dot in re.finditer(r"\.|$", name)}  # packages have code, too
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), sorted(modules), read


def content(value: str, root: Path) -> str:
    """The hash of what is at a path, or the value as it is if nothing is there: a moved model changes nothing."""
    path = root / Path(value).expanduser()
    if not value or not path.exists():
        return value
    return f"sha256:{_sha256(path, max(p.stat().st_mtime_ns for p in [path, *path.rglob('*')] if p.exists()))}"


_sha256 = cache(lambda path, modified: files.sha256(path))
