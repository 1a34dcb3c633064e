"""Base, adapters, backend: Unsloth first, transformers + PEFT where it cannot serve.

A model is a path or a hub id; nothing here knows how large it is. Training makes a LoRA adapter and writes the judge as
one complete directory: merged weights (safetensors), tokenizer, and judge.json, which says how its prompts are written.
So the next stage starts from a directory, never from a model in memory: TRL's SFTTrainer leaves a patched forward on
the one it trained, and DPO's reference is exactly what lies on disk.

    model, tokenizer = load("models/tiny-base")
    model = add_lora(model, rank=16, alpha=32, seed=0)
    save_judge(trained, tokenizer, Path("runs/tiny/judges/sft"), source="models/tiny-base", judge={"template": "brief"})
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from srlib import store

BACKENDS = ("auto", "unsloth", "transformers")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEFAULTS = {"template": "brief", "rationale": True, "max_new_tokens": 128}  # of a model that has no judge.json


class ModelError(RuntimeError):
    """A model that cannot be loaded or is not what it should be. Says what is wrong and what to do."""


@functools.cache
def resolve_backend(backend: str = "auto") -> str:
    """`auto` -> `unsloth` where it imports and serves (its CPU backend included), else `transformers`.

    Unsloth patches trl and transformers, so this has to come before trl is imported; a session that imported trl before
    stays with transformers under `auto`. Asked for by name, a missing Unsloth is an error.
    """
    if backend not in BACKENDS:
        raise ModelError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "transformers":
        return backend
    if backend == "auto" and "trl" in sys.modules and "unsloth" not in sys.modules:
        return "transformers"
    try:
        with _quiet():
            import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError) as error:
        if backend == "auto":
            return "transformers"
        raise ModelError(
            f"backend unsloth does not work here ({type(error).__name__}: {error}); install it with `make unsloth`, or "
            "set backend to transformers"
        ) from error
    return "unsloth"


@contextlib.contextmanager
def _quiet():
    """Unsloth greets on stdout; a notebook's output is for the reader."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@functools.cache
