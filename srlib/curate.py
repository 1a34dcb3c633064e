"""Judgments -> preference pairs, with every prompt that gives none counted under a reason (paper section 3).

A rule looks at one prompt and its judgments and returns (chosen, rejected) pairs, or the reason why there are none:

    rule            chosen                  rejected                        needs labels
    correct_answer  score == gold           |score - gold| >= margin        yes
    majority_vote   score == mode of N      |score - mode| >= margin        no
    meta_judge      highest rating          lowest, at least margin lower   no

Between two preferences (A, B, tie) there is no margin: any other one is rejected. To try another rule, write a function with
the same arguments in notebook 04 or in a file, and name it: `strategy: my_rule` or `strategy: rules.py:my_rule`.

`curate` does the rest for any rule: judgments that cannot be read or are too long are left out, a text is used once, pairs
are limited, balanced and shuffled by a seed of the example's id, so that curating a part of the prompts gives the same pairs.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib.schema import Comparison, Example, Item, Judgment, Pair, Rubric, SrlibError, Verdict

Pairs = list[tuple[Judgment, Judgment]]  # (chosen, rejected)
Rule = Callable[
    [Item, list[Judgment], float], Pairs | str
]  # (item, judgments with a verdict, margin) -> pairs or a reason

REASONS = {
    "no_score": "no judgment has a score",
    "no_majority": "two preferences have the most votes",
    "all_wrong": "no judgment is right",
    "all_right": "every judgment is right",
    "margin": "the wrong ones are within the margin",
    "too_long": "prompt and judgment exceed the length limit",
    "no_pair": "the rule gives no pair",
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


class CurateError(SrlibError, ValueError):
    """A rule that does not exist, or that cannot work on these items."""


# ---------------------------------------------------------------- rules


def correct_answer(item: Item, judgments: list[Judgment], margin: float) -> Pairs | str:
    """Right judgments over wrong ones at least `margin` off: scores 4, 4, 3, 1 with gold 4 and margin 2 give one pair, 4 over 1."""
    if item.gold is None:
        raise CurateError(
            f"{item.id} has no gold score or preference; rule correct_answer needs one, majority_vote does not"
        )
    return _against(item.gold, judgments, margin)


def majority_vote(item: Item, judgments: list[Judgment], margin: float) -> Pairs | str:
    """The same against the most frequent verdict: of equally frequent scores the nearest to the mean, of preferences none."""
    mode = majority([j.verdict for j in judgments])
    return "no_majority" if mode is None else _against(mode, judgments, margin)


def meta_judge(
    item: Item, judgments: list[Judgment], margin: float, ratings: Mapping[str, float] | None = None
) -> Pairs | str:
    """The best rated judgment over the worst, the second best over the second worst, ... while they are `margin` apart.

    `ratings` maps a judgment's id to the judge's rating of it (`meta_examples`).
    """
    if ratings is None:
        raise CurateError("rule meta_judge needs ratings: let the judge judge `meta_examples` first")
    rated = sorted((j for j in judgments if j.id in ratings), key=lambda j: -ratings[j.id])
    if not rated:
        return "no_score"
    pairs = zip(rated[: len(rated) // 2], reversed(rated), strict=False)
    return [(c, r) for c, r in pairs if ratings[c.id] - ratings[r.id] >= max(margin, 1e-9)] or "margin"


RULES: dict[str, Rule] = {"correct_answer": correct_answer, "majority_vote": majority_vote, "meta_judge": meta_judge}


def rule_named(strategy: str, namespace: Mapping[str, Any], root: Path) -> Rule:
    """A rule of this module, a function of the notebook (`namespace` is its globals()), or `FILE.py:NAME` below `root`."""
    path, _, name = strategy.rpartition(":")
    if path:
        spec = importlib.util.spec_from_file_location("curation_rule", root / path)
        if spec is None or spec.loader is None or not (root / path).is_file():
            raise CurateError(f"strategy {strategy}: there is no Python file {path}; write FILE.py:NAME")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        namespace = vars(module)
    elif strategy in RULES:
        return RULES[strategy]
    rule = namespace.get(name)
    if not callable(rule):
        raise CurateError(
            f"strategy {strategy}: there is no function {name}; the built-in rules are {', '.join(RULES)}"
        )
    return rule


def _against(target: Verdict, judgments: list[Judgment], margin: float) -> Pairs | str:
    right = [j for j in judgments if j.verdict == target]
    far = [j for j in judgments if j.verdict != target and distance(j.verdict, target) >= margin]
    if not right:
        return "all_wrong"
    if len(right) == len(judgments):
        return "all_right"
    return list(zip(right, far, strict=False)) or "margin"


def distance(verdict: Verdict, target: Verdict) -> float:
    """How far off a verdict is: `(4, 1) -> 3`; another preference is beyond every margin: `("tie", "A") -> inf`."""
    if isinstance(target, str):
        return 0.0 if verdict == target else math.inf
    return abs(verdict - target)


def majority(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The mode: of equally frequent scores the nearest to the mean (the lower of two), of preferences None."""
    votes = Counter(verdicts)
    most = [verdict for verdict, n in votes.items() if n == max(votes.values())]
    if isinstance(most[0], str):
        return most[0] if len(most) == 1 else None
    mean = sum(verdicts) / len(verdicts)
    return min(most, key=lambda score: (abs(score - mean), score))


