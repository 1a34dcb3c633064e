"""The notebooks declare parameters; one flat YAML file decides their values.

Ground floor: imports nothing of ours. Each notebook has one code cell tagged `parameters`, the only place where a name,
a type, a default and its help are written. One line is one parameter, with an optional constraint behind the help:

    beta: float = 0.1         # inverse temperature of the DPO loss [> 0]
    temperature: float = 1.0  # sampling temperature [0 .. 10]
    n_samples: int = 10       # judgments drawn for each prompt [1 ..]
    backend: str = "auto"     # where training runs [auto | unsloth | transformers]

The cell is parsed, never executed. Whatever does not fit is refused before anything runs, with the nearest known name:

>>> beta = Param("beta", "float", 0.1, "inverse temperature of the DPO loss", "> 0", ("05_dpo",))
>>> fit(beta, 1)
1.0
>>> fit(beta, -1)
Traceback (most recent call last):
ValueError: is -1.0; it must be > 0
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srlib.schema import SrlibError

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list[str]": list}

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_ABOVE = re.compile(rf"(>=?)\s*({_NUMBER})")
_BETWEEN = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})?")
_CHOICES = re.compile(r"[^|]+(?:\|[^|]+)+")
_HELP = re.compile(r"(.*?)\s*\[([^\[\]]*)\]")


class ParamError(SrlibError, ValueError):
    """A parameter that cannot be used. The message names file, line where known, parameter, value and what to do."""


@dataclass(frozen=True)
class Param:
    name: str
    type: str  # a key of TYPES
    default: Any
    help: str
    constraint: str  # "> 0", "0 .. 10", "1 ..", "auto | none", or ""
    notebooks: tuple[str, ...]  # where it is declared


def project_root(start: Path | None = None) -> Path:
    """The directory that holds notebooks/01_data.ipynb and srlib/: `start` (cwd) or above, else above this package."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks" / "01_data.ipynb").is_file() and (folder / "srlib").is_dir():
            return folder
    raise ParamError(
        f"no notebooks/01_data.ipynb beside srlib/ in {start} or above: work inside a clone of the project"
    )


