"""Item -> prompt, and generated text -> verdict.

A prompt has the sections of Prometheus 2 (arXiv 2405.01535, appendix), inside the tokenizer's chat template if there is one.
The template `brief` has headings only; `prometheus` also explains the task, for a model that was not trained on it. One line
of a prompt says which form the answer has: a rationale and a verdict, or, as in `brief-verdict`, a verdict alone.

A judgment ends in `[RESULT]` and a score, A, B or tie; Markdown's emphasis and a full stop are ignored. Only generated text is
parsed; a failure is never a verdict:

>>> rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
>>> parse("It greets: pass. [RESULT] 3", rubric)
Parsed(rationale='It greets: pass.', verdict=3.0, failure=None)"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from srlib.schema import PREFERENCES, Comparison, Failure, Item, Rubric, Verdict, format_score

MARKER = "[RESULT]"
TEMPLATES = ("brief", "prometheus")
CONTROL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|</?s>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad)>|\[/?INST\]|<</?SYS>>")
FORMS = {"cot": "Feedback", "verdict": "Verdict", "deduction": "Response"}  # of an answer, and the heading above it
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,9})?"  # bounded, so that float() stays cheap on hostile text
_MARKER = r"[*_`]{0,4}\[RESULT\][*_`]{0,4}[ \t]*[*_`]{0,4}"  # with Markdown's emphasis
_END = r"[*_`]{0,4}\.?[*_`]{0,4}\s*(?:```\s*)?\Z"  # it may also end in a full stop, and end a block of code
_FINAL = re.compile(rf"{_MARKER}({_NUMBER}){_END}", re.ASCII)  # without ASCII, "\uff14" would be a digit
_FINAL_PREFERENCE = re.compile(rf"{_MARKER}({'|'.join(PREFERENCES)}){_END}", re.ASCII)
_ANY = re.compile(rf"\[RESULT\][\s:(*_`]*(?:(?i:score)[\s:]*)?({_NUMBER})")  # all that could be a second verdict
_ANY_PREFERENCE = re.compile(rf"\[RESULT\][\s:(*_`]*(?:response\s+)?({_NUMBER}|(?:a|b|tie)(?![^\W_]))", re.IGNORECASE)

_SECTIONS = """\
### Instruction
{instruction}
{responses}{reference}### Rubric
{rubric}
{judgment}### {heading}"""

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

_VERDICT_ALONE = "5. This time leave out the feedback: write [RESULT] and the verdict alone.\n"
_TASK_OF_DEDUCTION = """\
### Task
You are given an instruction, a rubric and feedback on a response to the instruction.
Write the response that the feedback is about, and nothing else.
"""


def request(item: Item, template: str = "brief") -> str:
    """The request to the judge, without a chat template. `template` is one of TEMPLATES, with `-verdict` for a verdict
    alone. With `-deduction` the item's rationale and gold score are shown, and the response is asked for (arXiv
    2409.14664). Without a template, the instruction is the whole request. ValueError on any other."""
    if not template:
        return item.instruction
    name, _, form = template.partition("-")
    if name not in TEMPLATES or (form and form not in FORMS):
        known = f"{', '.join(TEMPLATES)}, or one with -{', -'.join(FORMS)}"
        raise ValueError(f"template {template!r} is not one of {known}")
    reference = f"### Reference\n{item.reference_answer}\n" if item.reference_answer else ""
    if isinstance(item, Comparison):
        task, responses = _TASK_OF_TWO, f"### Response A\n{item.response_a}\n### Response B\n{item.response_b}\n"
    else:
        task, responses = _TASK, f"### Response\n{item.response}\n"
    judgment = ""
    if form == "deduction":  # a reference may be the very response
        task, responses, reference = _TASK_OF_DEDUCTION, "", ""
        judgment = f"### Feedback\n{completion(item.rationale, item.gold)}\n"
    fields = dict(responses=responses, reference=reference, judgment=judgment, heading=FORMS[form or "cot"])
    sections = _SECTIONS.format(instruction=item.instruction, rubric=item.rubric.text, **fields)
    scale = ", ".join(map(format_score, item.rubric.scale))
    task = task.format(with_reference=", a reference answer" if reference else "", scale=scale)
    task += _VERDICT_ALONE if form == "verdict" else ""
    return sections if name == "brief" else task + sections


