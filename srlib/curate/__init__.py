"""Judgments -> preference pairs; every prompt without a pair is counted under a reason (arXiv 2410.05495).

A rule takes one prompt and its judgments, and returns (chosen, rejected) pairs or the reason why there are none:

    rule            chosen                  rejected                        needs gold scores
    correct_answer  score == gold           |score - gold| >= margin        yes
    majority_vote   score == mode of N      |score - mode| >= margin        no
    graded          nearer to gold          farther by margin, unreadable   yes
    meta_judge      highest rating          lowest, at least margin lower   no
    meta_equal      best of equal scores    worst of them                   no

Preferences (A, B, tie) have no margin: any other one is rejected. Another rule is a function with the same arguments, in
notebook 04 or in a file: `strategy: my_rule`, `strategy: rules.py:my_rule`. `curate` does the rest for every rule. A rule
sees judgments with a verdict only, unless it says `my_rule.reads_unreadable = True`, and one of those with the same text,
unless it says `my_rule.counts_repeats = True`, as a vote has to. The ratings and preferences that the last two rules need
come from a judge: `followups` has what it is asked."""

import difflib
import itertools
import math
import random
import re
import runpy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, multimode

import numpy as np

from srlib import prompts
from srlib.schema import Example, Item, Judgment, Pair, SrlibError, Verdict
from srlib.stats import agreement, comparison

Pairs = list[tuple[Judgment, Judgment]]  # (chosen, rejected)
Rule = Callable[[Item, list[Judgment], float], Pairs | str]  # item, judgments, margin -> pairs or a reason
REASONS = {
    "no_score": "no judgment has a score", "no_majority": "two preferences have the most votes",
    "all_wrong": "no judgment is right", "all_right": "every judgment is right",
    "margin": "the wrong ones are within the margin", "no_equal": "no two judgments have the same score",
    "no_comparison": "no comparison of equal judgments could be read",
    "undecided": "the comparisons prefer none of the equal judgments",
    "too_long": "prompt and judgment exceed the length limit", "no_pair": "the rule gives no pair",
    "flips": "the rejected rationale does not hold its score", "balance": "its score already has enough pairs",
    "cap": "the limit on pairs is reached", "mix": "another kind of pair has run out",
}  # fmt: skip
ALIKE = 0.9  # two responses with this share of words in common make no pair


def correct_answer(item: Item, judgments: list[Judgment], margin: float) -> Pairs | str:
    """Right judgments over wrong ones: scores 4, 4, 3, 1 with gold 4 and margin 2 give one pair, 4 over 1."""
    if item.gold is None:
        raise SrlibError(f"{item.id} has no gold score or preference, which correct_answer needs; use majority_vote")
    return _against(item.gold, judgments, margin)


def majority_vote(item: Item, judgments: list[Judgment], margin: float) -> Pairs | str:
    """Like correct_answer, with the most frequent verdict in place of the gold one: all judgments vote, each text is paired once."""
    verdicts, distinct = [j.verdict for j in judgments], list({j.text: j for j in judgments}.values())
    if not isinstance(verdicts[0], str):
        return _against(agreement.majority(verdicts), distinct, margin)
    modes = multimode(verdicts)
    return _against(modes[0], distinct, margin) if len(modes) == 1 else "no_majority"


def graded(item: Item, judgments: list[Judgment], margin: float) -> Pairs | str:
    """The nearest to gold over the farthest, the second nearest over the second farthest, ...; unreadable ones are last, beyond
    every margin: distances 0, 1, 3 and one unreadable give (0, unreadable), (1, 3) (ranks as in arXiv 2404.07017)."""
    if item.gold is None:
        raise SrlibError(f"{item.id} has no gold score or preference, which graded needs; use majority_vote")
    off = {j.id: math.inf if j.verdict is None else distance(j.verdict, item.gold) for j in judgments}
    ranked = sorted(judgments, key=lambda j: (j.verdict is None, off[j.id]))
    if ranked[0].verdict is None:
        return "no_score"
    pairs = zip(ranked, reversed(ranked), strict=True)  # the second half has negative differences
    kept = [(c, r) for c, r in pairs if round(off[r.id] - off[c.id], 6) >= max(margin, 1e-9)]
    return kept or ("all_wrong" if 0 not in off.values() else "margin" if any(off.values()) else "all_right")


