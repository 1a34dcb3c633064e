"""The built-in world: repeatable, disjoint, held out where it says so, and every gold rationale right by program."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from srlib import prompts
from srlib.data import lexicon, world
from srlib.data.world import check_comparison, check_rationale
from srlib.schema import Comparison, Example

SPLITS = ("train", "validation", "test", "ood")
HELD_OUT_TOPICS = [topic for _, held_out in lexicon.TOPICS.values() for topic in held_out.split()]
HELD_OUT_OPENINGS = ("Our ", "Could you write about ")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Example]]:
    return {split: world.examples(split, 0, 600) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(rows):
    return [e for split in rows.values() for e in split]


def criteria_of(example) -> tuple[str, ...]:
    """The criteria that the rubric's words name, in order: read from the prompt, not from meta."""
    words = {question.split(":")[0]: name for name, questions in lexicon.CRITERIA.items() for question in questions}
    return tuple(words[w] for w in re.findall(r"([A-Z][a-z]+):", example.rubric.criterion))


def words_of(example) -> set[str]:
    return set(re.findall(r"[a-z]+", f"{example.instruction} {example.response}".lower()))


def digest(rows) -> str:
    return hashlib.sha256("\n".join(row.model_dump_json() for row in rows).encode()).hexdigest()


def test_the_same_split_and_seed_are_the_same_rows_in_any_process():
    assert world.examples("test", 3, 20)[:8] == world.examples("test", 3, 8)  # more rows leave the first as they are
    code = (
        "import hashlib; from srlib import world; rows = world.examples('test', 3, 20) + world.comparisons(3, 9);"
        "print(hashlib.sha256('\\n'.join(row.model_dump_json() for row in rows).encode()).hexdigest())"
    )
    random.seed(1)
    here = digest(world.examples("test", 3, 20) + world.comparisons(3, 9))
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_splits_and_seeds_share_no_prompt_and_no_id(rows):
    own = {(split, 0): found for split, found in rows.items()}
    own |= {(split, 1): world.examples(split, 1, 300) for split in SPLITS}
    own |= {("pairwise", s): [e for c in world.comparisons(s, 150) for e in c.sides()] for s in (0, 1)}
    asked = Counter(prompt for found in own.values() for prompt in {prompts.request(e) for e in found})
    assert [prompt for prompt, n in asked.items() if n > 1] == []
    ids = [e.id for found in own.values() for e in found]
    assert len(ids) == len(set(ids))


def test_care_changes_how_the_rationale_is_written_and_nothing_else():
    with_care, without = world.examples("train", 0, 40, care=1.0), world.examples("train", 0, 40, care=0.0)
    assert [e.meta["annotator"] for e in with_care] == ["careful"] * 40
    assert [e.meta["annotator"] for e in without] == ["hasty"] * 40
    for a, b in zip(with_care, without, strict=True):
        assert (a.score, prompts.request(a)) == (b.score, prompts.request(b))
        assert a.rationale != b.rationale


@pytest.mark.parametrize("care", [0.2, 0.5])
def test_a_share_of_the_annotators_is_careful(care):
    careful = sum(e.meta["annotator"] == "careful" for e in world.examples("train", 5, 800, care)) / 800
    assert abs(careful - care) < 0.06


def test_held_out_topics_templates_and_combinations_stay_out(rows):
    for e in [*rows["train"], *rows["validation"], *rows["test"]]:
        assert not words_of(e) & set(HELD_OUT_TOPICS)
        assert not e.instruction.startswith(HELD_OUT_OPENINGS)
        assert criteria_of(e) not in lexicon.COMBINATIONS_HELD_OUT
        assert criteria_of(e)[::-1] not in lexicon.COMBINATIONS_HELD_OUT
    for e in rows["ood"]:
        assert words_of(e) & set(HELD_OUT_TOPICS)
        assert e.instruction.startswith(HELD_OUT_OPENINGS)
        assert criteria_of(e) in lexicon.COMBINATIONS_HELD_OUT
    assert {criteria_of(e) for e in rows["ood"]} == set(lexicon.COMBINATIONS_HELD_OUT)


def test_there_are_several_criteria_alone_and_combined(rows):
    found = Counter(criteria_of(e) for e in rows["train"])
    assert set(found) == {(name,) for name in lexicon.CRITERIA} | set(lexicon.COMBINATIONS)
    assert min(found.values()) >= 10
    assert all(e.meta["criteria"] == "+".join(criteria_of(e)) for e in rows["train"])


