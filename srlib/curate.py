"""Judgments -> preference pairs, with every dropped prompt counted (paper section 3).

    strategy        chosen                       rejected                                  needs labels
    correct_answer  score == gold                |score - gold| >= margin                  yes
    majority_vote   score == mode of the N       |score - mode| >= margin                  no
    meta_judge      highest rating               lowest rating, at least margin lower      no

Of comparisons, a preference takes the score's place, and any other one is rejected: between A and B there is no margin.

A judgment is used once at most, and a judgment without a verdict never. Pairs of one prompt are drawn at random, seeded
by the example's id, so that curating again, or a part of the prompts, gives the same pairs.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from srlib.schema import Comparison, Example, Item, Judgment, Pair, Rubric, Verdict
from srlib.stats import metrics

STRATEGIES = ("correct_answer", "majority_vote", "meta_judge")

# Why a prompt gives no pair, in the order in which it is asked.
DROPS = {
    "no_score": "no judgment has a score",
    "no_majority": "two preferences have the most votes",
    "all_wrong": "no judgment is right",
    "all_right": "every judgment is right",
    "margin": "the wrong ones are within the margin",
    "too_long": "prompt and judgment exceed the length limit",
    "flips": "the rejected rationale does not hold its score",
    "balance": "its score has pairs enough",
    "cap": "the limit on pairs is reached",
}

META_RUBRIC = Rubric(
    criterion="Is the feedback right in every point about what it judges, specific, and does its verdict follow from it?",
    levels=[
        "The feedback is wrong about what it judges",
        "Most points of the feedback are wrong or vague",
        "Some points are right, some are wrong or missing",
        "The feedback is right with one slip",
        "Every point is right, specific, and the verdict follows",
    ],
)


Fits = Callable[[Item, str], bool]  # do prompt and judgment stay within the length limit?
Flipping = Callable[[list[Pair]], Collection[str]]  # of these pairs, the ids of rejected judgments that flip (probe.py)


@dataclass(frozen=True)
class Curation:
    """The pairs, and one reason for every prompt that gave none: `prompts == len(kept) + sum(drops.values())`."""

    pairs: list[Pair]
    drops: dict[str, int]  # reason -> prompts
    n_prompts: int
    n_judgments: int
    dropped_judgments: dict[str, int]  # reason -> judgments of those prompts

    def waterfall(self) -> list[tuple[str, int]]:
        """From all judgments to the two sides of the pairs: what is left after each reason, in judgments."""
        left, steps = self.n_judgments, [("judgments", self.n_judgments)]
        for reason, n in self.dropped_judgments.items():
            left -= n
            steps.append((f"- {reason.replace('_', ' ')}", left))
        return [*steps, ("in pairs", 2 * len(self.pairs))]


def meta_examples(items: Sequence[Item], judgments: Sequence[Judgment]) -> list[Example]:
    """One example for each judgment with a verdict: the judge is asked how good that feedback is; the id is the judgment's."""
    by_id = {item.id: item for item in items}
    rows = []
    for judgment in judgments:
        if judgment.verdict is None or not judgment.text.strip():
            continue
        item = by_id[judgment.example_id]
        judged = f"A response to judge: {item.response}" if isinstance(item, Example) else _both(item)
        rows.append(
            Example(
                id=judgment.id,
                instruction=f"{item.instruction}\n\n{judged}\n\nThe rubric of the feedback: {item.rubric.text}",
                response=judgment.text,
                rubric=META_RUBRIC,
                reference_answer=item.reference_answer,
            )
        )
    return rows


def _both(item: Comparison) -> str:
    return f"Two responses to compare. A: {item.response_a}\n\nB: {item.response_b}"