def hush() -> None:
    """Once a process: no bars and no advice from the libraries below; their errors still come through."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load(
    model: str | Path, *, backend: str = "transformers", quantization: str = "none", training: bool = False
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, in fp32 on a CPU and bf16 on a GPU; `4bit` is NF4 (bitsandbytes).

    Raises ModelError on a directory that is not a model and on a tokenizer that does not belong to it. Remote code and
    pickled weights are never loaded.
    """
    check_model(model)
    hush()
    if quantization not in ("none", "4bit"):
        raise ModelError(f"quantization {quantization!r} is not one of none, 4bit")
    # Judging shares the prompt through transformers' attention interface, so `auto` takes Unsloth for training only.
    if (training or backend != "auto") and resolve_backend(backend) == "unsloth":
        loaded, tokenizer = _load_unsloth(str(model), quantization)
    else:
        loaded, tokenizer = _load_transformers(str(model), quantization)
    if quantization == "4bit":
        _mend_4bit(loaded)
    _check_tokenizer(model, loaded, tokenizer)
    loaded.config.use_cache = not training
    return (loaded.train() if training else loaded.eval()), tokenizer


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer alone, which is all that counting and cutting take."""
    check_model(model)
    hush()
    from transformers import AutoTokenizer

    with _explained(str(model)):
        return AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)


def _load_transformers(model: str, quantization: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = dict(
        dtype=_dtype(), trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if quantization == "4bit":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_dtype(),
        )
    if torch.cuda.is_available():
        settings["device_map"] = "auto"
    with _explained(model):
        loaded, info = AutoModelForCausalLM.from_pretrained(model, **settings)
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model {model} lacks weights: {store.shorten(sorted(info['missing_keys']))}; copy or train it again"
        )
    return loaded, load_tokenizer(model)


def _load_unsloth(model: str, quantization: str) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    with _explained(model), _quiet():
        return FastLanguageModel.from_pretrained(
            model, max_seq_length=None, load_in_4bit=quantization == "4bit", dtype=_dtype(), trust_remote_code=False
        )


def _dtype() -> Any:
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@contextlib.contextmanager
def _explained(model: str):
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {model} cannot be loaded: {error}") from error


def check_model(model: str | Path) -> None:
    """Refuse a local directory that is not a model before anything is imported; a hub id is left to the hub."""
    path = Path(model).expanduser()
    if not path.exists():
        if str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:
            raise ModelError(
                f"model {model}: there is no such directory; give a model directory or a hub id (owner/name)"
            )
        return
    if not path.is_dir():
        raise ModelError(f"model {model} is a file; give the directory that holds config.json and the weights")
    for what, pattern in (("config.json", "config.json"), ("weights", "*.safetensors"), ("tokenizer", "tokenizer*")):
        if not list(path.glob(pattern)):
            raise ModelError(
                f"model {model} is not a model directory: it holds no {what} ({pattern}); choose another one"
            )


def _check_tokenizer(name: str | Path, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"model {name}: its tokenizer has {len(tokenizer)} tokens and its embedding {rows} rows: the tokenizer is "
            "another model's; copy the right tokenizer files into the directory"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {name}: its tokenizer has no end-of-sequence token; a judgment could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _mend_4bit(model: Any) -> None:
    """On CPUs with avx512_bf16 one forward pass in eval mode repacks the weights in place and breaks the training after
    it (bitsandbytes 0.50.2); this switches the repacking off."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def add_lora(
    model: Any,
    *,
    backend: str = "transformers",
    quantization: str = "none",
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    seed: int = 0,
) -> Any:
    """The model with a fresh adapter on all linear projections, the only part that trains; at first it changes nothing.

    With `rank` 0 there is no adapter and all weights train, which 4-bit weights cannot.
    """
    import torch

    torch.manual_seed(seed)
    if rank == 0:
        if quantization != "none":
            raise ModelError("lora_rank 0 trains all weights, and quantized ones cannot be trained; set one of the two")
        return model.requires_grad_(True)
    if resolve_backend(backend) == "unsloth":
        from unsloth import FastLanguageModel

        with _quiet():
            return FastLanguageModel.get_peft_model(
                model, r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LINEAR, bias="none",
                use_gradient_checkpointing=False, random_state=seed,
            )  # fmt: skip
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantization == "4bit":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LINEAR, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def save_judge(model: Any, tokenizer: Any, out: Path, *, source: str | Path, judge: dict[str, Any]) -> None:
    """Merge the trained adapter into the weights of `source` (read again, unquantized) and write the judge to `out`.

    Merging into the copy on disk leaves TRL's patched forward behind and is exact after 4-bit training, too. A model
    that was trained without an adapter is written as it is.
    """
    from peft import PeftModel

    adapter = out / "adapter"
    with saving(out):
        if not isinstance(model, PeftModel):
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            store.write_json(out / "judge.json", {**DEFAULTS, **judge})
            return
        model.save_pretrained(adapter, selected_adapters=["default"])
        fresh, _ = _load_transformers(str(source), "none")
        merged = PeftModel.from_pretrained(fresh, adapter).merge_and_unload()
        merged.save_pretrained(out)
        tokenizer.save_pretrained(out)
        shutil.rmtree(adapter)
    store.write_json(out / "judge.json", {**DEFAULTS, **judge})


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


def judge_info(model: str | Path) -> dict[str, Any]:
    """What judge.json says of a judge: `{"template": "brief", "rationale": True, ...}`; the defaults for any other model."""
    path = Path(model).expanduser() / "judge.json"
    if not path.is_file():
        return dict(DEFAULTS)
    info = store.read_json(path)
    if not isinstance(info, dict) or not isinstance(info.get("template", ""), str):
        raise ModelError(f"{path} is not what a judge's directory holds; train the judge again or delete the file")
    return {**DEFAULTS, **info}
