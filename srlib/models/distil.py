"""SFT of a student on a teacher's judgments, with a KL term where the verdict stands (self-distillation, arXiv 2409.00935).

A row has TRL's `prompt` and `completion`, and two more columns of K numbers: `verdicts`, the token ids of the verdicts, each one
token, and `teacher`, what the teacher gives them after this rationale. -1 and 0 pad them; all zeros: no KL for this row."""

from typing import Any

import torch
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


class Collator(DataCollatorForLanguageModeling):
    """TRL's own, with the two columns as tensors (B, K)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {name: torch.tensor([row[name] for row in examples]) for name in ("verdicts", "teacher")}
        return super().torch_call(examples) | columns


class DistilTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss NLL + `kl_weight` * KL, the KL a mean over the rows of an optimizer step. Its SFTConfig needs
    `loss_type="nll"`, since only then there are logits."""

    kl_weight = 1.0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
        verdicts, teacher, mask = inputs.pop("verdicts"), inputs.pop("teacher"), inputs["attention_mask"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        kl = verdict_kl(outputs.logits, mask, verdicts, teacher).mean()
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:  # else the trainer divides the sum
            kl = kl / self.args.gradient_accumulation_steps
        loss = loss + self.kl_weight * kl
        return (loss, outputs) if return_outputs else loss


def verdict_kl(logits: Any, mask: Any, verdicts: Any, teacher: Any) -> Any:
    """(B,) KL(teacher || student) in nats over the verdicts (B, K). A row ends in its verdict's token and the end-of-sequence token,
    then padding: logits (B, T, V) at the third last unmasked place speak of the verdict."""
    at = logits[torch.arange(len(logits)), mask.sum(1) - 3]
    at = at.to(torch.promote_types(at.dtype, torch.float32)).gather(1, verdicts.clamp(min=0))
    student = at.masked_fill(verdicts < 0, -1e9).log_softmax(-1)
    return torch.nn.functional.kl_div(student, teacher.to(student), reduction="none").sum(-1)
