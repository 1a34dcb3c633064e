"""An arm is a judge and a way to read it: from the judgments of a pass to one score, one confidence for each item.

`greedy` reads the one judgment; of N draws, `majority` (self-consistency), `mean` and `median` make one score of all, and
`likelihood` takes the best by the judge's own mean token log-probability.

>>> arm("sre_2_self_consistency")
Arm(name='sre_2_self_consistency', judge='sre_2', read='majority')
>>> arm("sft_mean_of_n").judged_in
'sft_draws'
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srlib.schema import Example, Judgment
from srlib.stats import metrics

ARMS = {  # in the order in which they stand in every table and figure, and what they are
    "base": "before SFT",
    "sft_score_only": "SFT on scores, without rationales",
    "sft": "SFT on rationale and score",
    "sft_careful_only": "SFT, told which annotators are careful (a ceiling)",
    "sft_continued": "SFT for as many further steps as the loop takes",
    "rft": "SFT on the chosen side of the same pairs",
    "sft_self_consistency": "SFT, the majority of N samples",
    "sft_best_of_n": "SFT, the best of N samples by its selector",
    "sft_mean_of_n": "SFT, the mean of N samples",
    "sft_median_of_n": "SFT, the median of N samples",
    "sre_1": "self-rationalized once",
    "sre_2": "self-rationalized twice",
    "sre_2_self_consistency": "self-rationalized twice, the majority of N samples",
}
SUFFIXES = {"_self_consistency": "majority", "_best_of_n": "likelihood", "_mean_of_n": "mean", "_median_of_n": "median"}


@dataclass(frozen=True)
class Arm:
    """One row of the result table: which judge (None: the base model), and how its judgments become a score."""

    name: str
    judge: str | None
    read: str = "greedy"  # or a value of SUFFIXES

    @property
    def judged_in(self) -> str:
        """The judging pass that this arm reads: arms with the same draws share one."""
        return (self.judge or "base") + ("" if self.read == "greedy" else "_draws")

    @property
    def iteration(self) -> int:
        match = re.match(r"sre_(\d+)", self.name)
        return int(match[1]) if match else 0


def arm(name: str) -> Arm:
    """`"sft_best_of_n" -> Arm(judge="sft", read="likelihood")`, `"base" -> Arm(judge=None)`."""
    for suffix, how in SUFFIXES.items():
        if name.endswith(suffix):
            return Arm(name, name.removesuffix(suffix), how)
    return Arm(name, None if name == "base" else name)


def in_order(arms: Sequence[str]) -> list[str]:
    """Each arm once, in the order of ARMS; `sre_3` and so on follow, then names that stand nowhere."""

    def rank(arm: str) -> tuple[int, int, str]:
        if arm in ARMS and not arm.startswith("sre_"):
            return 0, list(ARMS).index(arm), arm
        iteration = re.match(r"sre_(\d+)", arm)
        return (1, int(iteration[1]), arm) if iteration else (2, 0, arm)

    return sorted(set(arms), key=rank)


def read(arm: Arm, judged: Sequence[Judgment]) -> list[Judgment | None]:
    """One judgment per item: the greedy one, or of its N draws one of the majority's verdict, or the most likely one that
    has a verdict; None where the arm ends up with none.

    The majority's distribution is that of the votes, so its confidence is the share of draws that agree. The mean and the
    median of the N scores are most often no score of the rubric. They come as the draw that is nearest, with that number
    for a score and no distribution; `on_scale` rounds it. Of preferences there is no mean: the majority is read. Raises
    ValueError where the best is asked of draws that have no log-probability.
    """
    groups: dict[str, list[Judgment]] = {}
    for judgment in judged:
        groups.setdefault(judgment.example_id, []).append(judgment)
    if arm.read == "greedy":
        return [group[0] for group in groups.values()]
    ways: dict[str, Callable[[list[Judgment]], Judgment]] = {
        "majority": lambda group: _elected(group, groups[group[0].example_id]),
        "likelihood": _of_likelihood,
        "mean": lambda group: _near(group, np.mean),
        "median": lambda group: _near(group, np.median),
    }
    if arm.read not in ways:
        raise ValueError(f"arm {arm.name} is read as {arm.read!r}; there are greedy, {', '.join(ways)}")
    scored = [[j for j in group if j.verdict is not None] for group in groups.values()]
    return [ways[arm.read](group) if group else None for group in scored]


def _of_majority(group: list[Judgment]) -> Judgment:
    """Among equally frequent scores the nearest to the mean, among equally frequent preferences the likeliest draw's."""
    if group[0].preference is not None:
        votes = Counter(j.preference for j in group)
        return max(group, key=lambda j: (votes[j.preference], _likely(j)))
    score = float(metrics.majority([[j.score for j in group]])[0])
    return max((j for j in group if j.score == score), key=_likely)


