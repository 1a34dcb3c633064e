"""LoRA: the adapter that trains, and the judge that comes of it.

Training never touches the weights below the adapter. The judge that it makes is one directory in one of two forms:
`merged`, the complete weights with the adapter added in, which is exact in fp32; or `adapter`, the adapter alone beside
the name of its base. Rounded to 16 or 4 bit, a merged judge is not the one that was trained, so there the adapter is kept
and goes on: J(t) is trained from the adapter of J(t-1), one lineage, and nothing is ever stacked on top of it.

    model, tokenizer = models.load("models/tiny-base", training=True)
    model = add_lora(model, rank=16, alpha=32, seed=0)
    save_judge(trained, tokenizer, Path("runs/tiny/judges/sft"), source="models/tiny-base", judge={"template": "brief"})
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib.models import load as models
from srlib.models.load import ModelError

FORMATS = ("auto", "merged", "adapter")
ALL = "all-linear"


def targets(model: Any, wanted: str = ALL) -> list[str]:
    """Names of the layers that get an adapter: `all-linear -> ["down_proj", "gate_proj", "k_proj", ...]`.

    All linear layers but the output head (QLoRA, arXiv 2305.14314, section 4), or those of a comma list, each of which
    the model must have: PEFT would train with the others and say nothing.
    """
    import torch

    head = model.get_output_embeddings()
    linear = [
        name.removesuffix(".base_layer")  # what an adapter wraps already
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and ".lora_" not in name
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if wanted == ALL:
        return known
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ModelError(
            f"lora_targets {store.shorten(wanted)}: {type(model).__name__} has no linear layer {', '.join(missing)} below "
            f"its output head; write {ALL}, or some of {','.join(known)}"
        )
    return sorted(set(names))


def add_lora(
    model: Any,
    *,
    backend: str = "transformers",
    quantization: str = "none",
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    lora_targets: str = ALL,
    seed: int = 0,
) -> Any:
    """The model with an adapter, the only part that trains: a fresh one, which at first changes nothing, or the one that a
    judge came with, as it is. Then rank, alpha, dropout and targets have to be those it was made with (ModelError).

    With `rank` 0 there is no adapter and all weights train, which 4-bit weights cannot.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        _check_same(model, dict(r=rank, lora_alpha=alpha, lora_dropout=dropout), lora_targets)
        return model
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError("the model is an adapter on the hub; download it, give its directory, and it is trained on")
    torch.manual_seed(seed)
    if rank == 0:
        if quantization != "none":
            raise ModelError("lora_rank 0 trains all weights, and quantized ones cannot be trained; set one of the two")
        return model.requires_grad_(True)
    settings: dict[str, Any] = dict(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets(model, lora_targets)
    )
    if models.resolve_backend(backend) == "unsloth":
        from unsloth import FastLanguageModel

        with models.quiet():
            return FastLanguageModel.get_peft_model(
                model, **settings, bias="none", use_gradient_checkpointing=False, random_state=seed
            )
    # The frozen weights stay what the sampler reads: PEFT's own preparation would put those that are not quantized,
    # the output head among them, into fp32.
    return get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))


def _check_same(model: Any, wanted: dict[str, Any], lora_targets: str) -> None:
    config = model.peft_config["default"]
    wanted = {**wanted, "target_modules": targets(model.get_base_model(), lora_targets)}
    found = {name: getattr(config, name) for name in wanted}
    found["target_modules"] = sorted(found["target_modules"])
    if found != wanted:
        names = [name for name in wanted if found[name] != wanted[name]]
        raise ModelError(
            f"the judge's adapter has {', '.join(f'{n} {found[n]}' for n in names)} and the parameters say "
            f"{', '.join(str(wanted[n]) for n in names)}: a judge is trained on in the adapter it came with; set the "
            "lora_... parameters to its own, or start from the base"
        )


def keeps_adapter(judge_format: str, source: str | Path, quantization: str, dtype: Any) -> bool:
    """Whether the judge is kept as an adapter. `auto`: unless the weights are in fp32, where merging is exact."""
    import torch

    if judge_format not in FORMATS:
        raise ModelError(f"judge_format {judge_format!r} is not one of {', '.join(FORMATS)}")
    if judge_format != "auto":
        return judge_format == "adapter"
    return quantization != "none" or dtype != torch.float32 or models.base_of(source) is not None


def save_judge(
    model: Any, tokenizer: Any, out: Path, *, source: str | Path, judge: dict[str, Any], adapter: bool = False
) -> None:
    """Write the trained judge to `out`: its adapter alone, or merged into the weights that `source` was trained from.

    These are read again, unquantized and on the CPU: the copy on disk has no patched forward (TRL leaves one on the model
    it trained), and needs no room on the GPU. A model that was trained without an adapter is written as it is.
    """
    from peft import PeftModel

    base = models.base_of(source) or str(source)
    info = {**models.DEFAULTS, **judge, "vocabulary": models.vocabulary(tokenizer)}
    info["base"] = models.judge_info(source).get("base", str(source))
    trained = out if adapter else out / "adapter"
    with saving(out):
        if isinstance(model, PeftModel):
            _save_adapter(model, trained, base)
        else:
            ending(model, tokenizer).save_pretrained(out)
        if isinstance(model, PeftModel) and not adapter:
            merge(base, trained, tokenizer, dtype=model.get_input_embeddings().weight.dtype).save_pretrained(out)
            shutil.rmtree(trained)
        tokenizer.save_pretrained(out)
    store.write_json(out / "judge.json", info)


def _save_adapter(model: Any, out: Path, base: str) -> None:
    local = Path(base).expanduser()
    model.peft_config["default"].base_model_name_or_path = str(local.resolve()) if local.is_dir() else base
    model.save_pretrained(out, selected_adapters=["default"])
    (out / "README.md").unlink(missing_ok=True)  # PEFT's, with nothing in it


def merge(base: str, adapter: Path, tokenizer: Any, dtype: Any = None) -> Any:
    """The base's weights with the adapter added in, on the CPU; a text ends where a turn ends, too."""
    fresh = models.load_transformers(base, dtype=dtype, device="cpu")
    return ending(models.with_adapter(fresh, adapter).merge_and_unload(), tokenizer)


def ending(model: Any, tokenizer: Any) -> Any:
    """`generate` and servers stop at the end of a turn, whatever else the base's own settings name."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return model


@contextlib.contextmanager
def saving(path: Path):
    """store.writing for what safetensors and torch write: theirs are no OSErrors when the disk is full."""
    from safetensors import SafetensorError

    with store.writing(path):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            text = str(error)
            if "I/O error" in text or ("inline_container" in text and "StreamReader" not in text):
                raise OSError(errno.EIO, text) from error
            raise
