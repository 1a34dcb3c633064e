"""Train a language model into a fine-grained judge by self-rationalization (arXiv 2410.05495).

    from srlib import Judge, Rubric

Importing this is cheap: torch and its friends are imported by the functions that need them.
"""

import importlib

from srlib.schema import Comparison, Example, Judgment, Pair, Rubric

__all__ = ["Comparison", "Example", "Judge", "Judgment", "Pair", "Rubric"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Judge":
        # Not an import statement: those make a stage depend on a module (srlib.fingerprint), and every stage imports this.
        return importlib.import_module("srlib.judge").Judge
    raise AttributeError(f"module 'srlib' has no attribute {name!r}")