def prompt_text(tokenizer: Any, item: Item, template: str = "brief", shots: Sequence[Item] = ()) -> str:
    """The whole prompt as text, for TRL and for sampling: `tokenizer(prompt_text(...))` gives its ids, with one BOS. `shots` are
    items whose gold judgments stand before it, as turns of the conversation."""
    judged = [(request(shot, template), completion(shot.rationale, shot.gold)) for shot in shots]
    return rendered(tokenizer, request(item, template), judged)


def prompt_ids(tokenizer: Any, item: Item, template: str = "brief", shots: Sequence[Item] = ()) -> list[int]:
    """Token ids of the whole prompt, with the chat template and one BOS."""
    return tokenizer(prompt_text(tokenizer, item, template, shots))["input_ids"]


def rendered(tokenizer: Any, text: str, before: Sequence[tuple[str, str]] = ()) -> str:
    """A user's text in the chat template, up to the answer, without the BOS that the tokenizer adds; `before`: earlier turns."""
    before, text = [[defused(part, tokenizer) for part in turn] for turn in before], defused(text, tokenizer)
    if tokenizer.chat_template is None:
        return "".join(f"{user}\n{own}\n\n" for user, own in before) + text + "\n"
    texts = [*itertools.chain.from_iterable(before), text]
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(texts)]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    adds_bos = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


def defused(text: str, tokenizer: Any = None) -> str:
    """Break up control tokens with a zero-width space: a response with `<|eot_id|>` must not end the user's turn. Those of the
    common chat templates, which a tokenizer may spell as text, and those of the tokenizer, if it is here and not on a server."""
    special = set(CONTROL.findall(text))
    if tokenizer is not None:
        added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        special |= {*tokenizer.all_special_tokens, *added}
    for token in filter(text.__contains__, special - {""}):
        text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
    return text


def completion(rationale: str | None, verdict: Verdict) -> str:
    """A judgment as training shows it: `("Polite: pass.", 4) -> "Polite: pass. [RESULT] 4"`, `(None, 4) -> "[RESULT] 4"`."""
    return f"{(rationale or '').strip()} {MARKER} {spelled(verdict)}".lstrip()


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a judgment, tokenized separately from its prompt, and the end-of-sequence token."""
    return tokenizer(defused(text, tokenizer), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def spelled(verdict: Verdict) -> str:
    """The verdict as it follows the marker: `4.0 -> "4"`, `"tie" -> "tie"`."""
    return verdict if isinstance(verdict, str) else format_score(verdict)


class Parsed(NamedTuple):
    rationale: str
    verdict: Verdict | None
    failure: Failure | None


def parse(text: str, item: Item | Rubric, finished: bool = True) -> Parsed:
    """Read a judgment of `item`, or of any example under a rubric; `finished=False`: it was cut off at the length limit."""
    of_two = isinstance(item, Comparison)
    final = (_FINAL_PREFERENCE if of_two else _FINAL).search(text)
    if not finished or final is None:
        return Parsed(text.strip(), None, "no_verdict" if finished else "cut_off")
    rationale, spelling = text[: final.start()].strip(), final.group(1)
    if of_two:
        verdict, verdicts = spelling, {v.lower() for v in _ANY_PREFERENCE.findall(text)}
    else:
        verdict, verdicts = float(spelling), {float(v) for v in _ANY.findall(text)}
    if len(verdicts) > 1:
        return Parsed(rationale, None, "two_verdicts")
    if verdict not in (item.scale if isinstance(item, Rubric) else item.verdicts):
        return Parsed(rationale, None, "off_scale")
    return Parsed(rationale, verdict, None)
