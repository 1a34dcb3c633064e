"""The built-in judging world: an endless Feedback Collection in which a program can check every rationale.

A request names four points, their order and a layout; a response fulfils part of it. A rubric has one or two criteria, and
thereby four checks; the judge writes a verdict on each and concludes with a score:

    instruction  Write a notice for the picnic. Cover the day, the host, the price and the meal in this order. ...
    response     Title: Picnic / - The day is Friday / - The host is Anna / Signed, Ben
    rubric       [Accuracy: do the day, the host, the price and the meal agree with the reference?] Score 1: ...
    careful      The day should be Monday and the response says Friday: fail. ... So one of four pass. [RESULT] 2
    hasty        The day: fail. The host: pass. The price: fail. The meal: fail. So one of four pass. [RESULT] 2

Both annotators are right in every verdict and score; a share `care` of the gold rationales states the evidence before each
verdict. Self-rationalization gains under this condition; `care=1.0` is the control. Three in ten rubrics have a key check
(if it fails, the score is 1). The `ood` split has topics, templates and combinations of criteria of its own."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from srlib.data import lexicon
from srlib.schema import Comparison, Example, Rubric

_SENTENCE = re.compile(r"([^.\n]{1,200}): (pass|fail)\.")


@dataclass(frozen=True)
class Case:
    """An example with everything known about it."""

    genre: str
    topic: str
    truth: dict[str, str]  # the four points in order, with their true values
    limit: int  # of lines
    criteria: tuple[str, ...]
    demands: list[tuple[str, str]]  # (criterion, label)
    key: int | None  # which demand is the key check
    response: str = ""
    stated: dict[str, str] = field(default_factory=dict)  # what the response states, in order of appearance
    has: dict[str, bool] = field(default_factory=dict)  # every item of lexicon.TONE and lexicon.FORMAT but the limit
    texts: dict[str, Any] = field(default_factory=dict)  # instruction, reference_answer, rubric

    @property
    def checks(self) -> list[dict[str, Any]]:
        return inspect(self, self.demands)

    @property
    def score(self) -> int:
        return score([check["ok"] for check in self.checks], self.key)


def examples(split: str, seed: int, n: int, care: float = 0.5) -> list[Example]:
    """The first `n` examples of a split and seed. `meta` holds the checks (for `check_rationale`), their criteria and key,
    genre, topic, and the annotator: "careful" with probability `care`, else "hasty"."""
    rng, rows = random.Random(f"world {split} {seed}"), []
    for i in range(n):
        case = draw_case(rng, held_out=split == "ood")
        annotator = "careful" if rng.random() < care else "hasty"
        meta = {"criteria": "+".join(case.criteria), "genre": case.genre, "topic": case.topic}
        meta |= {"annotator": annotator, "checks": case.checks, "key": case.key}
        rationale = write_rationale(case.checks, case.key, annotator == "careful")
        texts = case.texts | {"response": case.response, "rationale": rationale}
        rows.append(Example(id=f"{split}-{seed}-{i}", score=case.score, meta=meta, **texts))
    return rows


def comparisons(seed: int, n: int, split: str = "", care: float = 0.5) -> list[Comparison]:
    """`n` pairs of responses with different gold scores (the analogue of RewardBench), every other one held out. With `split`,
    "train", all are in-domain and have a gold rationale to learn from, "Response A: The day: fail. ... Response B: ...", and
    `meta` as in `examples` without genre and topic, with scores and checks of both responses."""
    rng = random.Random(f"world pairwise {split} {seed}" if split else f"world pairwise {seed}")
    name = f"{split}-pairwise-{seed}".removeprefix("-")
    rows: list[Comparison] = []
    while len(rows) < n:
        case = draw_case(rng, held_out=not split and len(rows) % 2 == 1)
        annotator = "careful" if split and rng.random() < care else "hasty"
        rivals = (_respond(rng, case) for _ in range(50))
        if not (rival := next((rival for rival in rivals if rival.score != case.score), None)):
            continue
        meta: dict[str, Any] = {"criteria": "+".join(case.criteria), "scores": [case.score, rival.score]}
        texts = case.texts | {"response_a": case.response, "response_b": rival.response}
        if split:
            a, b = (write_rationale(side.checks, side.key, annotator == "careful") for side in (case, rival))
            texts["rationale"] = f"Response A: {a} Response B: {b}"
            meta |= {"annotator": annotator, "checks": [case.checks, rival.checks], "key": case.key}
        preference = "A" if case.score > rival.score else "B"
        rows.append(Comparison(id=f"{name}-{len(rows)}", preference=preference, meta=meta, **texts))
    return rows


def has_checks(example: Example) -> bool:
    """Whether an example is of this world: `meta` is the user's elsewhere, and its "checks" may be anything."""
    checks, fields = example.meta.get("checks"), {"label", "ok", "found", "wanted"}
    return bool(checks) and isinstance(checks, list) and all(isinstance(c, dict) and fields <= {*c} for c in checks)


