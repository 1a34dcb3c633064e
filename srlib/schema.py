"""The rows that everything else reads and writes: Rubric, Example, Comparison, Judgment, Pair.

Rows are immutable; pydantic refuses a bad value and names its field. The rubric defines the scale: nothing assumes 1 to 5.

>>> rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
>>> rubric.scale
(1.0, 2.0, 3.0)
>>> rubric.text.splitlines()
['[Is it polite?]', 'Score 1: rude', 'Score 2: neutral', 'Score 3: kind']"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator

Value = TypeVar("Value")
MAX_CHARACTERS = 100_000  # a longer text in one field is an error in the file, not something to judge

Failure = Literal["no_verdict", "two_verdicts", "off_scale", "cut_off", "too_long", "refused", "tool_call"]
Preference = Literal["A", "B", "tie"]
Verdict = float | Preference  # the score of one response, or the better of two
PREFERENCES: tuple[Preference, ...] = ("A", "B", "tie")
OTHER_WAY: dict[Preference, Preference] = {"A": "B", "B": "A", "tie": "tie"}  # after swapping the two responses


class SrlibError(Exception):
    """Base of the errors that srlib raises on purpose. `exit_status`: 2 before anything ran, 1 after a failed run."""

    exit_status = 2


def rounded(score: float) -> float:
    """A score as rows keep it, to six decimals and never -0: `1 / 3 -> 0.333333`, `0.1 + 0.2 -> 0.3`."""
    return round(score, 6) + 0.0


def format_score(score: float) -> str:
    """A score as prompts and judgments spell it: `4.0 -> "4"`, `2.5 -> "2.5"`, `1 / 3 -> "0.333333"`."""
    return f"{rounded(score):.6f}".rstrip("0").rstrip(".")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _spell_scores(by_score: dict[float, Any]) -> dict[str, Any]:
    return {format_score(s): round(v, 6) if isinstance(v, float) else v for s, v in sorted(by_score.items())}


Text = Annotated[str, AfterValidator(_not_blank)]
Score = Annotated[float, AfterValidator(rounded)]
ByScore = Annotated[dict[Score, Value], PlainSerializer(_spell_scores)]  # JSON has only strings for keys: "4", "2.5"


class Row(BaseModel):
    """Settings of all rows: immutable, no unknown fields, no NaN, no text longer than MAX_CHARACTERS."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=MAX_CHARACTERS)


class Rubric(Row):
    """One criterion, and `levels`: score -> description, at least two; a list describes the scores 1, 2, 3, ... With
    `step`, scores lie between the levels, too: `levels={0: "wrong", 2.5: "complete"}, step=0.25` makes eleven."""

    criterion: Text
    levels: ByScore[str]
    step: float | None = Field(default=None, gt=0)

    @field_validator("levels", mode="wrap")
    @classmethod
    def _read_levels(cls, levels: Any, validate: Callable[[Any], dict[float, str]]) -> dict[float, str]:
        scores = validate(dict(enumerate(levels, start=1)) if isinstance(levels, list | tuple) else levels)
        if len({*map(format_score, scores)}) < len(levels):  # JSON may hold both "1" and "1.0"
            raise ValueError(f"two of the scores {', '.join(map(str, levels))} are equal; keep one")
        return scores

    @model_validator(mode="after")
    def _check_scale(self) -> Rubric:
        if len(self.levels) < 2 or not all(map(math.isfinite, self.levels)):
            raise ValueError("a rubric needs at least two levels (score -> description), with finite scores")
        if self.step is not None and (max(self.levels) - min(self.levels)) / self.step >= 1000:
            raise ValueError(f"step {self.step} makes a scale of more than 1000 scores; set `score_step` for a range")
        off_scale = [score for score in self.levels if score not in self.scale]
        if off_scale:
            raise ValueError(f"level {off_scale[0]} is not on the scale that step {self.step} makes")
        return self

    @property
    def scale(self) -> tuple[float, ...]:
        """All scores of this rubric, ascending."""
        if self.step is None:
            return tuple(sorted(self.levels))
        low, high = min(self.levels), max(self.levels)
        n = round((high - low) / self.step)
        if abs(high - low - n * self.step) <= n * 1e-6:  # 0.333333 is a third
            return tuple(rounded(low + i * (high - low) / n) for i in range(n + 1))
        return tuple(rounded(low + i * self.step) for i in range(int((high - low) / self.step) + 1))

    @property
    def text(self) -> str:
        """The rubric as a prompt shows it, in the form of Prometheus (arXiv 2405.01535)."""
        lines = [f"Score {format_score(score)}: {text}" for score, text in sorted(self.levels.items())]
        steps = [f"Scores go in steps of {format_score(self.step)}."] if self.step is not None else []
        return "\n".join([f"[{self.criterion}]", *lines, *steps])


