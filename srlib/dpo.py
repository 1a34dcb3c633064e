"""Preference pairs in TRL's own format, and the check that DPO starts where it must.

rows = rows_of(tokenizer, examples, pairs, template)       # [{"prompt": ..., "chosen": ..., "rejected": ...}, ...]
trainer = DPOTrainer(..., callbacks=[StartsAtLn2()])"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from srlib import prompts
from srlib.models import ModelError
from srlib.schema import Item, Pair


def rows_of(tokenizer: Any, items: Mapping[str, Item], pairs: Sequence[Pair], template: str) -> list[dict[str, str]]:
    """Pairs as text, so that any DPO trainer reads them; `items` maps an id to its example or comparison. Each prompt asks for
    the kind of its pair; that of a deduction shows the chosen judgment in place of the response."""
    rows = []
    for pair in pairs:
        item = items[pair.example_id]
        if pair.kind == "deduction":
            item = item.model_copy(update={"rationale": pair.rationale, "score": pair.chosen_score})
        prompt = prompts.prompt_text(tokenizer, item, f"{template}-{pair.kind}")
        chosen, rejected = (prompts.defused(text, tokenizer) for text in (pair.chosen, pair.rejected))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


class StartsAtLn2(TrainerCallback):
    """Stop a training whose first reward margin is not zero, that is, whose sigmoid loss does not start at ln 2. Before
    the first step, policy and reference are one model (J_t starts from J_{t-1}; the paper names no reference). Allowed is
    1e-5 in fp32, and 1e-2 in 16 bit, where kernels may round differently, at beta 0.1; a margin grows with beta."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        margin, allowed = float(logs.get("rewards/margins", 0.0)), 1e-2 if args.bf16 or args.fp16 else 1e-5
        allowed *= max(1.0, args.beta / 0.1)
        if state.global_step == 1 and not abs(margin) <= allowed:
            problem = f"at the first step the reward margin is {margin:.3g}, not within {allowed:g} of 0"
            advice = "delete the judge's directory and start from the judge that wrote the judgments of these pairs"
            raise ModelError(f"{problem}: the reference is another model; {advice}")