def meta_examples(items: Sequence[Item], judgments: Sequence[Judgment]) -> list[Example]:
    """One example for each judgment with a verdict, which asks the judge how good that feedback is; its id is the judgment's."""
    by_id, rows = {item.id: item for item in items}, []
    for judgment in judgments:
        if judgment.verdict is None or not judgment.text.strip():
            continue
        item = by_id[judgment.example_id]
        if isinstance(item, Comparison):
            judged = f"Two responses to compare. A: {item.response_a}\n\nB: {item.response_b}"
        else:
            judged = f"A response to judge: {item.response}"
        instruction = f"{item.instruction}\n\n{judged}\n\nThe rubric of the feedback: {item.rubric.text}"
        rows.append(
            Example(
                id=judgment.id, instruction=instruction, response=judgment.text, rubric=META_RUBRIC,
                reference_answer=item.reference_answer,
            )
        )  # fmt: skip
    return rows


# ---------------------------------------------------------------- the counted version


@dataclass(frozen=True)
class Curation:
    """The pairs, and one reason for every prompt without any: `n_prompts == prompts with pairs + sum(drops.values())`."""

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


def curate(
    items: Sequence[Item],
    judgments: Sequence[Judgment],
    rule: Rule = correct_answer,
    *,
    margin: float = 2.0,
    pairs_per_prompt: int = 3,
    max_pairs: int = 0,
    balance: bool = False,
    iteration: int = 1,
    seed: int = 0,
    fits: Callable[[Item, str], bool] = lambda item, text: True,
    flipping: Callable[[list[Pair]], Collection[str]] | None = None,
) -> Curation:
    """Preference pairs from N judgments of each example or comparison.

    `fits(item, text)` says whether prompt and judgment stay within the length limit: a judgment that does not is dropped,
    never truncated. `flipping(pairs)` names rejected judgments whose rationale does not hold its score; it is called once.
    `balance` gives every score of the chosen side as many pairs as the rarest has. `max_pairs` 0 is no limit.
    """
    by_item: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_item[judgment.example_id].append(judgment)
    drops: dict[str, str] = {}  # item id -> reason
    groups: list[list[Pair]] = []
    for item in items:
        readable = {j.text: j for j in sorted(by_item[item.id], key=lambda j: -j.index) if j.verdict is not None}
        distinct = sorted(
            readable.values(), key=lambda j: j.index
        )  # the same text twice would be one pair, counted double
        random.Random(f"{seed} {iteration} {item.id}").shuffle(distinct)
        pairs = _apply(rule, item, distinct, margin, fits)
        if isinstance(pairs, str):
            drops[item.id] = pairs
        else:
            name = getattr(rule, "__name__", "") or getattr(getattr(rule, "func", None), "__name__", "rule")
            groups.append([_pair(item, c, r, name, iteration) for c, r in pairs[:pairs_per_prompt]])
    groups.sort(key=lambda group: group[0].example_id)
    random.Random(f"{seed} {iteration}").shuffle(groups)
    if flipping is not None:
        left_out = flipping([pair for group in groups for pair in group])
        groups = _keep(groups, "flips", drops, lambda group: [p for p in group if p.rejected_id not in left_out])
    if balance:
        counts = Counter(pair.chosen_score for group in groups for pair in group)
        least = {type(score): min(n for s, n in counts.items() if type(s) is type(score)) for score in counts}
        room = {score: least[type(score)] for score in counts}
        groups = _keep(groups, "balance", drops, lambda group: _take(group, room, group[0].chosen_score))
    if max_pairs:
        limit = {None: max_pairs}
        groups = _keep(groups, "cap", drops, lambda group: _take(group, limit, None))
    by_reason = {
        reason: [name for name, why in drops.items() if why == reason] for reason in dict.fromkeys(drops.values())
    }
    order = [*REASONS, *(reason for reason in by_reason if reason not in REASONS)]
    return Curation(
        pairs=[pair for group in groups for pair in group],
        drops={reason: len(by_reason[reason]) for reason in order if reason in by_reason},
        n_prompts=len(items),
        n_judgments=sum(len(by_item[item.id]) for item in items),
        dropped_judgments={r: sum(len(by_item[name]) for name in by_reason[r]) for r in order if r in by_reason},
    )


def _apply(rule: Rule, item: Item, judgments: list[Judgment], margin: float, fits: Callable) -> Pairs | str:
    """The rule on the judgments that fit; if only the long ones would have given a pair, the reason is `too_long`."""
    if not judgments:
        return "no_score"
    short = [j for j in judgments if fits(item, j.text)]
    pairs = (rule(item, short, margin) or "no_pair") if short else "too_long"
    if isinstance(pairs, str) and len(short) < len(judgments) and not isinstance(rule(item, judgments, margin), str):
        return "too_long"
    return pairs


def _keep(groups: list[list[Pair]], reason: str, drops: dict[str, str], select: Callable) -> list[list[Pair]]:
    """The selected pairs of each prompt; one that keeps none is counted under the reason."""
    kept = []
    for group in groups:
        if selected := select(group):
            kept.append(selected)
        else:
            drops[group[0].example_id] = reason
    return kept


def _take(group: list[Pair], room: dict[Any, int], key: Any) -> list[Pair]:
    taken = group[: room[key]]
    room[key] -= len(taken)
    return taken


def _pair(item: Item, chosen: Judgment, rejected: Judgment, strategy: str, iteration: int) -> Pair:
    comparable = not isinstance(chosen.verdict, str)
    return Pair(
        id=f"{chosen.id}>{rejected.index}", example_id=item.id, chosen=chosen.text, rejected=rejected.text,
        chosen_id=chosen.id, rejected_id=rejected.id, chosen_score=chosen.verdict, rejected_score=rejected.verdict,
        gold=item.gold, margin=distance(rejected.verdict, chosen.verdict) if comparable else None,
        strategy=strategy, iteration=iteration,
    )  # fmt: skip


def provenance(pairs: Sequence[Pair]) -> dict[str, float]:
    """What the pairs consist of: their number, prompts, mean margin, and the mean length of both sides in words."""
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