def test_scores_are_roughly_uniform(everything):
    counts = Counter(e.score for e in everything)
    assert set(counts) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert min(counts.values()) / len(everything) > 0.15
    assert max(counts.values()) / len(everything) < 0.25


def test_every_gold_rationale_is_right(everything):
    for e in everything:
        found = check_rationale(e, e.rationale)
        assert (found.verdicts, found.follows) == (1.0, e.score), e.id
        if e.meta["annotator"] == "careful":
            assert found.evidence == 1.0, e.id
    by_annotator = Counter(e.meta["annotator"] for e in everything)
    assert min(by_annotator.values()) > 800  # both were looked at


def test_a_hasty_rationale_has_no_evidence(everything):
    for e in everything:
        has_evidence = [check["found"] is not None or check["wanted"] is not None for check in e.meta["checks"]]
        if e.meta["annotator"] == "hasty":
            assert check_rationale(e, e.rationale).evidence == pytest.approx(1 - sum(has_evidence) / 4)


def test_a_flipped_verdict_is_found(everything):
    flip = {"pass.": "fail.", "fail.": "pass."}
    for e in everything[::4]:
        sentences = re.findall(r"[^.]*\.", e.rationale)
        for i in range(4):
            changed = re.sub(r"(pass|fail)\.$", lambda m: flip[m[0]], sentences[i])
            assert changed != sentences[i]
            found = check_rationale(e, "".join([*sentences[:i], changed, *sentences[i + 1 :]]))
            assert found.verdicts == 0.75
            assert found.evidence <= 0.75
            passed = [check["ok"] for check in e.meta["checks"]]
            passed[i] = not passed[i]
            assert found.follows == world.score(passed, e.meta["key"])


def careful_sentences(everything):
    """(example, its rationale's sentences, which of them, its check) for every check with evidence in words."""
    for e in everything:
        sentences = re.findall(r"[^.]*\.", e.rationale)
        for i, check in enumerate(e.meta["checks"]):
            if e.meta["annotator"] == "careful" and (check["found"] or check["wanted"]):
                yield e, sentences, i, check


def test_changed_evidence_is_found_though_the_verdict_is_right(everything):
    n = 0
    for e, sentences, i, check in careful_sentences(everything):
        for word in {check["found"], check["wanted"]} - {None}:
            changed = re.sub(rf"\b{word}\b", "nonsense", sentences[i])
            assert changed != sentences[i]
            found = check_rationale(e, "".join([*sentences[:i], changed, *sentences[i + 1 :]]))
            assert (found.verdicts, found.evidence) == (1.0, 0.75), (e.id, changed)
            n += 1
    assert n > 1000


def test_one_of_two_equal_values_changed_is_found(everything):
    """`The day should be Monday and the response says Friday: pass`, where it should say Monday twice."""
    for e, sentences, i, check in careful_sentences(everything):
        if check["found"] == check["wanted"]:
            before, _, after = sentences[i].rpartition(check["found"])
            changed = f"{before}nonsense{after}"
            assert check_rationale(e, "".join([*sentences[:i], changed, *sentences[i + 1 :]])).evidence == 0.75, changed


def test_a_check_that_is_not_there_is_a_wrong_one(rows):
    e = rows["test"][0]
    sentences = re.findall(r"[^.]*\.", e.rationale)
    assert check_rationale(e, "".join(sentences[1:]))[0::2] == (0.75, None)
    assert check_rationale(e, "") == (0.0, 0.0, None)
    assert check_rationale(e, "pass. " * 5_000).verdicts == 0.0
    # the rationale of another example may hit a label by chance, and never all four verdicts of all of them
    others = [check_rationale(e, other.rationale).verdicts for e, other in pairwise(rows["test"])]
    assert sum(others) / len(others) < 0.4


def test_checks_are_what_reference_and_response_say(everything):
    """Accuracy and completeness recomputed from the texts alone."""
    stated = re.compile(r"(?:The (\w+) is|About the (\w+):|For the (\w+) we chose) (\w+)$")
    n = 0
    for e in everything:
        truth = dict(re.findall(r"The (\w+) is (\w+)\.", e.reference_answer))
        said = {}
        for line in e.response.splitlines():
            if match := stated.match(line.removeprefix("- ")):
                *names, value = match.groups()
                said[next(filter(None, names))] = value
        for check in e.meta["checks"]:
            if check["criterion"] == "accuracy":
                assert check["ok"] == (said.get(check["label"]) == truth[check["label"]])
            elif check["criterion"] == "completeness":
                assert check["ok"] == (check["label"] in said)
            elif check["label"] == "limit":
                limit = re.search(r"at most (\w+) lines", e.instruction)[1]
                assert check["ok"] == (len(e.response.splitlines()) <= lexicon.NUMBERS.index(limit))
            elif check["label"] == "title":
                assert check["ok"] == e.response.startswith("Title: ")
            else:
                continue
            n += 1
    assert n > 1500