def of_notebook(name: str, notebooks_dir: Path | None = None) -> dict[str, Param]:
    """What one notebook declares, in its own order: `of_notebook("05_dpo")["beta"].default -> 0.1`."""
    path = (notebooks_dir or project_root() / "notebooks") / f"{name}.ipynb"
    try:
        cells = json.loads(path.read_bytes())["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        sources = ["".join(cell["source"]) for cell in tagged if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParamError(f"{path}: cannot be read as a notebook ({error})") from None
    if len(sources) != 1:
        raise ParamError(f"{path}: {len(sources)} code cells are tagged `parameters`; there must be exactly one")
    try:
        tree = ast.parse(sources[0])
    except SyntaxError as error:
        raise ParamError(f"{path}, line {error.lineno} of the parameters cell: {error.msg}") from None
    tokens = tokenize.generate_tokens(io.StringIO(sources[0]).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, Param] = {}
    for node in tree.body:
        try:
            param = _declaration(node, comments.get(node.end_lineno, ""), name)
            if param.name in found:
                raise ValueError(f"{param.name} is declared twice")
        except ValueError as error:
            raise ParamError(f"{path}, line {node.lineno} of the parameters cell: {error}") from None
        found[param.name] = param
    return found


def _declaration(node: ast.stmt, comment: str, notebook: str) -> Param:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
        raise ValueError("expected `name: type = default  # help` and nothing else")
    name, kind = node.target.id, ast.unparse(node.annotation)
    if kind not in TYPES:
        raise ValueError(f"{name} has type {kind}; the types are {', '.join(TYPES)}")
    text, constraint = match.groups() if (match := _HELP.fullmatch(comment)) else (comment, "")
    if not text:
        raise ValueError(f"{name} has no help: write it behind the default, as a comment")
    if constraint and not any(form.fullmatch(constraint) for form in (_ABOVE, _BETWEEN, _CHOICES)):
        raise ValueError(f"{name}: [{constraint}] is not [> x], [>= x], [a .. b], [a ..] or [a | b]")
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        raise ValueError(f"the default of {name} must be written out, not computed") from None
    param = Param(name, kind, default, text, constraint, (notebook,))
    try:
        return replace(param, default=fit(param, default))
    except ValueError as error:
        raise ValueError(f"the default of {name} {error}") from None


def declared(notebooks_dir: Path | None = None) -> dict[str, Param]:
    """Every parameter of every notebook; one name means one thing everywhere, or ParamError names both notebooks."""
    notebooks_dir = notebooks_dir or project_root() / "notebooks"
    known: dict[str, Param] = {}
    for path in sorted(notebooks_dir.glob("*.ipynb")):
        for name, param in of_notebook(path.stem, notebooks_dir).items():
            first = known.get(name, param)
            for part in ("type", "default", "help", "constraint"):
                here, there = getattr(param, part), getattr(first, part)
                if here != there:
                    raise ParamError(
                        f"{name} is declared differently in two notebooks: {part} is {there!r} in "
                        f"{first.notebooks[0]} and {here!r} in {path.stem}; write the same line in both"
                    )
            known[name] = param if first is param else replace(first, notebooks=(*first.notebooks, path.stem))
    return known


def fit(param: Param, value: Any) -> Any:
    """`value` as the parameter's type (an int becomes a float where one is wanted), or ValueError with the reason."""
    wrong = f"is {_short(value)}; it must be {param.type}"
    if param.type == "list[str]":
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError(wrong)
        value = list(value)
    elif param.type == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise ValueError(f"is {value}; it must be a finite number")
    elif type(value) is not TYPES[param.type]:  # exactly: a bool is not an int
        hint = " (YAML reads yes, no, on and off as bool: put quotes around it)"
        raise ValueError(wrong + (hint if isinstance(value, bool) and param.type == "str" else ""))
    for item in value if isinstance(value, list) else [value]:
        if not _allowed(param.constraint, item):
            choices = "one of " if "|" in param.constraint else ""
            raise ValueError(f"is {_short(item)}; it must be {choices}{param.constraint.replace(' |', ',')}")
    return value


def _allowed(constraint: str, value: Any) -> bool:
    if match := _ABOVE.fullmatch(constraint):
        bound = float(match[2])
        return value > bound or (match[1] == ">=" and value == bound)
    if match := _BETWEEN.fullmatch(constraint):
        return float(match[1]) <= value and (match[2] is None or value <= float(match[2]))
    return not constraint or str(value) in [choice.strip() for choice in constraint.split("|")]


def load(
    yaml_path: Path | str | None, overrides: Sequence[str] = (), notebooks_dir: Path | None = None
) -> dict[str, Any]:
    """Defaults, then the YAML file, then `name=value` strings: every declared parameter with a checked value.

    `load("params/tiny.yaml", ["beta=0.3", "arms=base,sft"])["beta"] -> 0.3`. Raises ParamError on an unknown name, a
    wrong type, a value out of range, a duplicate key, a tab, a nested value or a missing file.
    """
    known = declared(notebooks_dir)
    values = {name: param.default for name, param in known.items()}
    if yaml_path is not None:
        values |= _from_yaml(Path(yaml_path), known)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ParamError(f"-p {_short(override)}: write -p NAME=VALUE")
        values[name] = _checked(f"-p {name}", known, name, text, from_text=True)
    return values


def _from_yaml(path: Path, known: Mapping[str, Param]) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParamError(f"{path}: cannot be read ({error}); give the path of a parameter file, UTF-8") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line:
            raise ParamError(f"{path}, line {number}: a tab; YAML wants spaces, replace it")
    loader = yaml.SafeLoader(text)
    values: dict[str, Any] = {}
    try:
        root = loader.get_single_node()
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ParamError(f"{path}: is not a list of `name: value` lines")
        for key, node in root.value if root else []:
            where = f"{path}, line {key.start_mark.line + 1}"
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "a nested key"
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            if name in values:
                raise ParamError(f"{where}: {name} is there a second time; keep one")
            if not all(isinstance(item, yaml.ScalarNode) for item in items):
                raise ParamError(f"{where}: {name} is nested; the file is flat, one `name: value` a line")
            value = loader.construct_object(node, deep=True)
            # YAML 1.1 reads 5e-6, which has no dot, as text
            number = isinstance(value, str) and node.style is None and re.fullmatch(_NUMBER, value)
            if number and name in known and known[name].type == "float":
                value = float(value)
            values[name] = _checked(where, known, name, value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ParamError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    except RecursionError:
        raise ParamError(f"{path}: is nested; the file is flat, one `name: value` a line") from None
    except ValueError as error:  # such as the date 2026-02-31
        raise error if isinstance(error, ParamError) else ParamError(f"{path}: {error}") from None
    finally:
        loader.dispose()
    return values


def _checked(where: str, known: Mapping[str, Param], name: str, value: Any, from_text: bool = False) -> Any:
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"the nearest is {nearest[0]}; " if nearest else ""
        raise ParamError(f"{where}: {_short(name)} is no parameter; {hint}`srlib params` lists all")
    try:
        return fit(known[name], _parsed(known[name], value) if from_text else value)
    except ValueError as error:
        raise ParamError(f"{where}: {name} {error}") from None


def _parsed(param: Param, text: str) -> Any:
    """The text behind -p NAME= as the parameter's type; what cannot be read is passed on, for `fit` to refuse."""
    if param.type == "list[str]":
        return [item.strip() for item in text.split(",") if item.strip()]
    if param.type == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if param.type == "int" and re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if param.type == "float" and re.fullmatch(rf"{_NUMBER}|[-+]?\.\d+|[-+]?(nan|inf)", text):
        return float(text)
    return text


def check(notebook: str, namespace: Mapping[str, Any], notebooks_dir: Path | None = None) -> dict[str, Any]:
    """The declared values of a running notebook, checked as `load` does: call it with `globals()`.

    papermill only prints a line about a parameter it does not know, so what it injected is looked at here, too.
    """
    notebooks_dir = notebooks_dir or project_root() / "notebooks"
    own, known = of_notebook(notebook, notebooks_dir), declared(notebooks_dir)
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):  # how papermill heads the cell it injects
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in known:
                    _checked(f"notebook {notebook}", known, node.id, None)
    missing = [name for name in own if name not in namespace]
    if missing:
        raise ParamError(f"notebook {notebook}: {missing[0]} is not set; run the cell tagged `parameters` first")
    return {name: _checked(f"notebook {notebook}", own, name, namespace[name]) for name in own}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
