"""The rows everything passes on: Rubric, Example, Comparison, Judgment, Pair.

Ground floor: imports nothing of ours. All rows are immutable pydantic models, so that a wrong value is refused where it
enters and names its field. A scale is carried by the rubric; nothing here assumes 1-5.

>>> rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
>>> rubric.scale
(1.0, 2.0, 3.0)
>>> print(rubric.text)
[Is it polite?]
Score 1: rude
Score 2: neutral
Score 3: kind
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
MAX_CHARACTERS = 100_000  # a longer text in one field is a mistake in the file, not something to judge

Failure = Literal["no_verdict", "two_verdicts", "off_scale", "cut_off", "too_long"]
Preference = Literal["A", "B", "tie"]
Verdict = float | Preference  # what a judgment ends in: the score of a response, or which of two responses is better
PREFERENCES: tuple[Preference, ...] = ("A", "B", "tie")
OTHER_WAY: dict[Preference, Preference] = {
    "A": "B",
    "B": "A",
    "tie": "tie",
}  # the same verdict on the swapped responses


class SrlibError(Exception):
    """Base of every error that srlib raises on purpose: its message says what is wrong, where, and what to do.

    `exit_status` is what the command line ends with: 2 if it refused before anything ran, 1 if something failed while running.
    """

    exit_status = 2


def format_score(score: float) -> str:
    """A score as it is written in prompts and verdicts: `4.0 -> "4"`, `2.5 -> "2.5"`, `0.25 -> "0.25"`."""
    return f"{score:.6f}".rstrip("0").rstrip(".")


class Row(BaseModel):
    """What every row has in common: immutable, no unknown fields, no NaN, no text of a megabyte."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=MAX_CHARACTERS)


class Rubric(Row):
    """One criterion and what the scores mean.

    `levels` maps a score to its description, at least two of them; a list is read as scores 1, 2, 3, ... Without `step`
    only the described scores exist. With `step`, every multiple of it between the lowest and the highest level does:
    `Rubric(criterion="...", levels={0: "wrong", 2.5: "complete"}, step=0.25)` has eleven scores.
    """

    criterion: str = Field(min_length=1)
    levels: dict[float, str]
    step: float | None = Field(default=None, gt=0)

    @field_validator("levels", mode="before")
    @classmethod
    def _list_counts_from_one(cls, levels: Any) -> Any:
        if isinstance(levels, list | tuple):
            return dict(enumerate(levels, start=1))
        if isinstance(levels, Mapping):  # "1" and "1.0" are one score, and the later text would win
            named = [str(name) for name in levels]
            numbers = [float(name) for name in named if _NUMBER.fullmatch(name)]
            twice = [n for n in numbers if numbers.count(n) > 1]
            if twice:
                raise ValueError(f"score {format_score(twice[0])} has two levels; keep one")
        return levels

    @model_validator(mode="after")
    def _check(self) -> Rubric:
        if len(self.levels) < 2:
            raise ValueError("a rubric needs at least two levels (score -> description)")
        if any(not math.isfinite(score) for score in self.levels):
            raise ValueError("a level's score must be a finite number")
        if self.step is not None and (max(self.levels) - min(self.levels)) / self.step >= 1000:
            raise ValueError(f"step {self.step} makes a scale of more than 1000 scores")
        off = [s for s in self.levels if s not in self.scale]
        if off:
            raise ValueError(f"level {off[0]} is not on the scale that step {self.step} makes")
        return self

    @field_serializer("levels")
    def _plain_keys(self, levels: dict[float, str]) -> dict[str, str]:
        return {format_score(score): text for score, text in sorted(levels.items())}

    @property
    def scale(self) -> tuple[float, ...]:
        """Every score that exists under this rubric, ascending."""
        if self.step is None:
            return tuple(sorted(self.levels))
        low, high = min(self.levels), max(self.levels)
        return tuple(round(low + i * self.step, 6) for i in range(int((high - low) / self.step + 1e-6) + 1))

    @property
    def text(self) -> str:
        """The rubric in Prometheus form, as it stands in a prompt (arXiv 2405.01535)."""
        lines = [f"Score {format_score(score)}: {text}" for score, text in sorted(self.levels.items())]
        if self.step is not None:
            lines.append(f"Scores go in steps of {format_score(self.step)}.")
        return "\n".join([f"[{self.criterion}]", *lines])


def _refuse_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _cluster(item: Example | Comparison) -> str:
    """What stands or falls together with it: its group, or else all that has its instruction."""
    return item.group or item.instruction


