"""Any judge on fifteen public benchmarks, each scored by its own rule, or the judgments of any other program.

suite.yaml declares the benchmarks, `protocol` makes questions of their rows, `run` asks a judge, `rules` scores the answers."""

# ruff: noqa: F401
from srlib.benchmarks.protocol import named
from srlib.benchmarks.run import evaluate, kept, score, table
