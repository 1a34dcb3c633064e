"""Train a language model into a fine-grained judge by self-rationalization (arXiv 2410.05495).

    from srlib import Judge, Rubric

Importing srlib is cheap: `Judge`, and torch with it, is imported when it is first used."""

import importlib

from srlib.schema import Comparison, Example, Judgment, Pair, Rubric

__all__ = ["Comparison", "Example", "Judge", "Judgment", "Pair", "Rubric"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Judge":
        # Not an import statement, because a stage's key counts the modules that it imports, and every stage imports this one
        return importlib.import_module("srlib.judge").Judge
    raise AttributeError(f"module 'srlib' has no attribute {name!r}")
