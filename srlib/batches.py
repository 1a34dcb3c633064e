"""Which rows go through the model together, where rows that share a prompt are to read it once.

Ground floor of training: numbers only. A training is laid out as a whole before it begins, so it is the same on every
machine and resumes at any step. Prompts are shuffled and their rows stay together; prompts of similar length meet in one
optimizer step, which takes whole prompts, about `batch_size` rows of them. A step whose tokens are over the budget goes
through the model in several parts, and every step in equally many, for that is how trainers accumulate.

>>> groups = by_prompt(["a", "a", "b", "c", "a", "b"])
>>> layout(groups, lengths=[9, 9, 5, 7, 9, 5], cost=len, batch_size=6, steps=1, seed=0, budget=3)
Layout(parts=[[0, 1, 4], [3, 2, 5]], per_step=2)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 32  # steps' worth of prompts among which those of similar length meet
FEWEST_PROMPTS = 8  # in an optimizer step: rows of one prompt have correlated gradients


class Layout(NamedTuple):
    """A whole training: `per_step` parts after another make one optimizer step."""

    parts: list[list[int]]  # row numbers that go through the model at once
    per_step: int


def by_prompt(prompts: Iterable[Hashable]) -> list[list[int]]:
    """Row numbers of each prompt: `["a", "b", "a"] -> [[0, 2], [1]]`."""
    groups: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(i)
    return list(groups.values())


def layout(
    groups: Sequence[Sequence[int]],
    lengths: Mapping[int, int] | Sequence[int],
    cost: Callable[[Sequence[int]], int],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    budget: int | None = None,
) -> Layout:
    """Lay out `steps` optimizer steps of about `batch_size` rows each.

    `groups` are the rows of each prompt, `lengths` their tokens, `cost(rows)` is how many tokens the model reads for rows
    that go through it together, and `budget` is how many it may be (None: any). A row that alone is over it goes alone.
    Warns where a step has fewer than FEWEST_PROMPTS prompts although there are more, and where the budget cannot be kept.
    """
    groups = [list(g[i : i + batch_size]) for g in groups for i in range(0, len(g), batch_size)]
    n_rows = sum(map(len, groups))
    a_step = len(groups) * batch_size / n_rows
    if a_step < min(FEWEST_PROMPTS, len(groups)):
        warnings.warn(
            f"an optimizer step of {batch_size} rows holds {a_step:.1f} prompts, and rows of one prompt pull one way; raise "
            f"the batch size to {int(np.ceil(FEWEST_PROMPTS * n_rows / len(groups)))}",
            stacklevel=2,
        )
    rng = np.random.default_rng(seed)
    made: list[list[list[int]]] = []
    while len(made) < steps:
        made += _epoch(groups, lengths, batch_size, rng)
    made = made[:steps]
    per_step = 1
    while True:
        cut = [
            [[i for group in part for i in group] for part in _cut(_enough(step, per_step), cost, per_step)]
            for step in made
        ]
        over = budget is not None and any(cost(part) > budget and len(part) > 1 for parts in cut for part in parts)
        if not over or per_step >= min(sum(map(len, step)) for step in made):
            if over:
                warnings.warn(
                    f"some rows go through the model with more than the budget of {budget} tokens, since every step has to "
                    f"have as many parts as the smallest one has rows ({per_step}); raise the batch size, or keep fewer rows a prompt",
                    stacklevel=2,
                )
            return Layout([part for parts in cut for part in parts], per_step)
        per_step += 1


def _enough(step: list[list[int]], parts: int) -> list[list[int]]:
    """A prompt's rows part only where a step has fewer prompts than parts."""
    return step if len(step) >= parts else [[i] for group in step for i in group]


def _epoch(groups: list[list[int]], lengths: Mapping[int, int] | Sequence[int], batch_size: int, rng) -> list:
    """Every group once, as steps: a list of groups each."""
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    window = max(1, round(WINDOW * batch_size * len(groups) / sum(map(len, groups))))
    ordered: list[list[int]] = []
    for start in range(0, len(shuffled), window):
        ordered += sorted(shuffled[start : start + window], key=lambda g: max(lengths[i] for i in g), reverse=True)
    steps = _cut(ordered, len, -(-sum(map(len, groups)) // batch_size))
    return [steps[i] for i in rng.permutation(len(steps))]


def _cut(groups: list[list[int]], cost: Callable[[Sequence[int]], int], parts: int) -> list[list[list[int]]]:
    """Groups, in their order, as so many parts of about equal cost, none empty."""
    costs = [cost(group) for group in groups]
    made, at = [], 0
    for left in range(parts, 0, -1):
        share, part, size = sum(costs[at:]) / left, [], 0
        while at < len(groups) and (
            left == 1 or not part or (len(groups) - at >= left and size + costs[at] / 2 <= share)
        ):
            part.append(groups[at])
            size += costs[at]
            at += 1
        made.append(part)
    return made