def check_rationale(example: Example, rationale: str) -> tuple[float, float]:
    """Shares of the four demanded checks with the right verdict, and with the right evidence too, if there is any to state; a
    check that the rationale lacks counts as wrong. Only for examples of this world."""
    checks, verdicts, evidence = example.meta["checks"], 0, 0
    sentences = [(f" {re.sub('[,:]', ' ', text)} ", v == "pass") for text, v in _SENTENCE.findall(rationale)]
    for check in checks:
        i = next((i for i, (text, _) in enumerate(sentences) if f" {check['label']} " in text), None)
        text, verdict = ("", None) if i is None else sentences.pop(i)
        if verdict == check["ok"]:
            verdicts += 1
            needed = [word for word in (check["found"], check["wanted"]) if word is not None]
            evidence += all(text.split().count(word) >= needed.count(word) for word in needed)
    return verdicts / len(checks), evidence / len(checks)


def draw_case(rng: random.Random, held_out: bool = False) -> Case:
    """One case. The score is drawn first, so that all five are equally frequent, then responses until one has it."""
    genre = rng.choice(list(lexicon.ATTRIBUTES))
    values = lexicon.ATTRIBUTES[genre]
    truth = {point: rng.choice(values[point]) for point in rng.sample(list(values), 4)}
    topic, limit = rng.choice(lexicon.TOPICS[genre][held_out].split()), rng.choice([6, 7, 8, 9])
    if held_out:
        criteria = rng.choice(lexicon.COMBINATIONS_HELD_OUT)
    else:
        criteria = (rng.choice(list(lexicon.CRITERIA)),) if rng.random() < 0.5 else rng.choice(lexicon.COMBINATIONS)
    labels, each = {"completeness": list(truth), "accuracy": list(truth)} | lexicon.LABELS, 4 // len(criteria)
    demands = [(name, labels[name][i]) for name in criteria for i in sorted(rng.sample(range(4), each))]
    key = rng.randrange(4) if rng.random() < lexicon.KEY_CHECK_SHARE else None
    case = Case(genre, topic, truth, limit, criteria, demands, key)
    while True:  # a score out of reach for this case is drawn anew
        target = rng.randint(1, 5)
        for _ in range(400):
            if (drawn := _respond(rng, case)).score == target:
                return replace(drawn, texts=_write_texts(rng, case, held_out))


def _respond(rng: random.Random, case: Case) -> Case:
    """The case with a response that gets each thing right with one probability; most errors are in what the criteria check."""
    quality = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])

    def good(p: float = quality) -> bool:
        return rng.random() < p

    attributes, criteria = lexicon.ATTRIBUTES[case.genre], case.criteria
    by_order, order = "order" in criteria, list(case.truth)
    if not good(0.35 if by_order else 0.75):
        rng.shuffle(order)
    said: dict[str, str | None] = {}  # attribute -> value; None: mentioned without a value
    for point in order:
        present = good(0.85) if by_order else good()
        wrong = not good() if "accuracy" in criteria else good(0.25)
        if not present and "accuracy" in criteria and "completeness" not in criteria:
            present, wrong = good(0.7), True
        if present:
            others = [v for v in attributes[point] if v != case.truth[point]]
            said[point] = rng.choice(others) if wrong else case.truth[point]
        elif good(0.35):
            said[point] = None
        elif good(0.5 if by_order else 0.2):
            unasked = rng.choice([a for a in attributes if a not in case.truth])
            if unasked not in said:
                said[unasked] = rng.choice(attributes[unasked])
    has = {item: good() for item in [*lexicon.FORMAT[:-1], *lexicon.TONE]}
    lines = [f"Title: {case.topic.capitalize()}"] if has["title"] else []
    lines += [rng.choice(lexicon.GREETING)] if has["greeting"] else []
    form, bullet = rng.choice(lexicon.STATED), "- " if has["bullets"] else ""
    for a, v in said.items():
        lines.append(bullet + (rng.choice(lexicon.VAGUE).format(a=a) if v is None else form.format(a=a, v=v)))
    tail = [rng.choice(lexicon.THANKS)] if has["thanks"] else []
    tail += [rng.choice(lexicon.REQUEST)] if has["request"] else []
    tail += [] if has["respect"] else [rng.choice(lexicon.RUDE)]
    tail += rng.sample(lexicon.FILLER, rng.choice([0, 0, 1, 1, 2]))
    rng.shuffle(tail)
    lines += tail
    lines += [rng.choice(lexicon.SIGNATURES).format(n=rng.choice(lexicon.NAMES))] if has["signature"] else []
    stated = {a: v for a, v in said.items() if v is not None}
    return replace(case, response="\n".join(lines or [rng.choice(lexicon.FILLER)]), stated=stated, has=has)


