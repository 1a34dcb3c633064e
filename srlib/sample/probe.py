"""Does the score follow from the rationale? Keep a sampled rationale, draw the score again, and see whether it stays.

Reviewers of arXiv 2410.05495 asked for this: a rejected rationale whose score flips when it is drawn again was rejected
for the draw, not for what it says. After a fixed rationale, the score at temperature 1 has a distribution that the model's
own token probabilities give exactly, so entropy and flip rate need no draws; k seeded redraws decide whether one judgment flips.

    judgments = filled(model, tokenizer, items, judgments, template="brief")    # where they hold no distribution yet
    summary(redraw(judgments, k=10, seed=0))["flip_rate"]                       # Interval(0.04, 0.03, 0.05, n=800 examples)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srlib import prompts
from srlib.sample import decode as sample
from srlib.schema import Item, Judgment, Verdict
from srlib.stats import intervals, metrics


@dataclass(frozen=True)
class Redrawn:
    """One judgment whose rationale was kept, and whose verdict was drawn again k times.

    >>> once = Redrawn("e#0", "e", 4.0, {3.0: 0.5, 4.0: 0.5}, (3.0, 4.0, 3.0))
    >>> round(once.entropy, 3), once.flip_rate, once.flips
    (0.693, 0.5, True)
    """

    id: str  # the judgment's
    example_id: str
    verdict: Verdict  # what it ended in
    distribution: dict[Verdict, float]  # of the verdict after the rationale, at temperature 1
    redraws: tuple[Verdict, ...]  # (k,)

    @property
    def entropy(self) -> float:
        """Of the distribution, in nats: 0 where the rationale leaves no doubt, log(K) where it says nothing."""
        p = np.array([p for p in self.distribution.values() if p > 0])
        return float(abs((p * np.log(p)).sum()))

    @property
    def flip_rate(self) -> float:
        """Probability that a redraw ends in another verdict, exactly."""
        return 1.0 - self.distribution[self.verdict]

    @property
    def flips(self) -> bool:
        """More than half of the k redraws end in another verdict."""
        return sum(verdict != self.verdict for verdict in self.redraws) > len(self.redraws) / 2


def filled(
    model: Any, tokenizer: Any, items: Mapping[str, Item], judgments: Sequence[Judgment], template: str
) -> list[Judgment]:
    """The judgments, each one that ends in a verdict with the verdict's distribution after its rationale.

    `items` maps ids to what was judged. Judgments drawn with `distributions=False` hold none: here the prompt and the
    rationale are read once more, and nothing is generated.
    """
    model.eval()
    missing = [(items[j.example_id], j) for j in judgments if j.verdict is not None and _distribution(j) is None]
    asked = [(item, prompts.prompt_ids(tokenizer, item, template), j.rationale) for item, j in missing]
    found = sample.score_distributions(model, tokenizer, asked)
    new = {j.id: j.model_copy(update=own) for (item, j), own in zip(missing, found, strict=True)}
    return [new.get(j.id, j) for j in judgments]


def redraw(judgments: Sequence[Judgment], k: int, seed: int) -> list[Redrawn]:
    """Draw the verdict of each judgment k times more, its rationale kept; the draws depend on (seed, judgment) alone.

    Judgments without a verdict have none to hold and are left out: `len` says how many. ValueError on one that has a
    verdict and no distribution, and on k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; draw each score at least once more")
    made = []
    for j in judgments:
        if j.verdict is None:
            continue
        distribution = _distribution(j)
        if distribution is None:
            raise ValueError(f"judgment {j.id} holds no distribution of its verdict; call probe.filled first")
        options, cdf = list(distribution), np.cumsum(list(distribution.values()))
        drawn = np.searchsorted(cdf, sample.uniforms(seed, f"redraw {j.id}", 0, k) * cdf[-1], side="right")
        redraws = tuple(options[min(i, len(options) - 1)] for i in drawn)
        made.append(Redrawn(j.id, j.example_id, j.verdict, distribution, redraws))
    return made


def summary(
    redrawn: Sequence[Redrawn], n_boot: int = 2000, group: Mapping[str, str] | None = None
) -> dict[str, intervals.Interval]:
    """Mean `entropy` (nats), `flip_rate` (exact), `redrawn_flip_rate` (share of the k redraws) and `flips` (share of the
    judgments), each with a bootstrap interval over examples: an example counts once, by the mean of its judgments. `group`
    says by an example's id with which others it belongs together."""
    of_each = {
        "entropy": lambda r: r.entropy,
        "flip_rate": lambda r: r.flip_rate,
        "redrawn_flip_rate": lambda r: float(np.mean([verdict != r.verdict for verdict in r.redraws])),
        "flips": lambda r: float(r.flips),
    }
    by_example: dict[str, list[Redrawn]] = {}
    for r in redrawn:
        by_example.setdefault(r.example_id, []).append(r)
    together = [group[name] for name in by_example] if group else None
    return {
        name: metrics.mean(
            [float(np.mean([value(r) for r in own])) for own in by_example.values()], n_boot, group=together
        )
        for name, value in of_each.items()
    }


def _distribution(judgment: Judgment) -> dict[Verdict, float] | None:
    return judgment.preference_probability if judgment.score is None else judgment.distribution
