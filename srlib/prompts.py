"""Example -> prompt; generated text -> Judgment.

A prompt has Prometheus 2's sections (arXiv 2405.01535, appendix): instruction, response, reference answer, rubric,
feedback; that of a comparison has two responses. The `prometheus` template spells out the task for a general model; the
`brief` one has the headings alone, for a model that learns the task anyway. The tokenizer's own chat template wraps it,
where there is one.

A judgment ends in `[RESULT] n`, that of a comparison in `[RESULT] A`, `B` or `tie`. Only generated text is ever parsed,
the verdict is anchored at its end, and what cannot be read is a named failure with no verdict:

>>> rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
>>> parse("It greets: pass. [RESULT] 3", rubric)
Parsed(rationale='It greets: pass.', verdict=3.0, failure=None)
>>> parse("It greets: pass. [RESULT] 7", rubric).failure
'off_scale'
>>> parse("[RESULT] 1 or rather [RESULT] 3", rubric).failure
'two_verdicts'
"""

from __future__ import annotations

import re
from typing import NamedTuple

from srlib.schema import PREFERENCES, Comparison, Failure, Item, Preference, Rubric, Verdict, format_score

MARKER = "[RESULT]"

# Longer digit strings than any scale has are not verdicts; the bound also keeps float() cheap on hostile text.
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,9})?"
_VERDICT = re.compile(rf"\[RESULT\][\s:(]*({_NUMBER})")  # wider than _FINAL: whatever may be a second verdict
_FINAL = re.compile(rf"\[RESULT\][ \t]*({_NUMBER})\s*\Z", re.ASCII)  # "\uff14" is a digit, too, but no verdict of ours
_ANY_PREFERENCE = re.compile(rf"\[RESULT\][\s:(]*(?:response\s+)?({_NUMBER}|(?:a|b|tie)(?!\w))", re.IGNORECASE)
_FINAL_PREFERENCE = re.compile(rf"\[RESULT\][ \t]*({'|'.join(PREFERENCES)})\s*\Z", re.ASCII)

_SECTIONS = """\
### Instruction
{instruction}
{responses}{reference}### Rubric
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

_TASK_OF_TWO = """\
### Task
You are given an instruction, two responses to it{with_reference} and a rubric with one criterion.
1. Write feedback that compares the responses strictly by the rubric, not in general; their order says nothing.
2. After the feedback, write which response is better: A or B, or tie where neither is.
3. The output looks like this: feedback, then [RESULT] and A, B or tie.
4. Write no other opening, closing or explanation.
"""

TEMPLATES = ("brief", "prometheus")


def request(item: Item, template: str = "brief") -> str:
    """What the judge is asked, before any chat template: the sections in order, the reference only where there is one."""
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r} is not one of {', '.join(TEMPLATES)}")
    reference = f"### Reference\n{item.reference_answer}\n" if item.reference_answer else ""
    if isinstance(item, Comparison):
        responses = f"### Response A\n{item.response_a}\n### Response B\n{item.response_b}\n"
    else:
        responses = f"### Response\n{item.response}\n"
    sections = _SECTIONS.format(
        instruction=item.instruction, responses=responses, reference=reference, rubric=item.rubric.text
    )
    if template == "brief":
        return sections
    task = _TASK_OF_TWO if isinstance(item, Comparison) else _TASK
    scale = ", ".join(map(format_score, item.rubric.scale))
    return task.format(with_reference=", a reference answer" if reference else "", scale=scale) + sections


def prompt_text(tokenizer, item: Item, template: str = "brief") -> str:
    """The whole prompt as text, for TRL and for sampling: `tokenizer(prompt_text(...))` gives its ids, with one BOS."""
    return rendered(tokenizer, request(item, template))


def prompt_ids(tokenizer, item: Item, template: str = "brief") -> list[int]:
    """Token ids of the whole prompt, the chat template and one BOS included."""
    return tokenizer(prompt_text(tokenizer, item, template))["input_ids"]


def rendered(tokenizer, text: str) -> str:
    """Any request in the tokenizer's chat template, up to where the answer begins, without the BOS that the tokenizer adds."""
    text = defused(text, tokenizer)
    if tokenizer.chat_template is None:
        return text + "\n"
    messages = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    adds_bos = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


def defused(text: str, tokenizer) -> str:
    """The text without control tokens: a response that says `<|eot_id|>` shall not end the user's turn.

    A zero-width space behind its first character keeps such a word readable and makes it ordinary text.
    """
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    for token in filter(text.__contains__, special):
        text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
    return text


def completion_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a judgment and the end-of-sequence token, tokenized apart from its prompt."""
    return tokenizer(defused(text, tokenizer), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def completion(rationale: str | None, verdict: Verdict) -> str:
    """A judgment as it is trained on: `("Polite: pass.", 4) -> "Polite: pass. [RESULT] 4"`; no rationale, the verdict alone."""
    end = f"{MARKER} {spelled(verdict)}"
    return f"{rationale.strip()} {end}" if rationale and rationale.strip() else end


def completion_text(tokenizer, rationale: str | None, verdict: Verdict) -> str:
    """The same without control tokens, as it goes into a training row."""
    return defused(completion(rationale, verdict), tokenizer)


def spelled(verdict: Verdict) -> str:
    """A verdict as it is written behind the marker: `4.0 -> "4"`, `"tie" -> "tie"`."""
    return verdict if isinstance(verdict, str) else format_score(verdict)


class Parsed(NamedTuple):
    rationale: str
    verdict: Verdict | None
    failure: Failure | None

    @property
    def score(self) -> float | None:
        return None if isinstance(self.verdict, str) else self.verdict

    @property
    def preference(self) -> Preference | None:
        return self.verdict if isinstance(self.verdict, str) else None


def parse(text: str, asked: Item | Rubric, finished: bool = True) -> Parsed:
    """Read a judgment of `asked`; a rubric stands for any example under it. `finished` is False where generation stopped
    at its length limit: then there is no verdict, even if the text happens to end in one."""
    of_two = isinstance(asked, Comparison)
    final = (_FINAL_PREFERENCE if of_two else _FINAL).search(text)
    if not finished:
        return Parsed(text.strip(), None, "cut_off")
    if final is None:
        return Parsed(text.strip(), None, "no_verdict")
    rationale = text[: final.start()].strip()
    if of_two:
        verdict, found = final.group(1), {v.lower() for v in _ANY_PREFERENCE.findall(text)}
    else:
        verdict, found = float(final.group(1)), {float(v) for v in _VERDICT.findall(text)}
    if len(found) > 1:
        return Parsed(rationale, None, "two_verdicts")
    if not of_two and verdict not in (asked if isinstance(asked, Rubric) else asked.rubric).scale:
        return Parsed(rationale, None, "off_scale")
    return Parsed(rationale, verdict, None)