class Example(Row):
    """One thing to judge, with the gold rationale and score where a person gave them.

    `group` names what must stay in one split (all responses to one instruction, say). `meta` is for the source's own
    columns; no code below the notebooks reads it, except `world.py`, which wrote it, and `slices.features`, which is
    given it by name.
    """

    id: str = Field(min_length=1)
    instruction: str = Field(min_length=1)
    response: str = Field(min_length=1)
    rubric: Rubric
    reference_answer: str | None = None
    rationale: str | None = None
    score: float | None = None
    group: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)
    cluster = property(_cluster)

    _not_blank = field_validator("instruction", "response")(_refuse_blank)

    @model_validator(mode="after")
    def _score_on_scale(self) -> Example:
        if self.score is not None and self.score not in self.rubric.scale:
            scale = ", ".join(map(format_score, self.rubric.scale))
            raise ValueError(f"score {format_score(self.score)} is not on the rubric's scale ({scale})")
        return self

    @property
    def gold(self) -> float | None:
        """The verdict that a judgment of it should end in."""
        return self.score

    @property
    def verdicts(self) -> tuple[float, ...]:
        """Every verdict that a judgment of it can end in."""
        return self.rubric.scale


class Comparison(Row):
    """Two responses to one instruction under one rubric, and which is better (None: nobody said)."""

    id: str = Field(min_length=1)
    instruction: str = Field(min_length=1)
    response_a: str = Field(min_length=1)
    response_b: str = Field(min_length=1)
    rubric: Rubric
    preference: Preference | None
    reference_answer: str | None = None
    rationale: str | None = None  # why the preferred one is better, where a person or a model wrote it
    group: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)
    cluster = property(_cluster)

    _not_blank = field_validator("instruction", "response_a", "response_b")(_refuse_blank)

    @property
    def gold(self) -> Preference | None:
        """The verdict that a judgment of it should end in."""
        return self.preference

    @property
    def verdicts(self) -> tuple[Preference, ...]:
        """Every verdict that a judgment of it can end in."""
        return PREFERENCES

    def swapped(self) -> Comparison:
        """A and B exchanged, as `<id>#swapped`. The rationale, and what `meta` holds, speak of the given order: left out."""
        return Comparison(
            id=f"{self.id}#swapped",
            instruction=self.instruction,
            response_a=self.response_b,
            response_b=self.response_a,
            rubric=self.rubric,
            preference=None if self.preference is None else OTHER_WAY[self.preference],
            reference_answer=self.reference_answer,
            group=self.group,
        )

    def sides(self) -> tuple[Example, Example]:
        """The two pointwise examples, `<id>#A` and `<id>#B`, for a judge that scores one response at a time."""
        shared = dict(instruction=self.instruction, rubric=self.rubric, reference_answer=self.reference_answer)
        return (
            Example(id=f"{self.id}#A", response=self.response_a, **shared),
            Example(id=f"{self.id}#B", response=self.response_b, **shared),
        )


Item = Example | Comparison  # what there is to judge: one response, or two


class Judgment(Row):
    """What a judge wrote about one example, or about one comparison, and what it came to: a score, a preference, or, where
    that cannot be read, a named `failure`. It has exactly one of the three; a failure is never turned into a verdict."""

    example_id: str
    index: int = 0  # which of the N draws; 0 for a greedy judgment
    text: str  # the generated text alone, nothing of the prompt
    rationale: str = ""
    score: float | None = None  # of one response
    preference: Preference | None = None  # between two
    failure: Failure | None = None
    tokens: int = 0  # generated tokens
    prompt_tokens: int = 0
    logprob: float | None = None  # mean log-probability of a generated token, in nats
    distribution: dict[float, float] | None = (
        None  # score -> probability, after the rationale, given that it is on the scale
    )
    on_scale: float | None = None  # the probability of that: what is missing to 1 is none of the rubric's scores
    preference_probability: dict[Preference, float] | None = None  # the same of A, B and tie

    @model_validator(mode="after")
    def _one_outcome(self) -> Judgment:
        if (self.score, self.preference, self.failure).count(None) != 2:
            raise ValueError("a judgment has either a score or a preference or a named failure")
        return self

    @field_serializer("distribution")
    def _plain_keys(self, distribution: dict[float, float] | None) -> dict[str, float] | None:
        return None if distribution is None else {format_score(s): round(p, 6) for s, p in distribution.items()}

    @property
    def verdict(self) -> Verdict | None:
        """The score or the preference, None where the parse failed."""
        return self.preference if self.score is None else self.score

    @property
    def id(self) -> str:
        return f"{self.example_id}#{self.index}"

    @property
    def expected_score(self) -> float | None:
        """Mean of the score's distribution after the rationale: `{3: .5, 4: .5} -> 3.5`; the score itself without one."""
        if self.distribution is None:
            return self.score
        return sum(score * p for score, p in self.distribution.items())


class Pair(Row):
    """A preference pair between two judgments of one example, with its provenance (docs: where every field came from).

    Of a comparison, the "scores" are the preferences that the judgments end in, and there is no margin.
    """

    id: str
    example_id: str
    chosen: str  # generated text of the preferred judgment
    rejected: str
    chosen_id: str
    rejected_id: str
    chosen_score: Verdict
    rejected_score: Verdict | None
    gold: Verdict | None  # what a person said, if anybody did
    margin: float | None  # |rejected_score - chosen_score|, None between two preferences
    strategy: str
    iteration: int
