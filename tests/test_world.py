"""The built-in world: the same rows forever, disjoint, held out where it says so, and every gold rationale right by program."""

import hashlib
import json
import re
from collections import Counter
from itertools import pairwise

from srlib import prompts
from srlib.data import lexicon, world
from srlib.data.world import check_rationale

SPLITS = ("train", "validation", "test", "ood")
HELD_OUT = {topic for _, held_out in lexicon.TOPICS.values() for topic in held_out.split()}
DIGESTS = {  # of the rows on which models/tiny-base and the published results rest
    "train": "be4afb0a41f4", "validation": "b7fdd7ec221c", "test": "98e82f5ede1e", "ood": "d6f2a58aa56a",
    "pairwise": "2af82071524f", "train_pairwise": "76f9ff150c02",
}  # fmt: skip
ROWS = [e for split in SPLITS for e in world.examples(split, 0, 250)]
TRAINING = world.comparisons(0, 100, "train")


def check_comparison(comparison, rationale):
    """`check_rationale` of both responses."""
    sides = rationale.removeprefix("Response A:").partition("Response B:")[::2]
    examples = [ROWS[0].model_copy(update={"meta": {"checks": checks}}) for checks in comparison.meta["checks"]]
    return [check_rationale(e, side) for e, side in zip(examples, sides, strict=True)]


def test_the_rows_are_those_of_the_first_release():
    made = {split: world.examples(split, 7, 100) for split in SPLITS}
    made |= {"pairwise": world.comparisons(7, 100), "train_pairwise": world.comparisons(7, 100, "train")}
    texts = {
        name: json.dumps([row.model_dump(mode="json") for row in rows], sort_keys=True) for name, rows in made.items()
    }
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()} == DIGESTS
    assert made["test"][:8] == world.examples("test", 7, 8)
    careful = [e.model_copy(update={"rationale": None, "meta": {}}) for e in world.examples("test", 7, 100, care=1)]
    assert careful == [e.model_copy(update={"rationale": None, "meta": {}}) for e in made["test"]]


def test_splits_and_seeds_share_no_prompt_and_no_id():
    parts = [ROWS, *(world.examples(split, 1, 150) for split in SPLITS)]
    pairs = [TRAINING, world.comparisons(0, 100), world.comparisons(1, 100), world.comparisons(0, 50, "test")]
    parts += [[side for c in part for side in c.sides()] for part in pairs]
    shown = Counter(prompt for part in parts for prompt in {prompts.request(e) for e in part})
    assert [prompt for prompt, n in shown.items() if n > 1] == []
    assert max(Counter(e.id for part in parts for e in part).values()) == 1


def test_held_out_topics_templates_and_combinations_stay_out():
    words = {question.split(":")[0]: name for name, questions in lexicon.CRITERIA.items() for question in questions}
    for e in ROWS:
        criteria = tuple(words[word] for word in re.findall(r"([A-Z][a-z]+):", e.rubric.criterion))
        topic = bool(HELD_OUT & set(re.findall(r"[a-z]+", f"{e.instruction} {e.response}".lower())))
        template = e.instruction.startswith(("Our ", "Could you write about "))
        assert {topic, template, criteria in lexicon.COMBINATIONS_HELD_OUT} == {e.id.startswith("ood")}
        assert e.meta["criteria"] == "+".join(criteria)


def test_checks_and_scores_are_what_the_texts_say():
    """Recomputed from instruction, reference and response alone; all five scores are about equally frequent."""
    stated = re.compile(r"(?:The (\w+) is|About the (\w+):|For the (\w+) we chose) (\w+)$")
    n = 0
    for e in ROWS:
        truth = dict(re.findall(r"The (\w+) is (\w+)\.", e.reference_answer))
        found = filter(None, map(stated.match, (line.removeprefix("- ") for line in e.response.splitlines())))
        said = {next(filter(None, match.groups()[:3])): match[4] for match in found}
        limit = lexicon.NUMBERS.index(re.search(r"at most (\w+) lines", e.instruction)[1])
        passed, key = [check["ok"] for check in e.meta["checks"]], e.meta["key"]
        assert e.score == (1 if "key check" in e.rubric.text and not passed[key] else 1 + sum(passed))
        for check in e.meta["checks"]:
            label = check["label"]
            expected = {"title": e.response.startswith("Title: "), "limit": len(e.response.splitlines()) <= limit}
            if check["criterion"] == "accuracy":
                expected[label] = said.get(label) == truth[label]
            elif check["criterion"] == "completeness":
                expected[label] = label in said
            elif check["criterion"] == "order":
                i = lexicon.POSITIONS.index(label)
                expected[label] = [*said, *"...."][i] == list(truth)[i]
            assert check["ok"] == expected.get(label, check["ok"])
            n += label in expected
    assert n > 1000
    shares = [n / len(ROWS) for n in Counter(e.score for e in ROWS).values()]
    assert 0.15 < min(shares) < max(shares) < 0.25


def test_every_gold_rationale_is_right_and_only_the_careful_ones_have_evidence():
    for e in ROWS:
        to_state = sum({check["found"], check["wanted"]} != {None} for check in e.meta["checks"])
        assert check_rationale(e, e.rationale) == (1, 1 if e.meta["annotator"] == "careful" else 1 - to_state / 4), e.id
    for c in TRAINING + world.comparisons(0, 100):
        assert c.preference == ("A" if c.meta["scores"][0] > c.meta["scores"][1] else "B")
    assert {tuple(side[0] for side in check_comparison(c, c.rationale)) for c in TRAINING} == {(1, 1)}
    assert {c.meta["annotator"] for c in TRAINING} == {"careful", "hasty"}


def test_a_flipped_verdict_or_changed_evidence_is_found():
    """Also one of two equal values: `The day should be Monday and the response says Friday: pass`."""
    for e in ROWS[::2]:
        sentences = re.findall(r"[^.]*\.", e.rationale)
        for i, check in enumerate(e.meta["checks"]):
            flipped = {"pass.": "fail.", "fail.": "pass."}[sentences[i][-5:]]
            found = check_rationale(e, "".join([*sentences[:i], sentences[i][:-5] + flipped, *sentences[i + 1 :]]))
            assert (found[0], found[1] <= 0.75) == (0.75, True)
            for word in {check["found"], check["wanted"]} - {None} if e.meta["annotator"] == "careful" else ():
                changed = "nonsense".join(sentences[i].rsplit(word, 1))
                found = check_rationale(e, "".join([*sentences[:i], changed, *sentences[i + 1 :]]))
                assert found == (1, 0.75), (e.id, changed)


def test_what_a_rationale_lacks_is_wrong():
    e = ROWS[0]
    assert check_rationale(e, "".join(re.findall(r"[^.]*\.", e.rationale)[1:]))[0] == 0.75
    assert check_rationale(e, "") == check_rationale(e, "pass. " * 5_000) == (0, 0)
    others = [check_rationale(e, other.rationale)[0] for e, other in pairwise(ROWS)]
    assert sum(others) / len(others) < 0.4
    for c in TRAINING[:60]:
        a, _, b = c.rationale.partition("Response B:")
        swapped = check_comparison(c, f"Response A:{b} Response B:{a.removeprefix('Response A:')}")
        assert max(side[0] for side in swapped) < 1  # their scores differ, so what is true of one is not of the other
        assert [side[0] for side in check_comparison(c, a)] == [1, 0]  # nothing is said of B
