"""What curation asks a judge about judgments that it has sampled, and how the answers are read.

Each function that begins with `meta_` or `to_` makes items for `sample.judgments`: a judge rates or compares judgments
(arXiv 2407.19594), judges again with a hint at the verdict, or deduces the response from a judgment."""

import itertools
import random
from collections.abc import Mapping, Sequence

from srlib import prompts
from srlib.curate import distance
from srlib.schema import Comparison, Example, Item, Judgment, Pair, Rubric, SrlibError, Verdict

META_RUBRIC = Rubric(
    criterion="Is the feedback right in every point about what it judges, specific, and does its verdict follow from it?",
    levels=[
        "The feedback is wrong about what it judges", "Most points of the feedback are wrong or vague",
        "Some points are right, some are wrong or missing", "The feedback is right with one slip",
        "Every point is right, specific, and the verdict follows",
    ],
)  # fmt: skip
COMPARED = 4  # judgments of one verdict that are compared, in both orders: 12 comparisons, and 2 with another verdict


def meta_examples(items: Sequence[Item], judgments: Sequence[Judgment]) -> list[Example]:
    """An example for each judgment with a verdict, in which the judge scores this feedback; it has the judgment's id."""
    by_id = {item.id: item for item in items}
    return [
        Example(id=j.id, instruction=prompts.request(by_id[j.example_id]), response=j.text, rubric=META_RUBRIC)
        for j in judgments
        if j.verdict is not None
    ]


def meta_comparisons(items: Sequence[Item], judgments: Sequence[Judgment]) -> list[Comparison]:
    """Both orders of any two of at most COMPARED judgments with a prompt's most frequent verdict, for the judge to compare, as
    `<id of A>><index of B>`. The first also meets a judgment with another verdict, for `higher_preferred`."""
    distinct: dict[str, dict[str, Judgment]] = {item.id: {} for item in items}
    for j in sorted(judgments, key=lambda j: j.index):
        if j.verdict is not None and j.example_id in distinct:
            distinct[j.example_id].setdefault(j.text, j)
    rows = []
    for item in items:
        of_verdict: dict[Verdict, list[Judgment]] = {}
        for j in distinct[item.id].values():
            of_verdict.setdefault(j.verdict, []).append(j)
        equal, *others = sorted(of_verdict.values(), key=len, reverse=True) or [[]]
        matches = [*itertools.permutations(equal[:COMPARED], 2)]
        matches += itertools.permutations([equal[0], others[0][0]], 2) if others else []
        asked = dict(instruction=prompts.request(item), rubric=META_RUBRIC, preference=None)
        rows += [Comparison(id=f"{a.id}>{b.index}", response_a=a.text, response_b=b.text, **asked) for a, b in matches]
    return rows


def higher_preferred(judgments: Sequence[Judgment], preferences: Mapping[str, Verdict | None]) -> list[bool]:
    """Whether the judge preferred the higher score, for each meta-comparison of two different scores that is no tie."""
    scores, outcomes = {j.id: j.score for j in judgments}, []
    for name, preferred in preferences.items():
        a, _, index = name.rpartition(">")
        first, second = scores.get(a), scores.get(f"{a.rpartition('#')[0]}#{index}")
        if preferred in ("A", "B") and None not in (first, second) and first != second:
            outcomes.append((first > second) == (preferred == "A"))
    return outcomes


def to_hint(items: Sequence[Item], drawn: Sequence[Judgment], hints: str, margin: float, seed: int = 0) -> list[Item]:
    """Items whose gold verdict is the one to hint at: the right one in `<id>~right`, and in `<id>~wrong` a random one that is at
    least `margin` off, if there is one. `rescue`: items whose judgments with a verdict are all right, or none is; `all`, `none`:
    of all items, of none (hint-driven sampling, arXiv 2410.03742)."""
    gold = {item.id: item.gold for item in items if hints != "none"}
    if None in gold.values():
        raise SrlibError("hints name the right verdict, and some items have no gold one; set hints=none")
    seen = {(j.example_id, j.verdict == gold.get(j.example_id)) for j in drawn if j.verdict is not None}
    asked = []
    for item in items if gold else ():
        if hints == "rescue" and {(item.id, True), (item.id, False)} <= seen:
            continue
        far = [v for v in item.verdicts if v != item.gold and distance(v, item.gold) >= margin]
        wrong = random.Random(f"{seed} {item.id}").sample(far, min(1, len(far)))
        for name, verdict in zip(("right", "wrong"), [item.gold, *wrong], strict=False):
            field = "preference" if isinstance(item, Comparison) else "score"
            asked.append(item.model_copy(update={"id": f"{item.id}~{name}", field: verdict}))
    return asked


def from_hints(asked: Sequence[Item], drawn: Sequence[Judgment], n: int) -> list[Judgment]:
    """Judgments drawn with a hint that end in its verdict, as judgments n (right) and n + 1 (wrong) of their plain items."""
    hinted = {item.id: item.gold for item in asked}
    kept = [(j, *j.example_id.rsplit("~", 1)) for j in drawn if j.verdict == hinted[j.example_id]]
    return [j.model_copy(update={"example_id": name, "index": n + (kind == "wrong")}) for j, name, kind in kept]


def to_deduce(items: Mapping[str, Item], pairs: Sequence[Pair]) -> list[Example]:
    """For each pair of an example, under the pair's id, the example with the chosen judgment as its rationale and score, for the
    template `-deduction`. Left out if that prompt quotes the whole response: then there is nothing to deduce."""
    asked = []
    for pair in (pair for pair in pairs if isinstance(items[pair.example_id], Example)):
        judged = {"rationale": prompts.parse(pair.chosen, items[pair.example_id]).rationale, "score": pair.chosen_score}
        asked.append(items[pair.example_id].model_copy(update={"id": pair.id, **judged}))
    return [e for e in asked if e.response not in prompts.request(e, "brief-deduction")]
