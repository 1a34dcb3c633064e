"""Which rows go through the model together: every row once, prompts whole, parts within the budget. No torch."""

import warnings
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlib import batches


def cost(rows):
    return 10 * len(rows)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    batch_size=st.integers(1, 24),
    seed=st.integers(0, 3),
    budget=st.none() | st.integers(10, 120),
)
def test_an_epoch_has_every_row_once_in_equally_many_parts(sizes, batch_size, seed, budget):
    groups = batches.by_prompt([i for i, n in enumerate(sizes) for _ in range(n)])
    n = sum(sizes)
    steps = -(-n // batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = batches.layout(groups, range(n), cost, batch_size=batch_size, steps=steps, seed=seed, budget=budget)
    assert all(made.parts)
    assert len(made.parts) == steps * made.per_step
    assert Counter(i for part in made.parts for i in part) == Counter(range(n))
    if made.per_step == 1 and budget is None:
        for part in made.parts:  # a prompt's rows are one behind the other
            owners = [next(g for g, group in enumerate(groups) if i in group) for i in part]
            assert len([o for i, o in enumerate(owners) if i == 0 or owners[i - 1] != o]) == len(set(owners))


def test_several_epochs_differ_and_a_seed_repeats():
    groups = batches.by_prompt(range(40))
    layout = [batches.layout(groups, [5] * 40, cost, batch_size=8, steps=10, seed=s) for s in (0, 0, 1)]
    assert layout[0] == layout[1] != layout[2]
    first, second = layout[0].parts[:5], layout[0].parts[5:]
    assert sorted(i for part in first for i in part) == sorted(i for part in second for i in part) == list(range(40))
    assert first != second


def test_prompts_of_similar_length_meet():
    lengths = [i % 2 * 100 + 10 for i in range(64)]
    made = batches.layout(batches.by_prompt(range(64)), lengths, cost, batch_size=8, steps=8, seed=0)
    assert [len({lengths[i] for i in part}) for part in made.parts] == [1] * 8


def test_a_step_over_the_budget_goes_in_parts_of_whole_prompts():
    groups = batches.by_prompt([i // 3 for i in range(48)])
    made = batches.layout(groups, [5] * 48, cost, batch_size=24, steps=2, seed=0, budget=60)
    assert made.per_step == 4
    assert all(len(part) == 6 and {i // 3 for i in part} == {part[0] // 3, part[3] // 3} for part in made.parts)


def test_few_prompts_a_step_are_named():
    groups = batches.by_prompt([i // 4 for i in range(64)])
    with pytest.warns(UserWarning, match=r"8 rows holds 2\.0 prompts.*batch size to 32"):
        batches.layout(groups, [5] * 64, cost, batch_size=8, steps=8, seed=0)


def test_a_budget_that_cannot_be_kept_is_named():
    """Steps have equally many parts, and the last one has a single row."""
    groups = batches.by_prompt([0] * 16 + [1] * 16 + [2])
    with pytest.warns(UserWarning, match=r"budget of 5 tokens.*raise the batch size"):
        batches.layout(groups, [5] * 33, cost, batch_size=16, steps=3, seed=0, budget=5)