def _elected(group: list[Judgment], drawn: list[Judgment]) -> Judgment:
    """The majority, with the votes for a distribution: of draws 2, 2, 3 and one without a score {2: 2/3, 3: 1/3}, on_scale 3/4."""
    chosen, votes = _of_majority(group), Counter(j.score for j in group)
    if chosen.score is None:
        return chosen
    shares = {score: votes[score] / len(group) for score in chosen.distribution or votes}
    return chosen.model_copy(update={"distribution": shares, "on_scale": len(group) / len(drawn)})


def _of_likelihood(group: list[Judgment]) -> Judgment:
    unknown = next((j for j in group if j.logprob is None), None)
    if unknown is not None and len(group) > 1:
        raise ValueError(
            f"judgment {unknown.id} has no log-probability, so the best of {len(group)} cannot be told; "
            "leave best_of_n out, or draw with a judge that gives log-probabilities"
        )
    return max(group, key=_likely)


def _near(group: list[Judgment], center: Callable[[list[float]], float]) -> Judgment:
    if group[0].preference is not None:
        return _of_majority(group)
    score = float(center([j.score for j in group]))
    nearest = max(group, key=lambda j: (-abs(j.score - score), _likely(j)))
    return nearest.model_copy(update={"score": score, "distribution": None})


def _likely(judgment: Judgment) -> float:
    """Draws whose server gave no log-probability are the least likely; among equals the first is taken."""
    return -math.inf if judgment.logprob is None else judgment.logprob


def scores(judgments: Sequence[Judgment | None]) -> np.ndarray:
    """(n,) scores, NaN where there is none."""
    return np.array([math.nan if j is None or j.score is None else j.score for j in judgments])


def on_scale(items: Sequence[Example], values: Sequence[float]) -> np.ndarray:
    """(n,) values rounded to the nearest score of each item's scale, the lower of two: `3.5 -> 3`; NaN stays NaN."""
    return np.array(
        [
            value if math.isnan(value) else min(item.rubric.scale, key=lambda score: abs(score - value))
            for item, value in zip(items, values, strict=True)
        ]
    )


def confidence(judgments: Sequence[Judgment | None]) -> np.ndarray:
    """(n,) probability that the judge gives the score it gave, after its rationale, or of a majority the share of draws that
    agree with it; NaN where it abstains.

    It abstains where there is no score, no distribution, or where none of the scale's scores is the likeliest outcome:
    more than half of the probability lies off the scale (a none-of-the-above, arXiv 2312.09300).
    """
    return np.array([math.nan if (p := _confidence(j)) is None else p for j in judgments])


def _confidence(j: Judgment | None) -> float | None:
    if j is None or j.score is None or j.distribution is None:
        return None
    mass = 1.0 if j.on_scale is None else j.on_scale
    return None if mass < 0.5 else mass * j.distribution[j.score]


def distributions(judgments: Sequence[Judgment | None], scale: Sequence[float]) -> np.ndarray:
    """(n, K) probabilities of the scores in `scale`, which holds those of all items; NaN where an item has no such score."""
    given = [(j.distribution or {}) if j is not None else {} for j in judgments]
    return np.array([[row.get(score, math.nan) for score in scale] for row in given]).reshape(len(given), len(scale))
