"""Any judge on fifteen public benchmarks, each scored by its own rule, or the judgments of any other program.

suite.yaml   the benchmarks as declarations
protocol     rows -> questions for a judge, with the right answers; `named`
rules        answers -> figures, arithmetic only
run          ask a judge, keep its judgments, read those of others; `evaluate`, `kept`, `score`, `table`"""

from srlib.benchmarks.protocol import named
from srlib.benchmarks.run import evaluate, kept, score, table

__all__ = ["evaluate", "kept", "named", "score", "table"]