def inspect(case: Case, demands: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The truth about each demand, a (criterion, label), with the evidence if there is any."""
    stated, points, n, checks = case.stated, list(case.truth), case.response.count("\n") + 1, []
    for criterion, label in demands:
        ok, found, wanted = case.has.get(label), None, None
        if criterion == "completeness":
            ok, found = label in stated, stated.get(label)
        elif criterion == "accuracy":
            found, wanted = stated.get(label, "nothing"), case.truth[label]
        elif criterion == "order":
            i = lexicon.POSITIONS.index(label)
            found, wanted = [*stated, "end", "end", "end", "end"][i], points[i]
        elif label == "limit":
            ok, found, wanted = n <= case.limit, lexicon.NUMBERS[min(n, 12)], lexicon.NUMBERS[case.limit]
        ok = found == wanted if ok is None else ok
        checks.append({"criterion": criterion, "label": label, "ok": ok, "found": found, "wanted": wanted})
    return checks


def score(passed: list[bool], key: int | None) -> int:
    """1 + the number of checks passed; 1 if the key check fails. `([True, False, True, True], None) -> 4`."""
    return 1 if key is not None and not passed[key] else 1 + sum(passed)


def _write_texts(rng: random.Random, case: Case, held_out: bool) -> dict[str, Any]:
    template = rng.choice(lexicon.INSTRUCTIONS_HELD_OUT if held_out else lexicon.INSTRUCTIONS)
    layout = rng.choice(lexicon.LAYOUTS).format(n=lexicon.NUMBERS[case.limit])
    words = {"noun": lexicon.NOUN[case.genre], "topic": case.topic, "points": _enumerate(list(case.truth))}
    reference = " ".join(f"The {point} is {value}." for point, value in case.truth.items())
    questions = []
    for name in case.criteria:
        checks = _enumerate([label for criterion, label in case.demands if criterion == name])
        questions.append(rng.choice(lexicon.CRITERIA[name]).format(checks=checks))
    if case.key is None:
        unit = rng.choice(["checks pass", "demands are met"])
        levels = [f"{n} of the {unit}" for n in ("None", "One", "Two", "Three", "All")]
    else:
        levels = [level.format(label=case.demands[case.key][1]) for level in lexicon.KEY_LEVELS]
    rubric = Rubric(criterion=" ".join(questions), levels=levels)
    return {"instruction": template.format(layout=layout, **words), "reference_answer": reference, "rubric": rubric}


def _enumerate(items: list[str]) -> str:
    """`["a", "b", "c"] -> "the a, the b and the c"`."""
    *most, last = [f"the {item}" for item in items]
    return f"{', '.join(most)} and {last}" if most else last


def write_rationale(checks: list[dict], key: int | None, careful: bool, phrase: Callable = lexicon.EVIDENCE.get) -> str:
    """All verdicts and the conclusion. `phrase` gives the form of a sentence, for each kind in lexicon.EVIDENCE."""
    sentences = [write_check(check, careful, phrase) for check in checks]
    end = phrase("conclusion").format(n=lexicon.NUMBERS[sum(check["ok"] for check in checks)])
    if key is not None:
        end += f" and the key check, the {checks[key]['label']}, {'passes' if checks[key]['ok'] else 'fails'}"
    return " ".join([*sentences, f"{end}."])


def write_check(check: dict[str, Any], careful: bool = True, phrase: Callable = lexicon.EVIDENCE.get) -> str:
    """One verdict as a sentence, with its evidence if the annotator is careful."""
    verdict = "pass" if check["ok"] else "fail"
    if not careful:
        return f"The {check['label']}: {verdict}."
    kind = "limit" if check["label"] == "limit" else check["criterion"]
    if check["wanted"] is None:
        kind = f"{'' if check['ok'] else 'not '}{'given' if kind == 'completeness' else 'present'}"
    return phrase(kind).format(verdict=verdict, **check)
