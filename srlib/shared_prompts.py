"""DPO and SFT that compute each prompt once, inside TRL's own trainers.

DPO compares several judgments of one prompt, and SFT learns the judgments of all its annotators; TRL computes the prompt
again for each of them. With `share` a batch holds every prompt once. In DPO the model's forward pass returns the logits that
TRL would have computed, for rows of [last prompt token, completion]. Losses, logs and the reference pass stay TRL's own.

    collator = share(model, tokenizer, rows)     # None if this model cannot; says why
    trainer = DPOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, data_collator=collator)

All prompts and completions of a batch stand one behind the other in a single row without padding. An attention function,
registered with transformers, lets a prompt see itself and a completion its prompt and itself. Gradient checkpointing, LoRA
and 4-bit weights work as usual. Related: arXiv 2410.20305 shares the prompt between the two sides of one pair."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutput
from trl.trainer.dpo_trainer import DataCollatorForPreference

from srlib import files
from srlib.models.attention import attends_within, check_arguments

ATTENTION = "srlib_shared_prompts"
EXACT, HALF = 1e-4, 0.05  # largest mean difference of a token's log-probability in fp32 and in 16 bit, in nats
PROVED_ON = 2  # prompts, with two pairs each

Row = dict[str, list[int]]  # as TRL's: prompt_ids, chosen_ids and rejected_ids of a pair; input_ids and labels of SFT


def share(model: Any, tokenizer: Any, rows: Sequence[dict[str, str]]) -> Collator | None:
    """Let the model compute each prompt of a batch once; returns the collator that TRL's trainer has to use. `rows` are
    TRL's pairs (prompt, chosen, rejected) for DPO or rows (prompt, completion) for SFT, as text. The shared way is compared
    with the plain one on the longest of them. If it fails, or the log-probabilities differ (a short window, soft caps,
    ...), or Unsloth is on a GPU, the model is left as it was, the reason is printed, and None is returned: TRL's own way."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    name, config = type(causal).__name__, causal.config.get_text_config()
    pairwise = "chosen" in rows[0]
    if not pairwise:  # two texts of each completion prove the same
        rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"]} for r in rows]
    collator, pairs = Collator(pad_token_id=tokenizer.pad_token_id), _longest(tokenizer, rows)
    within, ends = attends_within(causal), ("chosen", "rejected")
    if getattr(config, "router_aux_loss_coef", 0.0) and hasattr(config, "output_router_logits"):
        reason = f"{name} adds a loss of its routers, a mean over all tokens"
    elif within < math.inf and any(len(tokenizer(r["prompt"] + r[e]).input_ids) >= within for r in rows for e in ends):
        reason = f"{name} attends within {within:g} tokens and a text has more"
    elif hasattr(model, "for_training") and torch.cuda.is_available():
        reason = "Unsloth's attention on a GPU fails with rows of several texts"
    else:
        shared_batch, attention, forward = collator(pairs), causal.config._attn_implementation, causal.forward
        AttentionInterface.register(ATTENTION, _attend)
        try:
            plain = _logprobs(model, DataCollatorForPreference.torch_call(collator, pairs))
            blind = _logprobs(model, {key: part for key, part in shared_batch.items() if key != "shared"})
            effect = float((plain - blind).abs().mean())  # of all before a prompt's last token: no noise is so large
            allowed = min(EXACT if next(model.parameters()).dtype == torch.float32 else HALF, effect / 5)
            causal.set_attn_implementation(ATTENTION)
            causal.forward = functools.partial(_forward, forward)
            difference = float((_logprobs(model, shared_batch) - plain).abs().max())
            if difference <= allowed:
                if not pairwise:  # TRL's SFT calls the layers by itself
                    causal.forward = forward
                return collator
            reason = f"{name} would be off by {difference:.2g} nats per token"
        except Exception as failure:
            reason = f"{name} fails with {type(failure).__name__}: {files.shorten(str(failure), 100)}"
        causal.set_attn_implementation(attention)
        causal.forward = forward
    advice = "; with backend: transformers they may be" * (" fails with " in reason and hasattr(model, "for_training"))
    print(f"prompts are not shared: {reason}; each judgment reads its own prompt, as with share_prompts: false{advice}")
    return None