def curate(
    examples: Sequence[Item],
    judgments: Sequence[Judgment],
    *,
    strategy: str = "correct_answer",
    margin: float = 2.0,
    pairs_per_prompt: int = 3,
    max_pairs: int = 0,
    balance: bool = False,
    iteration: int = 1,
    seed: int = 0,
    ratings: Mapping[str, float] | None = None,
    fits: Fits = lambda item, text: True,
    flipping: Flipping | None = None,
) -> Curation:
    """Preference pairs from N judgments of each example or comparison.

    `ratings` (judgment id -> rating) is what the meta-judge said. `fits` says whether prompt and judgment stay within the
    length limit: what does not is dropped, never truncated, for the score stands last. `balance` gives every target score
    as many pairs as the rarest has, and so every target preference. `max_pairs` 0 is no limit. `flipping` is asked once,
    with all pairs, before balance and limit; a prompt that keeps no pair is counted under `flips`.

    Four judgments of an example whose gold score is 4 with scores 4, 4, 3, 1 give, at margin 2, one pair: 4 over 1.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if strategy == "meta_judge" and ratings is None:
        raise ValueError("strategy meta_judge needs ratings: let the judge judge meta_examples first")
    by_example: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_example[judgment.example_id].append(judgment)
    drops: dict[str, str] = {}  # example id -> reason
    groups: list[list[Pair]] = []
    for example in examples:
        rng = random.Random(f"{seed} {iteration} {example.id}")
        own = sorted((j for j in by_example[example.id] if j.verdict is not None), key=lambda j: j.index)
        if strategy == "meta_judge":
            found = _by_rating(example, own, ratings or {}, margin, fits)
        else:
            found = _by_verdict(example, own, strategy, margin, rng, fits)
        if isinstance(found, str):
            drops[example.id] = found
            continue
        target, sides = found
        groups.append([_pair(example, c, r, target, strategy, iteration) for c, r in sides[:pairs_per_prompt]])
    groups.sort(key=lambda group: group[0].example_id)
    random.Random(f"{seed} {iteration}").shuffle(groups)
    if flipping is not None:
        groups = _steady(groups, flipping, drops)
    if balance:
        groups = _balanced(groups, drops)
    if max_pairs:
        groups = _capped(groups, max_pairs, drops)
    pairs = [pair for group in groups for pair in group]
    reasons = {reason: [name for name, why in drops.items() if why == reason] for reason in DROPS}
    prompts = {reason: len(names) for reason, names in reasons.items() if names}
    lost = {reason: sum(len(by_example[name]) for name in reasons[reason]) for reason in prompts}
    return Curation(pairs, prompts, len(examples), sum(len(by_example[e.id]) for e in examples), lost)


Sides = tuple[Verdict | None, list[tuple[Judgment, Judgment]]]


def _by_verdict(
    item: Item, own: list[Judgment], strategy: str, margin: float, rng: random.Random, fits: Fits
) -> Sides | str:
    """(target, the pairs that there are), or the reason why there are none."""
    if not own:
        return "no_score"
    if strategy == "majority_vote":
        target = _majority(item, own)
    elif item.gold is not None:
        target = item.gold
    else:
        kind, what = ("comparison", "preference") if isinstance(item, Comparison) else ("example", "score")
        raise ValueError(
            f"{kind} {item.id} has no gold {what}; strategy correct_answer needs one, majority_vote does not"
        )
    if target is None:
        return "no_majority"
    right = _distinct([j for j in own if j.verdict == target])
    wrong = [j for j in own if j.verdict != target]
    far = _distinct([j for j in wrong if distance(j.verdict, target) >= margin])
    if not right:
        return "all_wrong"
    if not wrong:
        return "all_right"
    if not far:
        return "margin"
    right, far = ([j for j in side if fits(item, j.text)] for side in (right, far))
    if not right or not far:
        return "too_long"
    rng.shuffle(right)
    rng.shuffle(far)
    return target, list(zip(right, far, strict=False))


def distance(verdict: Verdict, target: Verdict) -> float:
    """How far off a verdict is: `(4, 1) -> 3`; another preference is beyond every margin: `("tie", "A") -> inf`."""
    if isinstance(target, str):
        return 0.0 if verdict == target else math.inf
    return abs(verdict - target)


def _majority(item: Item, own: list[Judgment]) -> Verdict | None:
    """The mode; of equally frequent scores the nearest to the mean, of equally frequent preferences none."""
    if not isinstance(item, Comparison):
        return float(metrics.majority([[j.score for j in own]])[0])
    first, *others = Counter(j.preference for j in own).most_common(2)
    return None if others and others[0][1] == first[1] else first[0]


def _by_rating(item: Item, own: list[Judgment], ratings: Mapping[str, float], margin: float, fits: Fits) -> Sides | str:
    rated = sorted(_distinct([j for j in own if j.id in ratings]), key=lambda j: (-ratings[j.id], j.index))
    if not rated:
        return "no_score"
    enough = min(2, len(rated))
    rated = [j for j in rated if fits(item, j.text)]
    if len(rated) < enough:
        return "too_long"
    half = len(rated) // 2
    sides = list(
        zip(rated[:half], rated[::-1][:half], strict=True)
    )  # best with worst, second best with second worst, ...
    sides = [(best, worst) for best, worst in sides if ratings[best.id] - ratings[worst.id] >= max(margin, 1e-9)]
    return (None, sides) if sides else "margin"


def _distinct(judgments: list[Judgment]) -> list[Judgment]:
    """One judgment for each text: the same text chosen twice would be one pair, counted double."""
    return list({j.text: j for j in reversed(judgments)}.values())[::-1]


def _pair(
    item: Item, chosen: Judgment, rejected: Judgment, target: Verdict | None, strategy: str, iteration: int
) -> Pair:
    return Pair(
        id=f"{chosen.id}>{rejected.index}",
        example_id=item.id,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_score=chosen.verdict,
        rejected_score=rejected.verdict,
        target=target,
        margin=None if target is None or isinstance(target, str) else distance(rejected.verdict, target),
        strategy=strategy,
        iteration=iteration,
    )


def _steady(groups: list[list[Pair]], flipping: Flipping, drops: dict[str, str]) -> list[list[Pair]]:
    """Without the pairs whose rejected rationale ends in another verdict when only the verdict is drawn again."""
    left_out = flipping([pair for group in groups for pair in group])
    kept = []
    for group in groups:
        if steady := [pair for pair in group if pair.rejected_id not in left_out]:
            kept.append(steady)
        else:
            drops[group[0].example_id] = "flips"
    return kept


def _balanced(groups: list[list[Pair]], drops: dict[str, str]) -> list[list[Pair]]:
    """As many pairs for every target as the rarest of its kind has (Self-Taught Evaluators, arXiv 2408.02666)."""
    counts = Counter(pair.target for group in groups for pair in group)
    room = {target: min(n for other, n in counts.items() if type(other) is type(target)) for target in counts}
    return _fill(groups, lambda pair: pair.target, room, "balance", drops)


def _capped(groups: list[list[Pair]], max_pairs: int, drops: dict[str, str]) -> list[list[Pair]]:
    return _fill(groups, lambda pair: None, {None: max_pairs}, "cap", drops)


def _fill(groups: list[list[Pair]], kind: Callable, room: dict, reason: str, drops: dict[str, str]) -> list[list[Pair]]:
    kept = []
    for group in groups:
        n = min(len(group), room[kind(group[0])])
        room[kind(group[0])] -= n
        if n:
            kept.append(group[:n])
        else:
            drops[group[0].example_id] = reason
    return kept


def provenance(pairs: Sequence[Pair]) -> dict[str, float]:
    """What the pairs are made of: their number, prompts, mean margin, and how long both sides are in words."""
    if not pairs:
        return {"pairs": 0, "prompts": 0}
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.example_id for pair in pairs}),
        "mean_margin": sum(margins) / len(margins) if margins else math.nan,
        "chosen_words": sum(len(pair.chosen.split()) for pair in pairs) / len(pairs),
        "rejected_words": sum(len(pair.rejected.split()) for pair in pairs) / len(pairs),
    }
