"""Training that reads each prompt once, through TRL's own losses.

A judge's prompt is several times longer than its judgment, and DPO holds several judgments of one prompt against each
other. TRL computes that prompt for each of them; here a batch has every prompt once and every completion once, and
TRL's loss gets the logits that it would have computed itself. Exact, not an approximation: see tests/test_shared.py.

The loss sees a *virtual batch*, rows `[last prompt token, completion]` in TRL's own order, and calls a stand-in for the
model, which has three ways to the logits of these rows:

    cache      forward the prompts, give each completion its prompt's keys and values, forward the completions. Any
               attention that transformers has a cache for; gradients flow through the cache. No gradient checkpointing.
    attention  prompts and completions in one row, and an attention function of ours (srlib.packed). Works with gradient
               checkpointing; plain full attention only.
    segments   one row again, and Unsloth's kernel for such rows, where its fast path runs on a GPU (srlib.segments).

Related: arXiv 2410.20305 shares the prompt between the two sides of one pair.

    plan = Plan(engine(policy, checkpointing=False, longest=2048), batches.layout(...))
    trainer = dpo_trainer()(plan, model=policy, args=config, train_dataset=pairs, processing_class=tokenizer)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from srlib import packed
from srlib.batches import Layout
from srlib.sample import prefix
from srlib.schema import SrlibError

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class NotShareable(SrlibError):
    """This model, or these settings, would read a shared prompt wrongly; says why and what to do."""


class Plan(NamedTuple):
    """How one training shares its prompts."""

    engine: str
    layout: Layout


def engine(
    model: Any, checkpointing: bool, longest: int, unsloth_on_gpu: bool = False, unsloth_kernel: bool = False
) -> str:
    """`"cache"`, or `"attention"` where activations are checkpointed. Raises NotShareable where both would be wrong.

    Checkpointing computes a layer twice and has no cache the second time: transformers then drops the cache, with the
    prompt in it, and trains on. Unsloth's attention on a GPU drops masks and never asks for another attention function;
    it gets `"segments"`, its own kernel, where `unsloth_kernel` asks for what was never measured.
    """
    if unsloth_on_gpu and not unsloth_kernel:
        raise NotShareable(
            "Unsloth's attention on a GPU cannot read a shared prompt our way, and its own kernel for that is not measured "
            "(`srlib bench --sharing` tries it); set share_prompts to false, or backend to transformers"
        )
    config = model.config.get_text_config()
    why = prefix.not_copyable(model)
    if hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", 0.0):
        why = f"{type(model).__name__} adds a loss of its routers, a mean over all tokens, each prompt as often as it is read"
    if why is not None:
        raise NotShareable(f"{why}; set share_prompts to false")
    if not checkpointing and not unsloth_on_gpu:
        return "cache"
    why = prefix.not_shareable(model, longest)
    if why is not None:
        raise NotShareable(
            f"{why}, and gradient checkpointing leaves no other way to share prompts; set share_prompts or "
            "gradient_checkpointing to false"
        )
    return "attention"


def cost(rows: Sequence[dict[str, list[int]]]) -> Callable[[Sequence[int]], int]:
    """Tokens that the model reads for some rows together: each prompt and each completion of it once."""
    sequences = [_sequences([row]) for row in rows]

    def tokens(chosen: Sequence[int]) -> int:
        unique = {sequence for i in chosen for sequence in sequences[i]}
        return sum(map(len, {prompt for prompt, _ in unique})) + sum(len(completion) for _, completion in unique)

    return tokens


def _sequences(rows: Sequence[dict[str, list[int]]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, completion) in TRL's order: of pairs the chosen sides, then the rejected ones."""
    if "chosen_ids" in rows[0]:
        return [(tuple(row["prompt_ids"]), tuple(row[side])) for side in ("chosen_ids", "rejected_ids") for row in rows]
    cuts = [row["completion_mask"].index(1) for row in rows]
    return [(tuple(row["input_ids"][:cut]), tuple(row["input_ids"][cut:])) for row, cut in zip(rows, cuts, strict=True)]


# ---------------------------------------------------------------- rows -> one batch