def _longest(tokenizer: Any, rows: Sequence[dict[str, str]]) -> list[Row]:
    """Two pairs each of the longest prompts, the same pair twice for a prompt with one; tokenized."""
    longest = sorted(dict.fromkeys(row["prompt"] for row in rows), key=len)[-PROVED_ON:]
    chosen = [[row for row in rows if row["prompt"] == prompt] for prompt in longest]
    return [
        {f"{name}_ids": tokenizer(row[name], add_special_tokens=name == "prompt")["input_ids"] for name in row}
        for group in chosen
        for row in (group * 2)[:2]
    ]


@torch.no_grad()
def _logprobs(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """(2n,) mean log-probability of a token of each completion, in nats."""
    was_training, batch = model.training, send_to_device(batch, model.device)
    completion = batch.pop("completion_mask")[:, 1:]
    try:
        logits = model.eval()(**batch, use_cache=False).logits
    finally:
        model.train(was_training)
    rows, at = completion.nonzero(as_tuple=True)  # in fp32 the logits of whole prompts might not fit
    each = logits[rows, at].float().log_softmax(-1).gather(1, batch["input_ids"][rows, at + 1, None])[:, 0]
    return each.new_zeros(len(completion)).index_add(0, rows, each) / completion.sum(1)


class Collator(DataCollatorForPreference):
    """TRL's collator with rows cut to [last prompt token, completion], and in `shared` the row that the model reads. n
    pairs give `input_ids`, `attention_mask`, `completion_mask` (2n, T), chosen first, T - 1 the longest completion. n
    rows of SFT give `input_ids`, `position_ids`, `labels` (1, L) of that row itself."""

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        if "labels" in examples[0]:
            return _of_sft(examples)
        batch = super().torch_call([{**row, "prompt_ids": row["prompt_ids"][-1:]} for row in examples])
        completions = [row[side] for side in ("chosen_ids", "rejected_ids") for row in examples]
        return batch | {"shared": _lay_out([row["prompt_ids"] for row in examples] * 2, completions)}


def _of_sft(examples: list[Row]) -> dict[str, Any]:
    """The last prompt token stands before each completion, so that the next label is always that of the next token."""
    starts = [next(i for i, label in enumerate(row["labels"]) if label != -100) - 1 for row in examples]
    prompts = [row["input_ids"][:n] for row, n in zip(examples, starts, strict=True)]
    shared = _lay_out(prompts, [row["input_ids"][n:] for row, n in zip(examples, starts, strict=True)])
    learned = [label for row, n in zip(examples, starts, strict=True) for label in row["labels"][n:]]
    ids, positions = shared.pop("ids"), shared.pop("positions")
    labels = torch.tensor([[-100] * (ids.shape[1] - len(learned)) + learned])
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "shared": shared}


