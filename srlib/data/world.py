"""The built-in judging world: an endless Feedback Collection whose every rationale can be checked by program.

Somebody asks for a short text (an event notice, a product listing, a trip plan): four points in a given order, in a
given layout. A response fulfils some of it. A rubric names one criterion, or two, and thereby four checks; the judge
writes a verdict on each and concludes with a score:

    instruction  Write a notice for the picnic. Cover the day, the host, the price and the meal in this order. Use a
                 title, bullets and a signature, and write at most seven lines.
    response     Title: Picnic
                 - The day is Friday
                 - The host is Anna
                 Signed, Ben
    reference    The day is Monday. The host is Anna. The price is six. The meal is soup.
    rubric       [Accuracy: do the day, the host, the price and the meal agree with the reference?] Score 1: ...
    careful      The day should be Monday and the response says Friday: fail. ... So one of four pass. [RESULT] 2
    hasty        The day: fail. The host: pass. The price: fail. The meal: fail. So one of four pass. [RESULT] 2

Both annotators are right in every verdict and every score. They differ in care, as people do: a share `care` of the gold
rationales writes the evidence before each verdict, the rest writes the verdict only. That is the condition under which
self-rationalization gains here, see the README; `care=1.0` is the control.

Three in ten rubrics have a key check (the score descriptions say: without it, the lowest score), so the judge has to read
criterion and descriptions. The `ood` split has unseen topics, instruction templates and combinations of criteria; the
`pairwise` split has two responses to one instruction. Generation is deterministic in (split, seed):

>>> example = examples("test", seed=0, n=1)[0]
>>> example.score in example.rubric.scale, check_rationale(example, example.rationale).verdicts
(True, 1.0)
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from typing import NamedTuple

from srlib.data import lexicon
from srlib.schema import Comparison, Example, Rubric


@dataclass(frozen=True)
class Task:
    """What was asked for: four points with their true values, in order, and a limit on the lines."""

    genre: str
    topic: str
    points: tuple[str, ...]
    truth: dict[str, str]
    limit: int


@dataclass(frozen=True)
class Response:
    """What was answered: the text, and what is really in it."""

    text: str
    stated: tuple[tuple[str, str], ...]  # (attribute, value) in order of appearance
    n_lines: int
    has: dict[str, bool]  # every item of lexicon.TONE and lexicon.FORMAT but the limit


@dataclass(frozen=True)
class Check:
    """One demand of a rubric and the truth about it; `found` and `wanted` are the evidence, where there is any."""

    criterion: str
    label: str
    ok: bool
    found: str | None = None
    wanted: str | None = None


def _enumerate(items: list[str]) -> str:
    """`["a", "b", "c"] -> "the a, the b and the c"`."""
    the = [f"the {item}" for item in items]
    return the[0] if len(the) == 1 else ", ".join(the[:-1]) + " and " + the[-1]


def draw_task(rng: random.Random, held_out: bool = False) -> Task:
    genre = rng.choice(list(lexicon.ATTRIBUTES))
    attributes = lexicon.ATTRIBUTES[genre]
    points = tuple(rng.sample(list(attributes), 4))
    truth = {point: rng.choice(attributes[point]) for point in points}
    return Task(genre, rng.choice(lexicon.TOPICS[genre][held_out].split()), points, truth, rng.choice([6, 7, 8, 9]))


def draw_demands(rng: random.Random, task: Task, criteria: tuple[str, ...]) -> list[tuple[str, str]]:
    """The four (criterion, label) a rubric checks: all four of one criterion, or two each of two, in their own order."""
    labels = {
        "completeness": task.points,
        "accuracy": task.points,
        "order": lexicon.POSITIONS,
        "tone": lexicon.TONE,
        "format": lexicon.FORMAT,
    }
    per_criterion = 4 // len(criteria)
    return [
        (criterion, labels[criterion][i]) for criterion in criteria for i in sorted(rng.sample(range(4), per_criterion))
    ]


def respond(rng: random.Random, task: Task, criteria: tuple[str, ...], quality: float) -> Response:
    """A response that gets each thing right with probability `quality`, and goes wrong where the criteria look."""

    def good(p: float = quality) -> bool:
        return rng.random() < p

    attributes, by_order = lexicon.ATTRIBUTES[task.genre], "order" in criteria
    order = list(task.points)
    if not good(0.35 if by_order else 0.75):
        rng.shuffle(order)
    said: list[tuple[str, str | None]] = []  # (attribute, value); None: mentioned, but not told
    for point in order:
        present = good(0.85) if by_order else good()
        wrong = not good() if "accuracy" in criteria else good(0.25)
        if not present and "accuracy" in criteria and "completeness" not in criteria:
            present, wrong = good(0.7), True
        if present:
            others = [v for v in attributes[point] if v != task.truth[point]]
            said.append((point, rng.choice(others) if wrong else task.truth[point]))
        elif good(0.35):
            said.append((point, None))
        elif good(0.5 if by_order else 0.2):
            unasked = rng.choice([a for a in attributes if a not in task.points])
            if unasked not in dict(said):
                said.append((unasked, rng.choice(attributes[unasked])))
    has = {item: good() for item in [*lexicon.FORMAT[:-1], *lexicon.TONE]}
    lines = [f"Title: {task.topic.capitalize()}"] if has["title"] else []
    lines += [rng.choice(lexicon.GREETING)] if has["greeting"] else []
    form, bullet = rng.choice(lexicon.STATED), "- " if has["bullets"] else ""
    for a, v in said:
        lines.append(bullet + (rng.choice(lexicon.VAGUE).format(a=a) if v is None else form.format(a=a, v=v)))
    tail = [rng.choice(lexicon.THANKS)] if has["thanks"] else []
    tail += [rng.choice(lexicon.REQUEST)] if has["request"] else []
    tail += [] if has["respect"] else [rng.choice(lexicon.RUDE)]
    tail += rng.sample(lexicon.FILLER, rng.choice([0, 0, 1, 1, 2]))
    rng.shuffle(tail)
    lines += tail
    lines += [rng.choice(lexicon.SIGNATURES).format(n=rng.choice(lexicon.NAMES))] if has["signature"] else []
    lines = lines or [rng.choice(lexicon.FILLER)]
    return Response("\n".join(lines), tuple((a, v) for a, v in said if v is not None), len(lines), has)


def inspect(task: Task, response: Response, demands: list[tuple[str, str]]) -> list[Check]:
    """The truth about each demand."""
    stated, checks = dict(response.stated), []
    for criterion, label in demands:
        if criterion == "completeness":
            checks.append(Check(criterion, label, label in stated, stated.get(label)))
        elif criterion == "accuracy":
            found = stated.get(label, "nothing")
            checks.append(Check(criterion, label, found == task.truth[label], found, task.truth[label]))
        elif criterion == "order":
            i = lexicon.POSITIONS.index(label)
            found = response.stated[i][0] if i < len(response.stated) else "end"
            checks.append(Check(criterion, label, found == task.points[i], found, task.points[i]))
        elif label == "limit":
            n = response.n_lines
            checks.append(
                Check(criterion, label, n <= task.limit, lexicon.NUMBERS[min(n, 12)], lexicon.NUMBERS[task.limit])
            )
        else:
            checks.append(Check(criterion, label, response.has[label]))
    return checks


def score(passed: list[bool], key: int | None) -> int:
    """1 + the number of checks passed; 1 where the key check fails. `([True, False, True, True], None) -> 4`."""
    return 1 if key is not None and not passed[key] else 1 + sum(passed)


def write_rubric(rng: random.Random, demands: list[tuple[str, str]], key: int | None) -> Rubric:
    criteria = dict.fromkeys(criterion for criterion, _ in demands)
    questions = [
        rng.choice(lexicon.CRITERIA[name]).format(checks=_enumerate([label for c, label in demands if c == name]))
        for name in criteria
    ]
    if key is None:
        what = rng.choice(["checks pass", "demands are met"])
        levels = [f"{n} of the {what}" for n in ("None", "One", "Two", "Three", "All")]
    else:
        label = demands[key][1]
        levels = [
            f"The {label}, the key check, fails",
            f"Only the {label} passes",
            f"The {label} and one other pass",
            f"The {label} and two others pass",
            "All pass",
        ]
    return Rubric(criterion=" ".join(questions), levels=levels)


def write_check(check: Check, careful: bool = True, rng: random.Random | None = None) -> str:
    """One verdict as a sentence, with its evidence where the annotator is careful; `rng` draws among the phrasings."""
    if not careful:
        return f"The {check.label}: {'pass' if check.ok else 'fail'}."
    if check.criterion == "completeness":
        forms = lexicon.EVIDENCE["given" if check.ok else "not given"]
    elif check.wanted is not None:
        forms = lexicon.EVIDENCE["limit" if check.label == "limit" else check.criterion]
    else:
        forms = lexicon.EVIDENCE["present" if check.ok else "absent"]
    form = rng.choice(forms) if rng else forms[0]
    verdict = "pass" if check.ok else "fail"
    return form.format(label=check.label, found=check.found, wanted=check.wanted, verdict=verdict)


def write_rationale(checks: list[Check], key: int | None, careful: bool, rng: random.Random | None = None) -> str:
    sentences = [write_check(check, careful, rng) for check in checks]
    end = (rng.choice(lexicon.CONCLUSION) if rng else lexicon.CONCLUSION[0]).format(
        n=lexicon.NUMBERS[sum(check.ok for check in checks)]
    )
    if key is not None:
        end += f" and the key check, the {checks[key].label}, {'passes' if checks[key].ok else 'fails'}"
    return " ".join([*sentences, f"{end}."])


def write_instruction(rng: random.Random, task: Task, held_out: bool = False) -> str:
    template = rng.choice(lexicon.INSTRUCTIONS_HELD_OUT if held_out else lexicon.INSTRUCTIONS)
    layout = rng.choice(lexicon.LAYOUTS).format(n=lexicon.NUMBERS[task.limit])
    return template.format(
        noun=lexicon.NOUN[task.genre], topic=task.topic, points=_enumerate(list(task.points)), layout=layout
    )


@dataclass(frozen=True)
class Case:
    """An example with everything known about it, before it is flattened into rows."""

    task: Task
    criteria: tuple[str, ...]
    demands: list[tuple[str, str]]
    key: int | None
    instruction: str
    reference_answer: str
    rubric: Rubric
    response: Response
    checks: list[Check]
    score: int


def draw_case(rng: random.Random, held_out: bool = False) -> Case:
    """One case; the score is drawn first, so that all five are equally frequent, and responses are drawn until one fits."""
    task = draw_task(rng, held_out)
    if held_out:
        criteria = rng.choice(lexicon.COMBINATIONS_HELD_OUT)
    else:
        criteria = (rng.choice(list(lexicon.CRITERIA)),) if rng.random() < 0.5 else rng.choice(lexicon.COMBINATIONS)
    demands = draw_demands(rng, task, criteria)
    key = rng.randrange(4) if rng.random() < lexicon.KEY_CHECK_SHARE else None
    target = rng.randint(1, 5)
    while True:
        for _ in range(400):
            response = respond(rng, task, criteria, quality=rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]))
            checks = inspect(task, response, demands)
            if score([check.ok for check in checks], key) == target:
                reference = " ".join(f"The {point} is {task.truth[point]}." for point in task.points)
                instruction = write_instruction(rng, task, held_out)
                rubric = write_rubric(rng, demands, key)
                return Case(task, criteria, demands, key, instruction, reference, rubric, response, checks, target)
        target = rng.randint(1, 5)  # this score is out of reach for this task: draw another


def examples(split: str, seed: int, n: int, care: float = 0.5) -> list[Example]:
    """`n` examples of a split, deterministic in (split, seed); `ood` draws the held-out topics, templates, combinations.

    A share `care` of the annotators is careful. `meta` holds the checks, for `check_rationale`, what they
    are about, and who annotated.
    """
    rng = random.Random(f"world {split} {seed}")
    rows = []
    for i in range(n):
        case = draw_case(rng, held_out=split == "ood")
        careful = rng.random() < care
        rows.append(
            Example(
                id=f"{split}-{seed}-{i}",
                instruction=case.instruction,
                response=case.response.text,
                reference_answer=case.reference_answer,
                rubric=case.rubric,
                rationale=write_rationale(case.checks, case.key, careful),
                score=case.score,
                meta={
                    "criteria": "+".join(case.criteria),
                    "genre": case.task.genre,
                    "topic": case.task.topic,
                    "annotator": "careful" if careful else "hasty",
                    "checks": [asdict(check) for check in case.checks],
                    "key": case.key,
                },
            )
        )
    return rows


def comparisons(seed: int, n: int) -> list[Comparison]:
    """`n` pairs of responses with different gold scores (the RewardBench analogue), every other one held out."""
    rng = random.Random(f"world pairwise {seed}")
    rows: list[Comparison] = []
    while len(rows) < n:
        case = draw_case(rng, held_out=len(rows) % 2 == 1)
        if found := _draw_rival(rng, case):
            rows.append(_comparison(f"pairwise-{seed}-{len(rows)}", case, *found))
    return rows


def training_comparisons(split: str, seed: int, n: int, care: float = 0.5) -> list[Comparison]:
    """`n` in-domain pairs with a gold rationale: what is right in A, what is right in B, and so which is better.

        Response A: The day: fail. The host: pass. ... So one of four pass. Response B: ... So three of four pass. [RESULT] B

    Careful and hasty as in `examples`; `meta` holds the checks of both sides, for `check_comparison`. Deterministic in
    (split, seed), on a random stream of its own, which no evaluation split has.
    """
    rng = random.Random(f"world pairwise {split} {seed}")
    rows: list[Comparison] = []
    while len(rows) < n:
        case = draw_case(rng)
        careful = rng.random() < care
        if not (found := _draw_rival(rng, case)):
            continue
        sides = {"A": case.checks, "B": inspect(case.task, found[0], case.demands)}
        said = [f"Response {name}: {write_rationale(checks, case.key, careful)}" for name, checks in sides.items()]
        known = [[asdict(check) for check in checks] for checks in sides.values()]
        meta = {"annotator": "careful" if careful else "hasty", "checks": known, "key": case.key}
        rows.append(_comparison(f"{split}-pairwise-{seed}-{len(rows)}", case, *found, " ".join(said), meta))
    return rows


def _draw_rival(rng: random.Random, case: Case) -> tuple[Response, int] | None:
    """Another response to the same task and its score, a different one; None where fifty draws give none."""
    for _ in range(50):
        other = respond(rng, case.task, case.criteria, quality=rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]))
        other_score = score([c.ok for c in inspect(case.task, other, case.demands)], case.key)
        if other_score != case.score:
            return other, other_score
    return None


def _comparison(
    name: str, case: Case, other: Response, other_score: int, rationale: str | None = None, meta: dict | None = None
) -> Comparison:
    return Comparison(
        id=name,
        instruction=case.instruction,
        response_a=case.response.text,
        response_b=other.text,
        rubric=case.rubric,
        reference_answer=case.reference_answer,
        preference="A" if case.score > other_score else "B",
        rationale=rationale,
        meta={"criteria": "+".join(case.criteria), "scores": [case.score, other_score], **(meta or {})},
    )


class Checked(NamedTuple):
    """What a program finds in a rationale. `verdicts` and `evidence` are shares of the four demanded checks."""

    verdicts: float  # right verdicts; a check that is not there is a wrong one
    evidence: float  # right verdicts whose stated evidence is there, where there is any to state, and right
    follows: float | None  # the score that the rationale's own verdicts imply; None where a check is missing


_SENTENCE = re.compile(r"([^.\n]{1,200}): (pass|fail)\.")


def check_rationale(example: Example, rationale: str) -> Checked:
    """Hold every stated check of a rationale against the truth. Only for examples of this world."""
    return _check(example.meta["checks"], example.meta["key"], rationale)


def check_comparison(comparison: Comparison, rationale: str) -> tuple[Checked, Checked]:
    """The same for each side of a training comparison: what is said between `Response A:` and `Response B:`, and behind
    it. A rationale of another form has no right verdict."""
    of_a, _, of_b = rationale.removeprefix("Response A:").partition("Response B:")
    a, b = comparison.meta["checks"]
    return _check(a, comparison.meta["key"], of_a), _check(b, comparison.meta["key"], of_b)


def _check(checks: list[dict], key: int | None, rationale: str) -> Checked:
    stated = [
        (f" {text} ".replace(",", " ").replace(":", " "), v == "pass") for text, v in _SENTENCE.findall(rationale)
    ]
    own: list[bool | None] = []
    verdicts = evidence = 0
    for check in (Check(**c) for c in checks):
        i = next((i for i, (text, _) in enumerate(stated) if f" {check.label} " in text), None)
        if i is None:
            own.append(None)
            continue
        text, verdict = stated.pop(i)
        own.append(verdict)
        if verdict == check.ok:
            verdicts += 1
            wanted = [word for word in (check.found, check.wanted) if word is not None]
            evidence += all(text.split().count(word) >= wanted.count(word) for word in wanted)
    n = len(own)
    follows = None if None in own else float(score([bool(v) for v in own], key))
    return Checked(verdicts / n, evidence / n, follows)