def test_a_key_check_changes_the_score_of_the_same_checks(everything):
    assert [world.score([True, False, True, True], key) for key in (None, 0, 1)] == [4, 4, 1]
    assert world.score([True] * 4, 2) == world.score([True] * 4, None) == 5
    by_checks: dict[int, set] = {}
    for e in everything:
        passed = [check["ok"] for check in e.meta["checks"]]
        keyed = "key check" in e.rubric.text
        assert keyed == (e.meta["key"] is not None)
        fails = keyed and not passed[e.meta["key"]]
        assert e.score == (1 if fails else 1 + sum(passed))
        if keyed:
            assert e.rubric.levels[1.0] == f"The {e.meta['checks'][e.meta['key']]['label']}, the key check, fails"
        by_checks.setdefault(sum(passed), set()).add(e.score)
    assert by_checks[3] == {1.0, 4.0}
    assert by_checks[0] == {1.0}
    share = sum(e.meta["key"] is not None for e in everything) / len(everything)
    assert abs(share - lexicon.KEY_CHECK_SHARE) < 0.05


def test_pairwise_prefers_the_higher_score():
    rows = world.comparisons(0, 200)
    assert [c.id for c in rows] == [f"pairwise-0-{i}" for i in range(200)]
    for c in rows:
        a, b = c.meta["scores"]
        assert a != b
        assert c.preference == ("A" if a > b else "B")
        assert c.response_a != c.response_b
    assert 60 < sum(c.preference == "A" for c in rows) < 140
    held_out = [c.instruction.startswith(HELD_OUT_OPENINGS) for c in rows]
    assert held_out == [i % 2 == 1 for i in range(200)]


@pytest.fixture(scope="module")
def training() -> list[Comparison]:
    return world.training_comparisons("train", 0, 300)


def test_training_comparisons_are_repeatable_and_shared_with_no_evaluation(training):
    assert world.training_comparisons("train", 0, 20) == training[:20]
    rows = [*training, *world.training_comparisons("train", 1, 100), *world.training_comparisons("validation", 0, 100)]
    asked = [prompts.request(side) for c in rows for side in c.sides()]
    judged = {prompts.request(side) for s in (0, 1) for c in world.comparisons(s, 200) for side in c.sides()}
    judged |= {prompts.request(e) for split in SPLITS for e in world.examples(split, 0, 300)}
    assert len(set(asked)) == len(asked)
    assert not judged & set(asked)
    assert len({c.id for c in rows} | {c.id for c in world.comparisons(0, 200)}) == len(rows) + 200
    assert not any(c.instruction.startswith(HELD_OUT_OPENINGS) for c in rows)


def test_every_gold_comparison_is_right(training):
    assert {c.meta["annotator"] for c in training} == {"careful", "hasty"}
    assert 110 < sum(c.preference == "A" for c in training) < 190
    for c in training:
        found = check_comparison(c, c.rationale)
        assert [side.verdicts for side in found] == [1.0, 1.0], c.id
        assert [side.follows for side in found] == c.meta["scores"]
        assert c.preference == ("A" if found[0].follows > found[1].follows else "B")
        if c.meta["annotator"] == "careful":
            assert [side.evidence for side in found] == [1.0, 1.0]
        else:
            assert "says" not in c.rationale


def test_a_comparison_is_checked_side_by_side(training):
    wrong = 0
    for c in training[:60]:
        a, _, b = c.rationale.partition("Response B:")
        swapped = check_comparison(c, f"Response A:{b} Response B:{a.removeprefix('Response A:')}")
        wrong += swapped[0].verdicts < 1 and swapped[1].verdicts < 1
        assert [side.verdicts for side in check_comparison(c, a)] == [1.0, 0.0]  # nothing is said of B
        assert [side.verdicts for side in check_comparison(c, "")] == [0.0, 0.0]
    assert wrong == 60, "their scores differ, so what is true of one is not of the other"


def test_the_docstring_is_true():
    example = world.examples("test", seed=0, n=1)[0]
    assert example.score in example.rubric.scale
    assert check_rationale(example, example.rationale).verdicts == 1.0
