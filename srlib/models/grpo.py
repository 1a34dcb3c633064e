"""Reinforcement on the scores: what a judgment earns, and when the tokens of a training are spent (notebook 13)."""

from typing import Any

from transformers import TrainerCallback

from srlib import prompts
from srlib.schema import Item

PLACES = {"A": 1, "tie": 0, "B": -1}  # of a preference, so that a tie is half wrong


def reward(item: Item, text: str, finished: bool = True) -> float:
    """1 - |score - gold| / range of the scale, in [0, 1], or -1 for text that holds no verdict: on a scale of 1 to 5 with
    gold 4, `"It greets. [RESULT] 3" -> 0.75`, `"It greets." -> -1.0`. `finished=False`: it was cut off."""
    verdict = prompts.parse(text.strip(), item, finished).verdict
    if verdict is None:
        return -1.0
    score, gold, *scale = (PLACES.get(v, v) for v in (verdict, item.gold, *item.verdicts))
    return 1 - abs(score - gold) / (max(scale) - min(scale))


class StopsAtBudget(TrainerCallback):
    """Stop TRL's GRPOTrainer behind the step with which it has sampled `tokens` tokens; a step samples `rows` judgments."""

    def __init__(self, tokens: int, rows: int) -> None:
        self.tokens, self.rows = tokens, rows

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= sampled(state.log_history, self.rows) >= self.tokens


def sampled(log: list[dict[str, float]], rows: int) -> int:
    """Tokens that a training with `rows` judgments a step has sampled, by its log."""
    return round(sum(rows * step.get("completions/mean_length", 0) for step in log))
