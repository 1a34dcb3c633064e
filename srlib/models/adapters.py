"""LoRA: the adapter that is trained, and the judge that it becomes.

A judge is kept `merged`, complete weights with the adapter added in, which is exact in fp32; or as its `adapter` alone. A
merge rounded to 16 or 4 bit is no longer the judge that was trained. J(t) trains the adapter of J(t-1) on; none is stacked."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from srlib import files
from srlib.models import gguf, loading
from srlib.models.loading import ModelError, resolve_backend

MERGES = {"linear": "cat", "dare_linear": "dare_linear_svd", "ties": "ties_svd"}  # our names -> PEFT's


def linear_layers(model: Any, wanted: str = "all-linear") -> list[str]:
    """Names of the layers that get an adapter, `all-linear -> ["down_proj", "gate_proj", ...]`: all linear layers except
    the output head (QLoRA, arXiv 2305.14314, section 4), or those of a comma list. ModelError on a name that PEFT would ignore."""
    head = model.get_output_embeddings()
    linear = {
        name.removesuffix(".base_layer").rpartition(".")[2]  # the suffix is of a layer that has an adapter already
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and ".lora_" not in name
    }
    names = linear if wanted == "all-linear" else {name.strip() for name in wanted.split(",")}
    if names - linear:
        unknown, known = (", ".join(sorted(layers)) for layers in (names - linear, linear))
        raise ModelError(f"lora_targets: the model has no linear layer {unknown}; write all-linear, or some of {known}")
    return sorted(names)


def add_lora(
    model: Any,
    *,
    backend: str = "transformers",
    quantization: str = "none",
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    lora_targets: str = "all-linear",
    checkpointing: bool = False,
    seed: int = 0,
) -> Any:
    """The model with an adapter, the only part that trains: a fresh one, which changes nothing yet, or the judge's own, which
    has to have these settings (ModelError). `rank` 0 trains all weights, without an adapter. `checkpointing` is for Unsloth, which
    trains in the mode that it was given here or in `load`, whatever the trainer's arguments say."""
    from peft import LoraConfig, PeftModel, get_peft_model

    settings = dict(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear_layers(model, lora_targets))
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        adapted = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith(".lora_A")}
        present = {name: getattr(config, name) for name in settings} | {"target_modules": sorted(adapted)}
        if present != settings:
            raise ModelError(f"the judge's adapter has {present}, and the lora_... parameters say {settings}")
        return model
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError("the model is an adapter on the hub; download it and give its directory to train it further")
    torch.manual_seed(seed)
    if rank == 0 and quantization != "none":
        raise ModelError("lora_rank 0 trains all weights, which quantized weights do not allow; change one of the two")
    if rank == 0:
        return model.requires_grad_(True)
    if resolve_backend(backend) == "unsloth":
        from unsloth import FastLanguageModel

        settings |= dict(use_gradient_checkpointing=checkpointing and loading.offloaded(), random_state=seed)
        return FastLanguageModel.get_peft_model(model, **settings)
    # No prepare_model_for_kbit_training: it turns what is not quantized into fp32, which sampling does not read.
    return get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))


def keeps_adapter(judge_format: str, source: str | Path, quantization: str, dtype: Any) -> bool:
    """Whether the judge is kept as an adapter: `auto` merges a fresh adapter into fp32 weights, where that is exact."""
    exact = quantization == "none" and dtype == torch.float32 and loading.base_of(source) is None
    return not exact if judge_format == "auto" else judge_format == "adapter"


def save_judge(model: Any, tokenizer: Any, out: Path, *, source: Any, judge: Mapping, adapter: bool = False) -> None:
    """Write the trained judge to `out`, with `judge` in its judge.json: as its adapter, or merged into the base's
    weights. A merge reads these again, unquantized, on the CPU: a GPU may be full, and TRL patches what it trains."""
    from peft import PeftModel

    base = loading.base_of(source) or str(gguf.directory(source))
    with gguf.saving(out):
        if isinstance(model, PeftModel):
            part, local = (out if adapter else out / "adapter"), Path(base).expanduser()
            model.peft_config["default"].base_model_name_or_path = str(local.resolve()) if local.is_dir() else base
            model.save_pretrained(part, selected_adapters=["default"])
            (part / "README.md").unlink(missing_ok=True)  # PEFT's empty form
            if not adapter:
                dtype = model.get_input_embeddings().weight.dtype
                model = loading.with_adapter(loading.load_transformers(base, dtype=dtype, device="cpu"), part)
                model = model.merge_and_unload()
                shutil.rmtree(part)
        if not isinstance(model, PeftModel):
            stop_at_end_of_turn(model, tokenizer).save_pretrained(out)
        tokenizer.save_pretrained(out)
    facts = {"vocabulary": loading.vocabulary(tokenizer), "base": loading.judge_info(source).get("base", str(source))}
    files.write_json(out / "judge.json", {**loading.DEFAULTS, **judge, **facts})


def stop_at_end_of_turn(model: Any, tokenizer: Any) -> Any:
    """Let `generate` and servers stop at the end of a turn, besides the stop tokens of the base's own settings."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    return model


def merge_adapters(
    base: str | Path,
    parts: Mapping[str, Path],
    method: str,
    pairwise_weight: float,
    density: float,
    rank: int,
    alpha: int,
    seed: int,
) -> tuple[Any, Any]:
    """One adapter of the base, made of a pointwise and a pairwise one (as in the paper), and the tokenizer.
    `parts` names their directories; each has half of `rank`. With w = pairwise_weight, the update of the weights
    becomes `linear`, (1 - w) pointwise + w pairwise, exactly (PEFT's `linear` mixes the A of one with the B of the
    other); `dare_linear`, the same after dropping a random 1 - density of each and rescaling the rest (arXiv
    2311.03099); `ties`, the largest entries of the sign with the larger sum (arXiv 2306.01708). An SVD cuts these to `rank`."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names, scale, whole = ["pointwise", "pairwise"], alpha / rank, 2 if method == "ties" else 1  # PEFT's ties is a mean
    weights = [whole * (1 - pairwise_weight), whole * pairwise_weight]
    if loading.base_of(base) is not None:
        raise ModelError(f"sft_mode merge starts from a base, and {base} is an adapter; set sft_mode to mix")
    model = loading.load_transformers(str(base), dtype=torch.float32, device="cpu")
    model = PeftModel.from_pretrained(model, parts["pointwise"], adapter_name="pointwise")
    model.load_adapter(parts["pairwise"], "pairwise")
    if (ranks := [model.peft_config[name].r for name in names]) != [rank / 2, rank / 2]:
        raise ModelError(f"sft_mode merge: adapters of ranks {ranks}, not half of lora_rank {rank}; set an even one")
    torch.manual_seed(seed)  # dare_linear drops at random
    options = dict(density=density, svd_rank=rank, svd_full_matrices=False)
    model.add_weighted_adapter(names, weights, "default", MERGES[method], **options)
    model.peft_config["default"].lora_alpha = alpha
    for module in model.modules():
        if isinstance(module, LoraLayer):  # PEFT sets alpha to the rank, that is, a scale of 1
            module.scaling["default"] = scale
            module.lora_B["default"].weight.data /= scale
    model.set_adapter("default")
    return model, loading.load_tokenizer(parts["pointwise"])