def meta_judge(item: Item, judgments: list[Judgment], margin: float, ratings: dict | None = None) -> Pairs | str:
    """The best rated judgment over the worst, the second best over the second worst, ...; `ratings`: judgment id -> score."""
    if ratings is None:
        raise SrlibError("rule meta_judge needs ratings: let the judge score `meta_examples` first")
    rated = sorted((j for j in judgments if j.id in ratings), key=lambda j: -ratings[j.id])
    if not rated:
        return "no_score"
    pairs = zip(rated, reversed(rated), strict=True)  # the second half has negative differences
    return [(c, r) for c, r in pairs if ratings[c.id] - ratings[r.id] >= max(margin, 1e-9)] or "margin"


def meta_equal(item: Item, judgments: list[Judgment], margin: float, preferences: dict | None = None) -> Pairs | str:
    """The best over the worst of judgments with one score, by Bradley-Terry; `preferences`: id of a meta-comparison -> A, B, tie
    or None. No score is preferred for being high, which arXiv 2407.19594 saw happen; `margin` does not count."""
    if preferences is None:
        raise SrlibError("rule meta_equal needs preferences: let the judge compare `meta_comparisons` first")
    equal = [(a, b) for a, b in itertools.permutations(judgments, 2) if a.verdict == b.verdict]
    games = [(a, b, p) for a, b in equal if (p := preferences.get(f"{a.id}>{b.index}"))]
    if not games:
        return "no_comparison" if equal else "no_equal"
    players = {j.id: j for a, b, _ in games for j in (a, b) if j.verdict == games[0][0].verdict}
    place, wins = {name: i for i, name in enumerate(players)}, np.zeros((len(players), len(players)))
    for a, b, preferred in games:
        if a.id in place:
            won = {"A": 1.0, "tie": 0.5, "B": 0.0}[preferred]
            wins[place[a.id], place[b.id]] += won
            wins[place[b.id], place[a.id]] += 1 - won
    ranked = sorted(zip(comparison.bradley_terry(wins), players.values(), strict=True), key=lambda pair: pair[0])
    return [(ranked[-1][1], ranked[0][1])] if ranked[-1][0] - ranked[0][0] > 1e-6 else "undecided"


graded.reads_unreadable = True
majority_vote.counts_repeats = True
RULES: dict[str, Rule] = {f.__name__: f for f in (correct_answer, majority_vote, graded, meta_judge, meta_equal)}


def rule_named(strategy: str, namespace: Mapping, root: Path) -> Rule:
    """A function of the notebook (`namespace` is its globals()), a rule of this module, or FILE.py:NAME below `root`."""
    file, _, name = strategy.rpartition(":")
    if file and not (root / file).is_file():
        raise SrlibError(f"strategy {strategy}: there is no file {root / file}; write FILE.py:NAME")
    rule = (runpy.run_path(str(root / file)) if file else {**RULES, **namespace}).get(name)
    if not callable(rule):
        raise SrlibError(f"strategy {strategy}: there is no function {name}; built-in rules: {', '.join(RULES)}")
    return rule


def _against(right: Verdict, judgments: list[Judgment], margin: float) -> Pairs | str:
    chosen = [j for j in judgments if j.verdict == right]
    rejected = [j for j in judgments if j.verdict != right and distance(j.verdict, right) >= margin]
    if len(chosen) in (0, len(judgments)):
        return "all_right" if chosen else "all_wrong"
    return list(zip(chosen, rejected, strict=False)) or "margin"


def distance(verdict: Verdict, right: Verdict) -> float:
    """How far off a verdict is, `(4, 1) -> 3`, `(0.3, 0.2) -> 0.1`; a wrong preference is beyond every margin: infinity."""
    return (0.0 if verdict == right else math.inf) if isinstance(right, str) else round(abs(verdict - right), 6)


@dataclass(frozen=True)
class Curation:
    """The pairs, and a reason for each prompt without one: every prompt is in `pairs` or in `reasons`."""

    pairs: list[Pair]
    reasons: dict[str, str]  # prompt id -> why it has no pair
    n_judgments: dict[str, int]  # prompt id -> its judgments

    @property
    def drops(self) -> dict[str, int]:
        """Reason -> prompts, in the order of REASONS."""
        counts = Counter(self.reasons.values())
        return {reason: counts[reason] for reason in {**REASONS, **counts} if reason in counts}

    def waterfall(self) -> list[tuple[str, int]]:
        """Judgments left after each reason, from all of them to the two sides of the pairs."""
        steps = [("judgments", left := sum(self.n_judgments.values()))]
        for reason in self.drops:
            left -= sum(self.n_judgments[name] for name, why in self.reasons.items() if why == reason)
            steps.append((f"− {REASONS.get(reason, reason)}", left))
        return [*steps, ("in pairs", 2 * len(self.pairs))]