def _lay_out(prompt_of: list[list[int]], completions: list[list[int]]) -> dict[str, torch.Tensor]:
    """One row of L tokens: P distinct prompts, then the m completions. `wanted` (m * T,) says where the logits of
    [last prompt token, completion] stand in the row, the last prompt token again as padding. `prompt_slots` (P, Tp) and
    `completion_slots` (m, Tc) say where each token of a padded table stands in the row, L for padding; `back` (L,)
    where each token of the row stands in the tables; `owner` (m,) whose prompt it is; `sees` (m, 1, Tc, Tp + Tc) what."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompt_of)))}
    owner = torch.tensor([prompts[tuple(prompt)] for prompt in prompt_of])
    lengths, sizes = [len(p) for p in prompts], [len(c) for c in completions]
    total = sum(lengths) + sum(sizes)
    prompt_slots, completion_slots = _slots(lengths, 0, total), _slots(sizes, sum(lengths), total)
    slots = torch.cat([prompt_slots.flatten(), completion_slots.flatten()])
    width = completion_slots.shape[1]
    sees_itself = torch.ones(width, width, dtype=torch.bool).tril().expand(len(owner), -1, -1)
    sees = torch.cat([(prompt_slots < total)[owner][:, None].expand(-1, width, -1), sees_itself], 2)[:, None]
    back = torch.empty(total + 1, dtype=torch.long).scatter_(0, slots, torch.arange(len(slots)))[:total]
    last = (torch.tensor(lengths).cumsum(0) - 1)[owner][:, None]
    positions = [torch.arange(n) for n in lengths]
    positions += [lengths[p] + torch.arange(n) for p, n in zip(owner.tolist(), sizes, strict=True)]
    return {
        "ids": torch.tensor([[token for row in (*prompts, *completions) for token in row]]),
        "positions": torch.cat(positions)[None],
        "wanted": torch.cat([last, torch.where(completion_slots == total, last, completion_slots)], 1).flatten(),
        "prompt_slots": prompt_slots, "completion_slots": completion_slots, "slots": slots, "back": back, "owner": owner,
        "sees": sees,
    }  # fmt: skip


def _slots(sizes: list[int], start: int, padding: int) -> torch.Tensor:
    """`([2, 3], 10, 99) -> [[10, 11, 99], [12, 13, 14]]`."""
    table = torch.full((len(sizes), max(sizes)), padding)
    for i, n in enumerate(sizes):
        table[i, :n] = torch.arange(start, start + n)
        start += n
    return table


def _forward(forward: Any, *args: Any, shared: dict[str, torch.Tensor] | None = None, **kwargs: Any) -> Any:
    """The model's forward pass: with `shared`, over the row laid out there, the logits in TRL's order (2n, T, V)."""
    if shared is None:
        return forward(*args, **kwargs)
    row = {"input_ids": shared["ids"], "position_ids": shared["positions"], "logits_to_keep": shared["wanted"]}
    logits = forward(**row, use_cache=False, shared=shared).logits
    return CausalLMOutput(logits=logits.view(len(shared["owner"]), -1, logits.shape[-1]))


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, shared: Any = None, **kwargs: Any):
    """Attention over a row of L tokens, (1, H, L, d) -> (1, L, H, d); without `shared`, transformers' own."""
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    check_arguments(attention_mask=attention_mask, **kwargs)
    scale, heads, d = kwargs["scaling"], query.shape[1], query.shape[3]
    if heads != key.shape[1]:
        key, value = (part.repeat_interleave(heads // key.shape[1], 1) for part in (key, value))
    prompt_slots, slots, owner = shared["prompt_slots"], shared["completion_slots"], shared["owner"]
    row = torch.cat([part[0].transpose(0, 1) for part in (query, key, value)], 1).flatten(1)  # (L, 3 H d)
    table = _Move.apply(row, shared["slots"], shared["back"])

    def tables(rows: Any, shape: tuple[int, int]) -> Any:  # three of (rows, H, T, d)
        return rows.unflatten(1, (3, heads, d)).unflatten(0, shape).permute(2, 0, 3, 1, 4)

    q, k, v = tables(table[: prompt_slots.numel()], prompt_slots.shape)
    own_q, own_k, own_v = tables(table[prompt_slots.numel() :], slots.shape)
    sees = shared["sees"]
    of_prompts = sdpa(q, k, v, is_causal=True, scale=scale)
    of_completions = sdpa(own_q, torch.cat([k[owner], own_k], 2), torch.cat([v[owner], own_v], 2), sees, scale=scale)
    out = torch.cat([part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (of_prompts, of_completions)])
    return _Move.apply(out, shared["back"], shared["slots"]).view(1, -1, heads, d), None


class _Move(torch.autograd.Function):
    """Rows of a table by index, zeros for an index behind its end. The gradient is a lookup too, in the inverse index: the
    indexed sum that autograd would compute is many times slower."""

    @staticmethod
    def forward(ctx: Any, rows: Any, index: Any, inverse: Any) -> Any:
        ctx.save_for_backward(inverse)
        return pad(rows, (0, 0, 0, 1))[index]

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return pad(gradient, (0, 0, 0, 1))[ctx.saved_tensors[0]], None, None