def collate(rows: Sequence[dict[str, Any]], how: str) -> dict[str, Any]:
    """Rows of token ids as a virtual batch of N rows (N = 2 x pairs), and in `shared` what the stand-in reads of it.

    `input_ids`, `attention_mask`, `completion_mask` are (N, T); rows of SFT also get `labels`.
    """
    import torch

    sequences = _sequences(rows)
    prompts = {p: i for i, p in enumerate(dict.fromkeys(prompt for prompt, _ in sequences))}
    unique = {s: i for i, s in enumerate(dict.fromkeys(sequences))}
    owner = [prompts[prompt] for prompt, _ in unique]
    ids, mask = _padded([(prompt[-1], *completion) for prompt, completion in unique])
    virtual = torch.tensor([unique[s] for s in sequences])
    completion_mask = mask.clone()
    completion_mask[:, 0] = 0
    batch = {
        "input_ids": ids[virtual],
        "attention_mask": mask[virtual],
        "completion_mask": completion_mask[virtual],
        "shared": _laid_out(how, list(prompts), [completion for _, completion in unique], owner, ids, mask)
        | {"virtual": virtual},
    }
    if "chosen_ids" not in rows[0]:
        batch["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in REFERENCE if name in rows[0]}


def _laid_out(how: str, prompts: list, completions: list, owner: list[int], ids: Any, mask: Any) -> dict[str, Any]:
    if how == "cache":
        return _for_cache(prompts, owner, ids, mask)
    return packed.lay_out(prompts, completions, owner)


def _padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Any, Any]:
    """(R, longest) ids and mask; what pads is never looked at."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids, mask


def _for_cache(prompts: list, owner: list[int], ids: Any, mask: Any) -> dict[str, Any]:
    """Prompts without their last token, at the right end, from which a window counts back."""
    import torch

    prompt_ids, prompt_mask = _padded([prompt[:-1] for prompt in prompts], left=True)
    owners = torch.tensor(owner)
    start = prompt_mask.sum(1)[owners]
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "prompt_positions": (prompt_mask.cumsum(1) - 1).clamp(min=0),
        "owner": owners,
        "ids": ids,
        "mask": torch.cat([prompt_mask[owners], mask], 1),
        "positions": start[:, None] + torch.arange(ids.shape[1]),
    }


# ---------------------------------------------------------------- one batch -> its logits


class Once:
    """Stands in for the model inside TRL: called alike, answers alike, and has read each prompt once. `model` is what is
    called, possibly wrapped; `own` the model within."""

    def __init__(self, model: Any, own: Any, check: float = 0.0) -> None:
        self.model, self.own, self.check = model, own, check

    def __call__(self, input_ids: Any, shared: dict[str, Any], labels: Any = None, **given: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        if "sees" in shared:
            logits = packed.read(self.model, shared)
        else:
            logits = _through_cache(self.model, self.own.config, shared)
        logits, loss = logits[shared["virtual"]], None
        if labels is not None:
            items = {name: given[name] for name in ("num_items_in_batch",) if name in given}
            loss = self.own.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **items)
        return CausalLMOutput(loss=loss, logits=logits)


def _through_cache(model: Any, config: Any, s: dict[str, Any]) -> Any:
    cache = prefix.cache_of(
        config,
        model,
        input_ids=s["prompt_ids"],
        attention_mask=s["prompt_mask"],
        position_ids=s["prompt_positions"],
        logits_to_keep=1,  # where it does not stop before
    )
    if cache.get_seq_length() == 0:
        raise NotShareable(
            "the model kept no cache of the prompts while training (is gradient checkpointing on?); set share_prompts to false"
        )
    cache.batch_select_indices(s["owner"])  # a copy for each completion, whose gradients add up in the prompt
    return model(
        input_ids=s["ids"],
        attention_mask=s["mask"],
        position_ids=s["positions"],
        past_key_values=cache,
        use_cache=True,
    ).logits


# ---------------------------------------------------------------- TRL's trainers


def _planned(trainer: type) -> type:
    """A trainer whose batches are laid out beforehand."""

    class Planned(trainer):
        unchecked = (True, False)  # training and judging: the first pass of each is held against the standard way

        def __init__(self, plan: Plan, model: Any, **given: Any) -> None:
            self.plan = plan
            if plan.engine == "attention":
                packed.install(model)
            super().__init__(model=model, data_collator=functools.partial(collate, how=plan.engine), **given)

        def get_train_dataloader(self) -> Any:
            from torch.utils.data import DataLoader

            loader = DataLoader(
                self.train_dataset,
                batch_sampler=self.plan.layout.parts,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )
            return self.accelerator.prepare(loader)

        def stand_in(self, model: Any) -> Once:
            own = self.accelerator.unwrap_model(self.model)
            return Once(model, own)

    return Planned


@functools.cache
def dpo_trainer() -> type:
    """trl.DPOTrainer, its loss computed over shared prompts; every pair of an optimizer step weighs the same. (TRL's "sft"
    term is a mean over the tokens of a part, so there it is the parts that weigh by their pairs.)"""
    from trl import DPOTrainer

    class SharedDPOTrainer(_planned(DPOTrainer)):
        mean_rows: float | None = None  # of the parts of the optimizer step under way

        def _compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super()._compute_ref_log_probs(self.stand_in(model), inputs)

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            if REFERENCE[0] not in inputs:  # TRL's own branch would go around the stand-in
                reference = self._compute_ref_log_probs(self.ref_model or model, inputs)
                inputs = {**inputs, **dict(zip(REFERENCE, reference, strict=True))}
            before, self.precompute_ref_logps = self.precompute_ref_logps, True
            try:
                return super()._compute_loss(self.stand_in(model), inputs, return_outputs)
            finally:
                self.precompute_ref_logps = before

        def get_batch_samples(self, iterator: Any, n: int, device: Any) -> Any:
            parts, items = super().get_batch_samples(iterator, n, device)
            self.mean_rows = sum(len(part["input_ids"]) for part in parts) / max(1, len(parts))
            return parts, items

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
            found = super().compute_loss(model, inputs, return_outputs, **given)
            if not self.model.training or self.mean_rows is None:
                return found
            weight = len(inputs["input_ids"]) / self.mean_rows  # TRL takes the mean of each part's mean
            return (found[0] * weight, found[1]) if return_outputs else found * weight

    return SharedDPOTrainer


@functools.cache
def sft_trainer() -> type:
    """trl.SFTTrainer for rows that share prompts (several annotators, several chosen judgments); loss_type "nll"."""
    from trl import SFTTrainer

    class SharedSFTTrainer(_planned(SFTTrainer)):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # rows of ids; TRL would put labels in place of the mask

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
            return super().compute_loss(self.stand_in(model), inputs, return_outputs, **given)

    return SharedSFTTrainer