class _ItemFields(Row):
    """Fields that Example and Comparison share. `meta` belongs to the row; srlib reads only a few of its keys."""

    id: str = Field(min_length=1)
    instruction: Text
    rubric: Rubric
    reference_answer: str | None = None
    rationale: str | None = None  # a gold rationale, written by a person or by a stronger model
    group: str | None = None  # items of one group stay in one split
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """Unit of the bootstrap and of the splits: the group, else the instruction."""
        return self.group or self.instruction

    @property
    def gold(self) -> Verdict | None:
        """The right verdict: the score of an example, the preference of a comparison, None if unknown."""
        return self.preference if isinstance(self, Comparison) else self.score

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All possible verdicts."""
        return PREFERENCES if isinstance(self, Comparison) else self.rubric.scale

    @property
    def ratings(self) -> list[Verdict]:
        """The verdicts of two or more annotators, from meta["ratings"] without its nulls; [] if any is no possible verdict."""
        given = [verdict for verdict in self._rated if verdict is not None]
        return given if len(given) > 1 else []

    @property
    def annotated(self) -> list[tuple[Verdict, str | None]]:
        """Verdict and rationale of each annotator who gave a verdict, from meta["ratings"] and meta["rationales"], lists of
        equal length; [] unless both fit."""
        rated, texts = self._rated, self.meta.get("rationales")
        fit = isinstance(texts, list) and len(texts) == len(rated) and all(isinstance(t, str | None) for t in texts)
        return [(v, text) for v, text in zip(rated, texts, strict=True) if v is not None] if fit else []

    @property
    def _rated(self) -> list[Verdict | None]:
        given = self.meta.get("ratings")
        given = [rounded(v) if isinstance(v, float) else v for v in given] if isinstance(given, list) else []
        return given if all(v is None or (type(v) is not bool and v in self.verdicts) for v in given) else []


class Example(_ItemFields):
    """One response to judge, with its gold score if there is one."""

    response: Text
    score: Score | None = None

    @model_validator(mode="after")
    def _check_score(self) -> Example:
        if self.score is not None and self.score not in self.rubric.scale:
            scale = [*map(format_score, self.rubric.scale)]
            scale = ", ".join([*scale[:3], "...", scale[-1]] if len(scale) > 11 else scale)
            raise ValueError(f"score {format_score(self.score)} is not on the rubric's scale ({scale})")
        return self


class Comparison(_ItemFields):
    """Two responses to one instruction under one rubric, and the better one (None: unknown)."""

    response_a: Text
    response_b: Text
    preference: Preference | None

    def swapped(self) -> Comparison:
        """A and B exchanged, as `<id>#swapped`; without rationale and `meta`, which refer to the original order."""
        other = self.preference and OTHER_WAY[self.preference]
        responses = dict(response_a=self.response_b, response_b=self.response_a, preference=other)
        return self.model_copy(update=dict(id=f"{self.id}#swapped", **responses, rationale=None, meta={}))

    def sides(self) -> tuple[Example, Example]:
        """Both responses as examples, `<id>#A` and `<id>#B`, for a judge that scores one response at a time."""
        shared = dict(instruction=self.instruction, rubric=self.rubric, reference_answer=self.reference_answer)
        a = Example(id=f"{self.id}#A", response=self.response_a, **shared)
        return a, Example(id=f"{self.id}#B", response=self.response_b, **shared)


Item = Example | Comparison


class Judgment(Row):
    """One generated judgment of an item and its only outcome: a score, a preference, or the reason why there is neither."""

    example_id: str  # id of the example or comparison
    index: int = 0  # number of the sample; 0 for a greedy judgment
    text: str  # the generated text only, without the prompt
    rationale: str = ""
    score: Score | None = None
    preference: Preference | None = None
    failure: Failure | None = None
    tokens: int = 0  # generated tokens
    prompt_tokens: int = 0
    logprob: float | None = None  # mean log-probability of a generated token, in nats
    distribution: ByScore[float] | None = None  # P(score | prompt, rationale), normalised over the scale
    on_scale: float | None = None  # mass of the scale before normalising
    preference_probability: dict[Preference, float] | None = None  # the same for A, B and tie

    @model_validator(mode="after")
    def _check_outcome(self) -> Judgment:
        if (self.score, self.preference, self.failure).count(None) != 2:
            raise ValueError("a judgment has either a score or a preference or a named failure")
        return self

    @property
    def verdict(self) -> Verdict | None:
        """The score or the preference; None after a failure."""
        return self.preference if self.score is None else self.score

    @property
    def id(self) -> str:
        return f"{self.example_id}#{self.index}"

    @property
    def expected_score(self) -> float | None:
        """Mean of the distribution, `{3: .5, 4: .5} -> 3.5`; the score itself if there is no distribution."""
        if self.distribution is None:
            return self.score
        return sum(score * p for score, p in self.distribution.items())


class Pair(Row):
    """A preference pair of two judgments of one item, with its provenance. Between two preferences there is no margin.
    `chosen_id` and `rejected_id` name the two judgments whatever the kind: `cot` compares their texts, `verdict` their
    verdicts alone, and `deduction` the response that was judged with one written from the chosen judgment."""

    id: str
    example_id: str
    kind: Literal["cot", "verdict", "deduction"] = "cot"
    rationale: str | None = None  # of the chosen judgment, which the prompt of a deduction shows
    chosen: str  # generated text of the chosen judgment
    rejected: str
    chosen_id: str
    rejected_id: str
    chosen_score: Verdict
    rejected_score: Verdict | None
    gold: Verdict | None  # the item's gold score or preference
    margin: float | None  # |rejected_score - chosen_score|
    strategy: str
    iteration: int