def curate(
    items: Sequence[Item],
    judgments: Sequence[Judgment],
    rule: Rule = correct_answer,
    *,
    margin: float = 2.0,
    pairs_per_prompt: int = 1,
    max_pairs: int = 0,
    balance: bool = False,
    iteration: int = 1,
    seed: int = 0,
    fits: Callable[[Item, str], bool] = lambda item, text: True,
    flipping: Callable[[list[Pair]], Collection[str]] | None = None,
    hinted: Collection[str] = (),
) -> Curation:
    """Preference pairs from N judgments of each item; a repeated text counts once. Those without a verdict are left
    out, or, if the rule reads them, those without text. `fits(item, text)`: prompt and judgment stay within the length
    limit; other judgments are dropped, never truncated. `flipping(pairs)`: ids of rejected judgments whose rationale
    does not hold its score; called once, with all pairs. `hinted`: ids of judgments drawn with a hint; the strategy of
    a pair with one is `hinted`. `balance`: as many pairs for every chosen score as the rarest has, within `max_pairs` (0: no
    limit). The draw of a prompt depends on its id, `seed` and `iteration` only: a subset of prompts gives the same pairs."""
    by_item: dict[str, list[Judgment]] = {item.id: [] for item in items}
    for judgment in sorted(judgments, key=lambda j: -j.index):
        by_item.get(judgment.example_id, []).append(judgment)
    function = getattr(rule, "func", rule)  # a functools.partial has `func`
    strategy = getattr(function, "__name__", "rule")
    reads_all, counts_repeats = (getattr(function, name, False) for name in ("reads_unreadable", "counts_repeats"))
    order = sorted(items, key=lambda item: item.id)
    random.Random(f"{seed} {iteration}").shuffle(order)
    pairs, reasons = [], {}
    for item in order:
        usable = [j for j in by_item[item.id] if j.verdict is not None or (reads_all and j.text)]
        seen = usable if counts_repeats else list({j.text: j for j in usable}.values())
        random.Random(f"{seed} {iteration} {item.id}").shuffle(seen)
        result = _apply(rule, item, seen, margin, fits)
        if isinstance(result, str):
            reasons[item.id] = result
        else:
            for c, r in result[:pairs_per_prompt]:
                name = "hinted" if c.id in hinted or r.id in hinted else strategy
                row = dict(id=f"{c.id}>{r.index}", example_id=item.id, chosen=c.text, chosen_id=c.id, rejected=r.text)
                row |= dict(rejected_id=r.id, gold=item.gold, strategy=name, iteration=iteration)
                margin_of = None if None in (c.score, r.score) else abs(r.score - c.score)
                pairs.append(Pair(**row, chosen_score=c.verdict, rejected_score=r.verdict, margin=margin_of))
    flips = flipping(pairs) if flipping is not None else ()
    held = [pair for pair in pairs if pair.rejected_id not in flips]
    even = _balanced(held, max_pairs) if balance else held
    kept = even[: max_pairs or None]
    for reason, before, after in (("flips", pairs, held), ("balance", held, even), ("cap", even, kept)):
        reasons |= dict.fromkeys({pair.example_id for pair in before} - {pair.example_id for pair in after}, reason)
    return Curation(kept, reasons, {name: len(own) for name, own in by_item.items()})


