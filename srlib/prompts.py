"""Example -> prompt; generated text -> Judgment.

A prompt has Prometheus 2's sections (arXiv 2405.01535, appendix): instruction, response, reference answer, rubric,
feedback. The `prometheus` template spells out the task for a general model; the `brief` one has the headings alone, for
a model that learns the task anyway. The tokenizer's own chat template wraps it, where there is one.

A judgment ends in `[RESULT] n`. Only generated text is ever parsed, the verdict is anchored at its end, and what cannot
be read is a named failure with no score:

>>> rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
>>> parse("It greets: pass. [RESULT] 3", rubric)
Parsed(rationale='It greets: pass.', score=3.0, failure=None)
>>> parse("It greets: pass. [RESULT] 7", rubric).failure
'off_scale'
>>> parse("[RESULT] 1 or rather [RESULT] 3", rubric).failure
'two_verdicts'
"""

from __future__ import annotations

import re
from typing import NamedTuple

from srlib.schema import Example, Failure, Rubric, format_score

MARKER = "[RESULT]"

# Longer digit strings than any scale has are not verdicts; the bound also keeps float() cheap on hostile text.
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,9})?"
_VERDICT = re.compile(rf"\[RESULT\][\s:(]*({_NUMBER})")  # wider than _FINAL: whatever may be a second verdict
_FINAL = re.compile(rf"\[RESULT\][ \t]*({_NUMBER})\s*\Z", re.ASCII)  # "\uff14" is a digit, too, but no verdict of ours

_SECTIONS = """\
### Instruction
{instruction}
### Response
{response}
{reference}### Rubric
{rubric}
### Feedback"""

_TASK = """\
### Task
You are given an instruction, a response to it{with_reference} and a rubric with one criterion.
1. Write feedback that assesses the response strictly by the rubric, not in general.
2. After the feedback, write a score that the rubric allows: {scale}.
3. The output looks like this: feedback, then [RESULT] and the score.
4. Write no other opening, closing or explanation.
"""

TEMPLATES = ("brief", "prometheus")


def request(example: Example, template: str = "brief") -> str:
    """What the judge is asked, before any chat template: the sections in order, the reference only where there is one."""
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r} is not one of {', '.join(TEMPLATES)}")
    reference = f"### Reference\n{example.reference_answer}\n" if example.reference_answer else ""
    sections = _SECTIONS.format(
        instruction=example.instruction, response=example.response, reference=reference, rubric=example.rubric.text
    )
    if template == "brief":
        return sections
    scale = ", ".join(map(format_score, example.rubric.scale))
    return _TASK.format(with_reference=", a reference answer" if reference else "", scale=scale) + sections


def prompt_ids(tokenizer, example: Example, template: str = "brief") -> list[int]:
    """Token ids of the whole prompt, chat template and one BOS included."""
    text = request(example, template)
    if tokenizer.chat_template is None:
        return tokenizer(text + "\n")["input_ids"]
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]  # the template wrote the BOS already


def completion_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a judgment and the end-of-sequence token. Prompt and completion are tokenized apart, in training and
    in sampling alike, so the prompt's ids are a prefix of prompt + completion by construction."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def completion(rationale: str | None, score: float) -> str:
    """A judgment as it is trained on: `("Polite: pass.", 4) -> "Polite: pass. [RESULT] 4"`; no rationale, the verdict alone."""
    verdict = f"{MARKER} {format_score(score)}"
    return f"{rationale.strip()} {verdict}" if rationale and rationale.strip() else verdict


class Parsed(NamedTuple):
    rationale: str
    score: float | None
    failure: Failure | None


def parse(text: str, rubric: Rubric, finished: bool = True) -> Parsed:
    """Read a judgment. `finished` is False where generation stopped at its length limit: then there is no score, even if
    the text happens to end in one."""
    verdicts = {float(v) for v in _VERDICT.findall(text)}
    final = _FINAL.search(text)
    if not finished:
        return Parsed(text.strip(), None, "cut_off")
    if final is None:
        return Parsed(text.strip(), None, "no_verdict")
    rationale, score = text[: final.start()].strip(), float(final.group(1))
    if len(verdicts) > 1:
        return Parsed(rationale, None, "two_verdicts")
    if score not in rubric.scale:
        return Parsed(rationale, None, "off_scale")
    return Parsed(rationale, score, None)
