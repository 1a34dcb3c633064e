"""An arm is a judge and a reading: how its judgments of one item become one score and one confidence. `greedy` takes
the one judgment. Of N draws, `majority` (self-consistency), `mean` and `median` make one score of all, and `likelihood`
(best of N) takes the draw with the highest mean token log-probability.

>>> arm("sre_2_self_consistency")
Arm(name='sre_2_self_consistency', judge='sre_2', read='majority', iteration=2, prompting='')
>>> arm("sft_mean_of_n").judged_in
'sft_draws'"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srlib.schema import Example, Judgment, SrlibError
from srlib.stats import agreement
from srlib.stats.intervals import NAN, Floats

CEILING = "sft_careful_only"  # not a competitor: it is told which annotators are careful
ARMS = {  # in the order of every table and figure
    "base": "the base model, before SFT",
    "base_few_shot": "the base model, with graded examples in its prompt",
    "base_best_prompt": "the base model, with the best of several prompts",
    "sft_score_only": "SFT on scores without rationales",
    "sft": "SFT on rationales and scores",
    CEILING: "SFT on the rows of careful annotators alone: an oracle",
    "sft_continued": "SFT for as many further steps as the loop takes",
    "rft": "SFT on the chosen side of the first iteration's pairs",
    "grpo": "reinforcement (GRPO) on the loop's prompts, with as many sampled tokens",
    "sft_self_consistency": "SFT, the majority of N draws",
    "sft_best_of_n": "SFT, the likeliest of N draws",
    "sft_mean_of_n": "SFT, the mean of N draws",
    "sft_median_of_n": "SFT, the median of N draws",
    "sre_1": "self-rationalized once",
    "sre_2": "self-rationalized twice",
    "sre_2_self_consistency": "self-rationalized twice, the majority of N draws",
}
PROMPTINGS = {"_few_shot": "few_shot", "_best_prompt": "best_prompt", "_verdict_only": "verdict_only"}
READINGS = {"_self_consistency": "majority", "_best_of_n": "likelihood", "_mean_of_n": "mean", "_median_of_n": "median"}
CENTERS = {"majority": agreement.majority, "mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class Arm:
    """A row of the result table."""

    name: str
    judge: str | None  # directory of judges/; None is the base model
    read: str = "greedy"  # or a value of READINGS
    iteration: int = 0  # rounds of self-rationalization behind the judge
    prompting: str = ""  # or a value of PROMPTINGS: asked for the verdict alone, or by a prompt chosen on validation

    @property
    def plain(self) -> bool:
        """Whether it is the judge's greedy judgment, with the judge's own prompt."""
        return self.read == "greedy" and not self.prompting

    @property
    def judged_in(self) -> str:
        """The pass whose judgments the arm reads; arms that read the draws of one judge share it."""
        kind = self.prompting or ("" if self.read == "greedy" else "draws")
        return "_".join(filter(None, [self.judge or "base", kind]))


def arm(name: str) -> Arm:
    """`"sft_best_of_n" -> Arm(judge="sft", read="likelihood")`, `"base" -> Arm(judge=None)`; any name is a judge's. The setting
    behind a comma, with which a comparison names its lines, is left out: `"sft, beta=0.1" -> Arm(judge="sft")`."""
    name = name.split(", ")[0]
    suffix = next((suffix for suffix in (*READINGS, *PROMPTINGS) if name.endswith(suffix)), "")
    judge = name.removesuffix(suffix)
    number = judge.removeprefix("sre_")
    iteration = int(number) if number != judge and number.isdecimal() else 0
    judge = None if judge == "base" and suffix not in READINGS else judge
    return Arm(name, judge, READINGS.get(suffix, "greedy"), iteration, PROMPTINGS.get(suffix, ""))


def in_order(names: Sequence[str]) -> list[str]:
    """Each name once: the order of ARMS, with `sre_3` and so on after `sre_2`, then unknown names; settings as they come."""
    places, known = {name: place for place, name in enumerate(ARMS)}, {name: arm(name) for name in names}
    first = {name: of.iteration or (0 if of.name in places else 10**6) for name, of in known.items()}
    return sorted(first, key=lambda name: (first[name], places.get(known[name].name, len(places)), known[name].name))


def read(arm: Arm, judgments: Sequence[Judgment]) -> list[Judgment | None]:
    """One judgment per item, in order of first occurrence; None if none of its N draws has a verdict. The majority, mean
    or median is the nearest draw, with that score. A majority's distribution is that of the votes, so its confidence is
    the share of draws that agree; a mean or median has none, and `on_scale` rounds it. Preferences have no mean: the
    majority is read. Raises SrlibError if draws to rank have no log-probability."""
    draws: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        draws.setdefault(judgment.example_id, []).append(judgment)
    return [of_item[0] if arm.read == "greedy" else _read(arm, of_item) for of_item in draws.values()]


def _read(arm: Arm, draws: list[Judgment]) -> Judgment | None:
    parsed = [j for j in draws if j.verdict is not None]
    if not parsed:
        return None
    if arm.read == "likelihood":
        unknown = next((j.id for j in parsed if j.logprob is None), None)
        if unknown and len(parsed) > 1:
            hint = "remove this arm, or draw with a judge that gives log-probabilities"
            raise SrlibError(f"{arm.name}: judgment {unknown} has no log-probability, so the best is unknown; {hint}")
        return max(parsed, key=_likely)
    if parsed[0].preference is not None:
        votes = Counter(j.preference for j in parsed)
        return max(parsed, key=lambda j: (votes[j.preference], _likely(j)))
    votes = Counter(j.score for j in parsed)
    score = float(CENTERS[arm.read](list(votes.elements())))
    nearest = max(parsed, key=lambda j: (-abs(j.score - score), _likely(j)))
    shares = {s: votes[s] / len(parsed) for s in nearest.distribution or votes} if arm.read == "majority" else None
    return nearest.model_copy(update={"score": score, "distribution": shares, "on_scale": len(parsed) / len(draws)})


def _likely(judgment: Judgment) -> float:
    return -np.inf if judgment.logprob is None else judgment.logprob  # some servers give none


def scores(judgments: Sequence[Judgment | None]) -> Floats:
    """(n,) scores, NaN if there is none."""
    return np.array([None if j is None else j.score for j in judgments], dtype=float)


def on_scale(items: Sequence[Example], values: Sequence[float]) -> Floats:
    """(n,) values rounded to the nearest score of each item's scale, the lower of two: `3.5 -> 3`; NaN stays NaN."""
    nearest = [min(item.rubric.scale, key=lambda s: abs(s - v)) for item, v in zip(items, values, strict=True)]
    return np.where(np.isnan(values), NAN, nearest)


def confidence(judgments: Sequence[Judgment | None]) -> Floats:
    """(n,) probability of the score after the rationale, or of a majority the share of draws that agree. NaN abstains: no score,
    no distribution, or "none of the scores" is likeliest, with more than half of the probability (arXiv 2312.09300)."""
    sure = [NAN if j is None or j.score is None else (j.distribution or {}).get(j.score, NAN) for j in judgments]
    mass = np.array([1.0 if j is None or j.on_scale is None else j.on_scale for j in judgments])
    return np.where(mass < 0.5, NAN, mass * sure)


def distributions(judgments: Sequence[Judgment | None], scale: Sequence[float]) -> Floats:
    """(n, K) probabilities of the scores of `scale`, the union of all items' scales; NaN if an item lacks a score."""
    each = [{} if j is None else j.distribution or {} for j in judgments]
    return np.array([[p.get(score, NAN) for score in scale] for p in each]).reshape(len(each), len(scale))
