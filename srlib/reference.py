"""DPO's reference: the log-probabilities of the judge that sampled the pairs, computed once, before training.

So training holds one model, and J(t) is held against J(t-1) whatever form that has: it is the policy itself before its
first step. The numbers are kept in one file under the hash of the weights and of the pairs; with other weights or other
pairs they are computed again, and a training that was killed finds them.

    dataset = with_columns(trainer, dataset, batch_size=16, path=Path("judges/sre_1.partial/reference.json"))
    dataset.column_names -> [..., "ref_chosen_logps", "ref_rejected_logps"]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srlib import files as store

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def with_columns(trainer: Any, dataset: Any, batch_size: int, path: Path) -> Any:
    """The pairs with two more columns, the sums of the reference's log-probabilities over each side's tokens, in nats.

    `trainer` is a trl.DPOTrainer on its way through __init__: its model is still the judge it starts from.
    """
    key = _key(trainer, dataset)
    found = kept(path, key)
    if found is None:
        found = dict(zip(COLUMNS, _computed(trainer, dataset, batch_size), strict=True))
        store.write_json(path, {"key": key, **found})
    if "ref" in getattr(trainer.model, "peft_config", {}):  # TRL's copy of the adapter; its work is done
        trainer.model.delete_adapter("ref")
    for name in COLUMNS:
        dataset = dataset.add_column(name, found[name])
    return dataset


def kept(path: Path, key: dict[str, str]) -> dict[str, list[float]] | None:
    """What the file holds under this very key, None where it is another's, torn, or not there."""
    try:
        found = store.read_json(path)
    except store.RowError:
        return None
    return {name: found[name] for name in COLUMNS} if isinstance(found, dict) and found.get("key") == key else None


def _key(trainer: Any, dataset: Any) -> dict[str, str]:
    """The weights are hashed as they lie in memory, quantized or not, adapter included: no path can be out of date."""
    rows = [dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    pairs = hashlib.sha256(json.dumps([list(column) for column in rows]).encode()).hexdigest()
    precision = str(trainer.accelerator.mixed_precision)
    plan = json.dumps(getattr(trainer, "plan", "standard"))
    return {
        "weights": trainer._precompute_model_hash, "pairs": pairs, "mixed_precision": precision,
        "layout": hashlib.sha256(plan.encode()).hexdigest(),
    }  # fmt: skip


def _computed(trainer: Any, dataset: Any, batch_size: int) -> tuple[list[float], list[float]]:
    """(chosen, rejected) through the trainer's own pass, in the order of the dataset.

    TRL runs that pass in the weights' precision and the training in mixed precision; then the reference is another model
    by rounding. Here both run under the same autocast, with logits in fp32, and, where the training is laid out, over the
    same rows side by side: in 16 bit a sum over other padding is another number.
    """
    import torch

    def forward(**inputs: Any) -> Any:
        with trainer.accelerator.autocast():
            out = trainer.model(**inputs)
        out.logits = out.logits.float()
        return out

    sums = torch.zeros(2, len(dataset))
    for chunk in _chunks(trainer, dataset, batch_size):
        batch = trainer.data_collator([dataset[i] for i in chunk])
        batch = trainer._prepare_inputs(batch)
        sums[:, chunk] = torch.stack(trainer.compute_ref_log_probs(forward, batch)).float().cpu()
    return tuple(sums.tolist())


def _chunks(trainer: Any, dataset: Any, batch_size: int) -> Iterator[list[int]]:
    """Every row number once: the parts of a laid-out training as they come, then the rest, those of one length together."""
    left = set(range(len(dataset)))
    for part in trainer.plan.layout.parts if hasattr(trainer, "plan") else ():
        if left >= set(part):
            left -= set(part)
            yield part
    rest = sorted(left, key=lambda i: dataset["length"][i])
    yield from (rest[start : start + batch_size] for start in range(0, len(rest), batch_size))
