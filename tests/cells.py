"""Run a notebook's code cells in this process, without a kernel: seconds instead of minutes."""

import ast
import json
from pathlib import Path
from typing import Any

import srlib

NOTEBOOKS = Path(srlib.__file__).resolve().parent.parent / "notebooks"


def run_cells(name: str, **parameters: Any) -> dict[str, Any]:
    """The namespace after all code cells; `parameters` replace those of its parameters cell. `shown` lists what it displays."""
    shown: list[Any] = []
    namespace: dict[str, Any] = {"display": shown.append, "shown": shown}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] != "code" or "setup" in tags:
            continue
        exec(compile(source, f"{name}, cell {cell['id']}", "exec"), namespace)
        if "parameters" in tags:
            namespace |= parameters
    return namespace


def run_cell(name: str, cell_id: str, **names: Any) -> dict[str, Any]:
    """The namespace after one cell; `names` are what it reads."""
    [cell] = [c for c in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"] if c["id"] == cell_id]
    exec(compile("".join(cell["source"]), f"{name}, cell {cell_id}", "exec"), names)
    return names


def definition(name: str, defined: str, **names: Any) -> Any:
    """A function or a constant that a notebook defines, by itself; `names` are what it reads."""
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "%pip" not in source:
            for node in ast.parse(source).body:
                if defined in {getattr(node, "name", None), *(ast.unparse(t) for t in getattr(node, "targets", []))}:
                    exec(compile(ast.Module([node], []), name, "exec"), names)
    return names[defined]
