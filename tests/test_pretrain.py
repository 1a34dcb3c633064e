"""The base model has read nothing of the splits: no prompt, no random stream, no hasty sentence, no held-out combination."""

import importlib.util
import itertools
import random
import re
from pathlib import Path

import pytest

from srlib import config as params
from srlib.data import lexicon, world

SPLITS = ("train", "validation", "test", "ood")
N = 3000


@pytest.fixture(scope="module")
def pretrain():
    path = Path(__file__).parent.parent / "scripts" / "pretrain.py"
    spec = importlib.util.spec_from_file_location("pretrain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(pretrain):
    """The first (prompt, completion) that the shipped model was trained on."""
    rng = random.Random("world pretraining 0")
    return [pretrain.text(rng) for _ in range(N)]


@pytest.fixture(scope="module")
def judgments(texts):
    return [(prompt, completion) for prompt, completion in texts if prompt.endswith("### Feedback\n")]


def task_and_response(instruction: str, response: str) -> str:
    return f"### Instruction\n{instruction}\n### Response\n{response}\n### Reference\n"


def test_the_mixture_is_what_the_script_says(pretrain, texts, judgments):
    documents = [completion for prompt, completion in texts if not prompt]
    notes = [prompt for prompt, _ in texts if prompt.endswith("### Notes\n")]
    assert len(documents) + len(notes) + len(judgments) == N
    assert abs(len(documents) / N - pretrain.DOCUMENTS) < 0.02
    assert abs(len(notes) / N - pretrain.NOTES) < 0.04
    assert all(re.search(r"\[RESULT\] [1-5]$", completion) for _, completion in judgments)


def test_no_task_and_response_of_any_split_was_read(texts):
    """Stricter than whole prompts: instruction and response together, under whatever rubric, over five seeds."""
    sizes = {name: field.default for name, field in params.FIELDS.items() if name.startswith("n_")}
    read = {prompt.split("### Reference\n")[0] + "### Reference\n" for prompt, _ in texts if prompt}
    assert len(read) > 0.9 * N
    asked = {}
    for seed in range(5):
        for split in SPLITS:
            for e in world.examples(split, seed, sizes[f"n_{split}"]):
                asked[task_and_response(e.instruction, e.response)] = e.id
        for c in world.comparisons(seed, sizes["n_pairwise"]):
            asked |= {task_and_response(e.instruction, e.response): e.id for e in c.sides()}
    assert len(asked) > 0.99 * 5 * (sum(sizes[f"n_{split}"] for split in SPLITS) + 2 * sizes["n_pairwise"])
    assert [name for key, name in asked.items() if key in read] == []


def test_the_streams_are_disjoint(pretrain, monkeypatch):
    seeds: list[str] = []

    class Recorded(random.Random):
        def __init__(self, seed=None):
            seeds.append(seed)
            super().__init__(seed)

    class Tokenizer:
        all_special_tokens, added_tokens_decoder = (), {}
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [3] * len(text.split())}

    monkeypatch.setattr(random, "Random", Recorded)
    for seed in range(5):
        next(pretrain.batches(Tokenizer(), seed, batch_size=1))
    pretraining, seeds[:] = set(seeds), []
    for seed in range(5):
        for split in SPLITS:
            world.examples(split, seed, 1)
        world.comparisons(seed, 1)
    assert pretraining == {f"world pretraining {seed}" for seed in range(5)}
    assert len(set(seeds)) == len(seeds) == 25
    assert not pretraining & set(seeds)


def test_no_annotator_is_hasty(texts):
    labels = {label for attributes in lexicon.ATTRIBUTES.values() for label in attributes}
    labels |= {*lexicon.POSITIONS, *lexicon.TONE, *lexicon.FORMAT}
    hasty = re.compile(rf"\bThe (?:{'|'.join(sorted(labels))}): (?:pass|fail)\.")
    gold = [e.rationale for e in world.examples("train", 0, 50, care=0.0)]
    assert all(len(hasty.findall(rationale)) == 4 for rationale in gold)  # the pattern finds what it is for
    assert [completion for _, completion in texts if hasty.search(completion)] == []


def test_no_held_out_combination_topic_or_template(texts, judgments):
    criteria = {question.split(":")[0]: name for name, questions in lexicon.CRITERIA.items() for question in questions}
    combinations = set()
    for prompt, _ in judgments:
        line = re.search(r"### Rubric\n\[(.*)\]\n", prompt)[1]
        combinations.add(tuple(criteria[word] for word in re.findall(r"([A-Z][a-z]+):", line)))
    assert combinations == {(name,) for name in lexicon.CRITERIA} | set(lexicon.COMBINATIONS)
    for one, other in itertools.chain(lexicon.COMBINATIONS_HELD_OUT):
        assert not {(one, other), (other, one)} & combinations
    held_out = {topic for _, topics in lexicon.TOPICS.values() for topic in topics.split()}
    for prompt, _ in texts:
        instruction = prompt.removeprefix("### Instruction\n").split("\n")[0]
        assert not held_out & set(re.findall(r"[a-z]+", prompt.lower()))
        assert not instruction.startswith(("Our ", "Could you"))


def test_one_verdict_in_ten_is_wrong(pretrain):
    rng = random.Random(0)
    cases = [world.draw_case(rng) for _ in range(400)]
    pairs = [(check, pretrain.noisy(rng, case, check)) for case in cases for check in case.checks]
    wrong = [(before, after) for before, after in pairs if before["ok"] != after["ok"]]
    assert abs(len(wrong) / len(pairs) - pretrain.NOISE) < 0.025
    assert all(before == after for before, after in pairs if before["ok"] == after["ok"])
    assert all(after["found"] for _, after in wrong if after["criterion"] == "completeness" and after["ok"])