def kinds(mix: Sequence[str], n: int) -> dict[str, int]:
    """How many of n pairs are of each kind, by largest remainder; SrlibError if `mix` cannot be read.

    >>> kinds(["cot:0.7", "verdict:0.15", "deduction:0.15"], 90)
    {'cot': 63, 'verdict': 14, 'deduction': 13}"""
    form = re.compile(rf"({'|'.join(prompts.FORMS)}):(\d{{0,6}}\.?\d{{1,6}})")
    entries = [form.fullmatch(entry) for entry in mix or ["cot:1"]]
    weights = {entry[1]: float(entry[2]) for entry in entries if entry}
    if len(weights) < len(entries) or not (total := sum(weights.values())):
        hint = "write each of cot, verdict and deduction at most once, as in cot:0.7,verdict:0.15,deduction:0.15"
        raise SrlibError(f"pair_mix {','.join(mix)} is not KIND:WEIGHT with a weight above 0; {hint}")
    exact = {kind: n * weight / total for kind, weight in weights.items()}
    counts = {kind: math.floor(share) for kind, share in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[: n - sum(counts.values())]:
        counts[kind] += 1
    return counts


def mixed(curated: Curation, mix: Sequence[str], asked: Sequence[Example], deduced: Mapping[str, str]) -> Curation:
    """The pairs as pairs of the kinds in `mix` (arXiv 2409.14664): as many as there can be while the weights hold to the pair.
    `deduced` maps ids of `asked`, the value of `to_deduce`, to a weaker model's response, which has to differ from the judged one."""
    about = {e.id: e for e in asked if e.id in deduced and similarity(e.response, deduced[e.id]) <= ALIKE}
    differ = [p.id for p in curated.pairs if p.rejected_score not in (None, p.chosen_score)]
    first = sorted(about, key={*differ}.__contains__)  # those that can be no pair of verdicts
    able = {"deduction": first, "verdict": differ, "cot": [p.id for p in curated.pairs]}
    for n in range(len(curated.pairs), -1, -1):
        counts, kind_of = kinds(mix, n), {}
        if all(counts.get(kind, 0) <= len(names) for kind, names in able.items()):
            for kind, names in able.items():
                free = [name for name in names if name not in kind_of]
                kind_of |= dict.fromkeys(free[: counts.get(kind, 0)], kind)
            if len(kind_of) == n:
                break
    kept = []
    for pair in (pair for pair in curated.pairs if pair.id in kind_of):
        new = {"kind": kind_of[pair.id]}
        if new["kind"] == "verdict":
            new["chosen"] = prompts.completion(None, pair.chosen_score)
            new["rejected"] = prompts.completion(None, pair.rejected_score)
        elif new["kind"] == "deduction":
            e = about[pair.id]
            new |= dict(chosen=e.response.strip(), rejected=deduced[pair.id], rationale=e.rationale)
        kept.append(pair.model_copy(update=new))
    left = {pair.example_id for pair in curated.pairs} - {pair.example_id for pair in kept}
    return replace(curated, pairs=kept, reasons=curated.reasons | dict.fromkeys(left, "mix"))


def similarity(a: str, b: str) -> float:
    """Share of the words of two texts that are in common and in the same order: `("the day is set", "the day") -> 0.67`."""
    return difflib.SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()


def _apply(rule: Rule, item: Item, judgments: list[Judgment], margin: float, fits: Callable) -> Pairs | str:
    if not judgments:
        return "no_score"
    short = [j for j in judgments if fits(item, j.text)]  # if only the long ones give pairs, the reason is `too_long`
    pairs = (rule(item, short, margin) or "no_pair") if short else "too_long"
    if isinstance(pairs, str):
        others = rule(item, judgments, margin) if len(short) < len(judgments) else ""
        return pairs if isinstance(others, str) or not others else "too_long"
    used = [j.id for pair in pairs for j in pair]
    if len(used) > len({j.id for j in short} & set(used)):
        raise SrlibError(f"prompt {item.id}: the rule must pair judgments of this prompt, and each of them only once")
    return pairs


def _balanced(pairs: list[Pair], limit: int) -> list[Pair]:
    """The first pairs of each chosen score, as many as the rarest score (or preference) has, all within `limit` (0: none)."""
    counts, taken, kept = Counter(pair.chosen_score for pair in pairs), Counter(), []
    each = max(1, limit // len(counts)) if limit and pairs else len(pairs)
    for pair in pairs:
        taken[pair.chosen_score] += 1
        if taken[pair.chosen_score] <= min(each, *(n for s, n in counts.items() if type(s) is type(pair.chosen_score))):
            kept.append(pair)
    return kept


def provenance(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Number of pairs and prompts, mean margin, and mean words of both sides; None if there is nothing to average."""
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    facts = {"pairs": len(pairs), "prompts": len({pair.example_id for pair in pairs})}
    facts["mean_margin"] = fmean(margins) if margins else None
    for side in ("chosen", "rejected"):
        facts[f"{side}_words"] = fmean(len(getattr(pair, side).split()) for pair in pairs) if pairs else None
    return facts
