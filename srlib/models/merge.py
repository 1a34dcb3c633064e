"""Two adapters, one judge: J0 that scores and compares (paper section 2.1 merges a pointwise and a pairwise judge).

Each kind of row is learned by an adapter of its own, of half the rank, and PEFT makes one adapter of both. Adapters are
merged as what they add to the weights, B @ A: PEFT's methods of the plain names add up the As and the Bs apart, so that the
B of one meets the A of the other, and its documentation advises against them. So the names here mean

    linear       (1 - w) * pointwise + w * pairwise, exactly: A and B are stacked (PEFT's `cat`)
    dare_linear  the same after a random share of each update was dropped and the rest scaled up (arXiv 2311.03099)
    ties         the largest entries of each, and where their signs differ, those of the larger sum (arXiv 2306.01708)

The latter two leave a matrix of full rank, whose best approximation of the adapter's rank is kept (`..._svd`).

    log = sft("models/tiny-base", {"pointwise": rows, "pairwise": more}, Path("runs/tiny/judges/sft"), settings)
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib import train
from srlib.models import adapters
from srlib.models import load as models

METHODS = {"linear": "cat", "dare_linear": "dare_linear_svd", "ties": "ties_svd"}  # ours -> PEFT's
PARTS = ("pointwise", "pairwise")


def sft(
    model: str | Path,
    rows: Mapping[str, Sequence[dict[str, list[int]]]],
    out: Path,
    settings: train.Settings,
    *,
    method: str = "linear",
    pairwise_weight: float = 0.5,
    density: float = 0.5,
) -> list[dict[str, float]]:
    """Train both adapters on their rows (`train.sft`, the same settings each), write the judge that they make to `out`,
    and return both logs, one behind the other. A part that is trained already is not trained again.

    Raises ModelError on a rank that has no half, and on a model that is an adapter itself.
    """
    if method not in METHODS:
        raise models.ModelError(f"merge_method {method!r} is not one of {', '.join(METHODS)}")
    if settings.lora_rank < 2 or settings.lora_rank % 2:
        raise models.ModelError(
            f"sft_mode merge gives each of two adapters half of lora_rank, which is {settings.lora_rank}; set an even one"
        )
    if models.base_of(model) is not None:
        raise models.ModelError(f"sft_mode merge starts from a base, and {model} is an adapter; set sft_mode to mix")
    record = out / "train.json"
    if record.exists():
        shutil.rmtree(out / "parts", ignore_errors=True)
        return store.read_json(record)["log"]
    half = dataclasses.replace(
        settings, lora_rank=settings.lora_rank // 2, lora_alpha=settings.lora_alpha // 2, judge_format="adapter"
    )
    parts = {name: out / "parts" / name for name in PARTS}
    for name, path in parts.items():
        train.sft(model, rows[name], path, half)
    merged, tokenizer = adapter(model, parts, method, pairwise_weight, density, settings)
    keep = adapters.keeps_adapter(
        settings.judge_format, model, settings.quantization, models.torch_dtype(settings.dtype)
    )
    adapters.save_judge(merged, tokenizer, out, source=model, judge=settings.judge, adapter=keep)
    facts = [store.read_json(path / "train.json") for path in parts.values()]
    behind = [{**entry, "step": entry["step"] + facts[0]["steps"]} for entry in facts[1]["log"]]
    sums = {name: facts[0][name] + facts[1][name] for name in ("steps", "rows", "tokens", "seconds")}
    store.write_json(record, {**facts[0], **sums, "log": [*facts[0]["log"], *behind]})
    shutil.rmtree(out / "parts", ignore_errors=True)
    return store.read_json(record)["log"]


def adapter(
    model: str | Path,
    parts: Mapping[str, Path],
    method: str,
    pairwise_weight: float,
    density: float,
    settings: train.Settings,
) -> tuple[Any, Any]:
    """The base with the merged adapter `default` on top, of the rank and alpha in `settings`, and its tokenizer; on the CPU.

    `parts` are the directories of the adapters, pointwise and pairwise.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    models.hush()
    base = models.load_transformers(str(model), dtype=torch.float32, device="cpu")
    merged = PeftModel.from_pretrained(base, parts["pointwise"], adapter_name="pointwise")
    merged.load_adapter(parts["pairwise"], "pairwise")
    torch.manual_seed(settings.seed)  # dare draws what it drops
    how = dict(combination_type=METHODS[method], svd_rank=settings.lora_rank, svd_full_matrices=False)
    merged.add_weighted_adapter(list(PARTS), [1 - pairwise_weight, pairwise_weight], "default", density=density, **how)
    merged.peft_config["default"].lora_alpha = settings.lora_alpha
    for module in merged.modules():
        if isinstance(module, LoraLayer):  # PEFT made alpha the rank, which scales by 1
            module.scaling["default"] = settings.lora_alpha / settings.lora_rank
            module.lora_B["default"].weight.data /= module.scaling["default"]
    merged.set_adapter("default")
    return merged, models.load_tokenizer(parts["pointwise"])
