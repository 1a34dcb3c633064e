"""Rows for supervised fine-tuning, in TRL's own format, and the limit on their length.

    rows = rows_of(tokenizer, examples, template="brief")      # [{"prompt": "...", "completion": "..."}, ...]
    kept, lengths, drops = fitting(tokenizer, rows, max_length=512)

A row is text, so any trainer reads it. Its ids are those that sampling uses, and a row for which they would not be is
refused: a judge is trained on exactly what it reads and writes later."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from srlib import prompts
from srlib.models import ModelError
from srlib.schema import Comparison, Example, Item

TextRow = dict[str, str]
HINT = "(Hint: the right verdict is {}. Explain it by the rubric, and do not mention this hint.)"
ENOUGH = 0.05  # share of the rows, and ten at least, that need a rationale for a judge to learn to write them


def rows_of(tokenizer: Any, items: Sequence[Item], template: str, rationale: bool = True) -> list[TextRow]:
    """Prompt and gold judgment of each item; `rationale=False` writes the verdict only. ModelError if there is no gold one."""
    rows = []
    for item in items:
        if item.gold is None:
            raise ModelError(f"{item.id} has no gold score or preference to learn from; give it one or leave it out")
        completion = prompts.defused(prompts.completion(item.rationale if rationale else None, item.gold), tokenizer)
        rows.append({"prompt": prompts.prompt_text(tokenizer, item, template), "completion": completion})
    return rows


def fitting(tokenizer: Any, rows: Sequence[TextRow], max_length: int) -> tuple[list[TextRow], list[int], int]:
    """(rows of at most `max_length` tokens, their lengths, how many were longer): SFT rows or TRL's pairs. A longer row
    is dropped and never truncated, because the score stands last. The length of a pair is that of its longer side.
    Raises ModelError if a completion would change the ids of its prompt, for sampling reads the prompt alone."""
    kept, lengths = [], []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        sides = [text for name, text in row.items() if name != "prompt"]
        whole = [tokenizer(row["prompt"] + text + tokenizer.eos_token)["input_ids"] for text in sides]
        if any(ids[: len(prompt)] != prompt for ids in whole):
            problem = "a prompt has other tokens alone and before a judgment, so its judge would read another one"
            raise ModelError(f"{problem}; its template has to end on a token boundary, not in {row['prompt'][-40:]!r}")
        if (length := max(map(len, whole))) <= max_length:
            kept.append(row)
            lengths.append(length)
    return kept, lengths, len(rows) - len(kept)


def by_annotator(items: Sequence[Item]) -> list[Item]:
    """One item for each annotator who gave a rationale, where `meta` has lists of `ratings` and `rationales`: the same prompt with
    the score and the rationale of one annotator, as `<id>#1`, `<id>#2`, ...; any other item as it is."""
    rows: list[Item] = []
    for item in items:
        field = "preference" if isinstance(item, Comparison) else "score"
        given = [(n, v, text) for n, (v, text) in enumerate(item.annotated, start=1) if (text or "").strip()]
        rows += [item.model_copy(update={"id": f"{item.id}#{n}", field: v, "rationale": text}) for n, v, text in given]
        rows += [] if given else [item]
    return rows


def hinted(item: Item) -> Item:
    """The item with its gold verdict as a hint behind the instruction, for whoever writes its rationale."""
    hint = HINT.format(prompts.spelled(item.gold))
    return item.model_copy(update={"instruction": f"{item.instruction}\n\n{hint}"})


def mentions_hint(rationale: str) -> bool:
    """Whether a rationale speaks of the hint, which a judge will not have."""
    return bool(re.search(r"\bhint|\b(right|correct|given|stated) (verdict|score|preference)\b", rationale, re.I))


def with_rationales(items: Sequence[Item], written: Mapping[str, str]) -> tuple[list[Item], str, list[str]]:
    """(items with a rationale, where the rationales come from, problems); `written` maps ids to rationales of a writer. Items
    without one are left out. If too few examples have one, or too few comparisons, a judge cannot learn to write them:
    all of these are kept with their verdicts alone, and a sentence says so."""
    given, kept, problems = sum(bool(item.rationale) for item in items), [], []
    for kind in (Example, Comparison):
        rows = [item for item in items if isinstance(item, kind)]
        rows = [item.model_copy(update={"rationale": item.rationale or written.get(item.id)}) for item in rows]
        having = [item for item in rows if item.rationale]
        if few := len(having) < min(len(rows), max(10, ENOUGH * len(rows))):
            text = f"{len(having)} of {len(rows)} training {kind.__name__.lower()}s have a rationale, too few to learn from"
            problems.append(f"{text}: of these it learns verdicts alone. Name a `writer` that can judge, or write some")
        bare = [i.model_copy(update={"rationale": None, "meta": i.meta | {"rationales": None}}) for i in rows if few]
        kept += bare or having
    n, out = sum(bool(item.rationale) for item in kept), len(items) - len(kept)
    return kept, f"rationales: {given} came with the data, {n - given} were written; rows left out: {out}", problems
