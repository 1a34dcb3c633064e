"""The README's map of srlib is true: every module stands in it, and imports from above and from its left alone."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def places() -> dict[str, tuple[int, int]]:
    """Module -> (line, place in the line) of the map."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("## The map")[1].split("```")[1]
    own = block[block.index("srlib/") + len("srlib/") : block.index("\nmodels/")]
    found = {}
    for n, line in enumerate(own.splitlines()):
        names = re.split(r"\s{3,}", line.strip())[0].split()
        found |= {name: (n, i) for i, name in enumerate(names)}
    return found


def imported(path: Path) -> set[str]:
    """The modules of srlib that a module imports, at its top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "srlib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("srlib."):
            names.add(node.module.split(".")[1])
    return names


def test_the_map_is_true():
    order = places()
    modules = {path.stem: path for path in (ROOT / "srlib").glob("*.py") if path.stem != "__init__"}
    assert set(order) == set(modules)
    against = {(name, other) for name in modules for other in imported(modules[name]) if order[other] >= order[name]}
    assert not against
