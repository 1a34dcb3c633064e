"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATHS = [path.relative_to(ROOT) for path in (ROOT / "srlib").rglob("*.py") if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", sorted(PATHS), ids=str)
def test_examples(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
