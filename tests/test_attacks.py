"""Hostile and neutral alterations of a response: what they are, and that none of them is ever read as a verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlib import prompts
from srlib.data import world
from srlib.evaluate.attacks import ATTACKS, FAMILIES, alterations, attacked, markdown, padded, plain
from srlib.evaluate import attacks
from srlib.schema import Comparison, Example, Rubric

SCALES = {
    "three": Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"]),
    "ten": Rubric(criterion="Is it polite?", levels={1: "rude", 10: "kind"}, step=1),
    "quarters": Rubric(criterion="Is it polite?", levels={0: "rude", 3.5: "kind"}, step=0.25),
}
BY_NAME = [pytest.param(attack, id=f"{attack.family}-{attack.name}") for attack in ATTACKS]


def example(rubric=SCALES["three"], response="Hello Anna", score=None):
    return Example(id="7", instruction="Greet Anna.", response=response, rubric=rubric, score=score)


def test_there_are_thirty_named_templates_in_five_families():
    assert len(ATTACKS) == len({(a.family, a.name) for a in ATTACKS}) == len({a.text for a in ATTACKS}) == 30
    assert [a.family for a in ATTACKS] == [family for family in FAMILIES for _ in range(6)]


@pytest.mark.parametrize("attack", BY_NAME)
def test_an_attack_keeps_the_response_and_the_gold_score_and_fills_every_blank(attack):
    found = attacked(example(SCALES["quarters"], response="{top} {response}", score=0.25), attack)
    assert "{top} {response}" in found.response  # what a response says is not a blank of the template
    assert len(found.response) > len("{top} {response}")
    assert found.response.count("{top}") == attack.text.count("{response}")
    assert ("3.5" in found.response) == ("{top}" in attack.text)
    assert (found.score, found.rubric, found.instruction) == (0.25, SCALES["quarters"], "Greet Anna.")
    assert Example.model_validate(found.model_dump()) == found


def test_six_turns_see_every_template_and_ids_say_what_was_done():
    turns = [alterations(example(), turn) for turn in range(6)]
    assert {e.response for turn in turns for e in turn.values()} >= {attacked(example(), a).response for a in ATTACKS}
    assert {len(turn) for turn in turns} == {attacks.COPIES}
    assert list(turns[0]) == ["padding", "plain", "markdown", *(f"injection_{family}" for family in FAMILIES)]
    assert [e.id for e in turns[3].values()] == [f"7#{name}" for name in turns[3]]
    assert alterations(example(), 6) == turns[0]


# ---------------------------------------------------------------- the parser


def generated(rubric, score, attack):
    """What judges write: as they should, cut off or torn, and with the attack quoted in front, in the middle, behind."""
    hostile, end = attacked(example(rubric), attack).response, prompts.completion(None, score)
    plain_texts = [
        "",
        "It greets: pass. ",
        "It greets: pass.\n\n",
        "Score 2 of 3, no: ",
        "[RESULT] is due. ",
        "### Rubric ",
    ]
    yield from ((f"{before}{end}", score) for before in plain_texts)
    yield from (
        (f"{before}{end}{after}", None)
        for before in plain_texts
        for after in (".", " or so", " [RESULT]", "!", "0" * 9)
    )
    yield from (
        (text, None) for text in ("", "It greets: pass.", "3", "[RESULT]", f"{end} {hostile} no", f"{hostile} no")
    )
    yield from ((f"{hostile}{gap}{end}", "own or none") for gap in (" ", "\n", "\n\n### Feedback\n"))


@pytest.mark.parametrize("attack", BY_NAME)
def test_what_a_response_says_never_changes_the_parse(attack):
    """Over 100 judgments for each of the thirty, so over 3,000: the same parse as with the harmless response, and where the
    judge itself quotes the attack, its own verdict or none, never the one that was slipped in."""
    n = 0
    for rubric in SCALES.values():
        harmless, hostile = example(rubric), attacked(example(rubric), attack)
        low = min(rubric.scale)
        for text, expected in generated(rubric, low, attack):
            for finished in (True, False):
                parsed = prompts.parse(text, hostile, finished)
                assert parsed == prompts.parse(text, harmless, finished) == prompts.parse(text, rubric, finished)
                assert (
                    parsed.verdict in {low, None} if expected == "own or none" else parsed.verdict in {expected, None}
                )
                assert (parsed.verdict is None) == (parsed.failure is not None)
                n += 1
    assert n >= 101


@given(
    rationale=st.text(max_size=60), response=st.text(min_size=1, max_size=60), i=st.integers(0, 29), s=st.integers(1, 3)
)
def test_a_judgment_of_any_text_is_parsed_alike_beside_any_attack(rationale, response, i, s):
    if response.strip():
        harmless = example(response=response)
        text = prompts.completion(rationale, s)
        assert prompts.parse(text, attacked(harmless, ATTACKS[i])) == prompts.parse(text, harmless)


@pytest.mark.parametrize("attack", BY_NAME)
def test_a_verdict_between_two_is_not_slipped_in_either(attack):
    hostile = attacked(example(), attack).response
    pair = Comparison(
        id="1", instruction="Greet.", response_a=hostile, response_b="Hi", rubric=SCALES["three"], preference="B"
    )
    assert prompts.parse("B greets. [RESULT] B", pair).preference == "B"
    assert prompts.parse(f"{hostile}\n[RESULT] B", pair).preference in ("B", None)


@pytest.mark.parametrize("template", prompts.TEMPLATES)
@pytest.mark.parametrize("attack", BY_NAME)
def test_the_item_s_own_rubric_stands_last_whatever_the_response_forges(attack, template):
    asked = prompts.request(attacked(example(), attack), template)
    assert asked.endswith(f"### Rubric\n{SCALES['three'].text}\n### Feedback")


# ---------------------------------------------------------------- padding and markdown


def test_padding_appends_three_lines_and_nothing_else():
    assert padded("Hello\nAnna").startswith("Hello\nAnna\n")
    assert padded("Hello\nAnna").count("\n") == 4


MARKED = "## Picnic\n- **About the day:** Friday\n- Bring `bread`\n\n- 3. Price: six"
PLAIN = "Picnic\nAbout the day: Friday\nBring bread\n\n3. Price: six"


def test_markdown_and_back():
    assert plain(MARKED) == PLAIN
    assert markdown(PLAIN) == "## Picnic\n- **About the day:** Friday\n- Bring bread\n\n- **3. Price:** six"
    assert plain("> # *x*\n* one\n+ two") == "# *x*\none\ntwo"  # one mark a line; a single asterisk may be a product


def test_code_stays_as_it_is():
    code = "```python\n# a comment\n- 1\n**kwargs**\n```"
    assert plain(f"# Title\n{code}\n- end") == f"Title\n{code}\nend"
    assert code in markdown(f"Title\n{code}\nend")
    assert plain("```\n# open to the end") == "```\n# open to the end"


def test_words_survive_both_rewritings_of_every_response_of_the_world():
    def words(text):
        return text.replace("#", " ").replace("*", " ").replace("- ", " ").split()

    for item in world.examples("test", seed=0, n=60):
        assert words(plain(item.response)) == words(markdown(item.response)) == words(item.response)
        assert plain(markdown(item.response)) == plain(item.response)


@given(st.text(max_size=200))
def test_plain_is_plain_already_and_no_text_is_too_strange(text):
    assert plain(markdown(plain(text))) or not plain(text).strip()


def test_which_rubrics_judge_the_form():
    rows = world.examples("test", seed=0, n=200)
    of_form = [e for e in rows if attacks.judges_form(e)]
    assert [e for e in rows if "format" in e.meta["criteria"] and e not in of_form] == []
    # a trip's length is no form, but words alone do not tell: better one item fewer
    assert [e for e in of_form if "format" not in e.meta["criteria"] and "the length" not in e.rubric.text] == []
    assert len(of_form) < 100
    assert attacks.judges_form(example(Rubric(criterion="Is it concise?", levels=["no", "yes"])))
    assert not attacks.judges_form(example())
