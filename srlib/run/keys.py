"""What code, notebooks and local files amount to, as hashes: the part of a stage's key that is not a parameter.

A stage depends on its notebook's code cells and on the modules of ours that they import, directly or not. Imports are
read from the source, those inside functions too; nothing is imported or executed.

    code(Path("notebooks/05_dpo.ipynb"), Path("srlib")) -> {"05_dpo": "3f...", "srlib.train": "a0...", ...}
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from srlib import files as store


def code(notebook: Path, package: Path) -> dict[str, str]:
    """Hashes of the notebook's code cells and of every module of `package` behind its imports.

    The parameters cell is left out: it counts by its values. So is the set-up cell, which works in Colab alone. Raises ValueError on a cell that is not Python.
    """
    cells = [cell for cell in json.loads(notebook.read_bytes())["cells"] if cell["cell_type"] == "code"]
    tags = [cell.get("metadata", {}).get("tags", []) for cell in cells]
    apart = {"parameters", "setup"}
    sources = ["".join(cell["source"]) for cell, tag in zip(cells, tags, strict=True) if not apart & set(tag)]
    try:  # magics are no Python
        tree = ast.parse("\n".join(re.sub(r"(?m)^\s*[%!].*$", "", source) for source in sources))
    except SyntaxError as error:
        raise ValueError(f"{notebook}: code line {error.lineno} is not Python ({error.msg}); correct it") from None
    found = {notebook.stem: hashlib.sha256("\0".join(sources).encode()).hexdigest()}
    queue = sorted(_imports(tree, package))
    while queue:
        module = queue.pop()
        if module not in found:
            found[module], more = _source(package, module)
            queue += more
    return found


def content(value: Any, root: Path) -> Any:
    """A parameter that may be a local path counts by what lies there, else as it is: `"org/model" -> "org/model"`.

    So moving a model changes nothing, and retraining it in place does.
    """
    path = root / Path(value).expanduser() if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return value
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    state = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return f"sha256:{_sha256(path, state)}"


@lru_cache
def _sha256(path: Path, _state: tuple[Any, ...]) -> str:
    return store.sha256(path)


def _imports(tree: ast.AST, package: Path) -> frozenset[str]:
    """Modules of srlib that some code imports, at any depth: `from srlib import train -> srlib, srlib.train`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"srlib.{base}".rstrip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    ours = {name for name in names if name.startswith("srlib.") and (package / f"{name[6:]}.py").is_file()}
    return frozenset(ours | ({"srlib"} if any(name.split(".")[0] == "srlib" for name in names) else set()))


def _source(package: Path, module: str) -> tuple[str, frozenset[str]]:
    path = package / ("__init__.py" if module == "srlib" else f"{module.removeprefix('srlib.')}.py")
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, _mtime: int, _size: int) -> tuple[str, frozenset[str]]:
    source = path.read_bytes()
    return hashlib.sha256(source).hexdigest(), _imports(ast.parse(source), path.parent)
