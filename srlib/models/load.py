"""Models and tokenizers: a base, or a judge in either of its forms, loaded the same way for training and for judging.

A model is a path or a hub id; nothing here knows how large it is. A judge is a directory: complete weights, or an adapter
alone whose base is read beside it; both load with plain transformers. judge.json says how its prompts are written, which
vocabulary it was trained with and what its base is. Training runs through Unsloth where it serves; judging shares the
prompt through transformers' attention interface, which Unsloth's own layers do not have.

    model, tokenizer = load("models/tiny-base")
    model, tokenizer = load("runs/tiny/judge", quantization="4bit", dtype="bfloat16")
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from srlib import config as params
from srlib import files as store
from srlib.schema import SrlibError

BACKENDS = ("auto", "unsloth", "transformers")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULTS = {"template": "brief", "rationale": True, "max_new_tokens": 128}  # of a model that has no judge.json


class ModelError(SrlibError):
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
        with quiet():
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
def quiet():
    """Unsloth greets on stdout; a notebook's output is for the reader."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@functools.cache
def hush() -> None:
    """Once a process: no bars and no advice from the libraries below; their errors still come through."""
    import logging

    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def torch_dtype(dtype: str = "auto") -> Any:
    """`"bfloat16" -> torch.bfloat16`; `auto` is fp32 on a CPU, bf16 on a GPU that computes in it, fp16 on an older one.

    torch emulates bf16 on a T4, slowly, and calls that support; only native support counts here.
    """
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(
    model: str | Path,
    *,
    backend: str = "transformers",
    quantization: str = "none",
    quant_type: str = "nf4",
    dtype: str = "auto",
    training: bool = False,
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer; `dtype` as in `torch_dtype`, `4bit` is bitsandbytes' nf4 or fp4.

    Of a judge that is an adapter, the base is loaded and the adapter on top: for training a PeftModel that goes on with
    it, for judging the base with the adapter in its layers, never merged, so it computes what it computed in training.
    Raises ModelError on a directory that is not a model and on a tokenizer that does not belong to it. Remote code and
    pickled weights are never loaded.
    """
    import torch

    check_model(model)
    hush()
    if quantization not in ("none", "4bit") or quant_type not in ("nf4", "fp4"):
        raise ModelError(f"quantization {quantization!r}, {quant_type!r} is not one of none, 4bit and of nf4, fp4")
    wanted = torch_dtype(dtype)
    if backend != "auto" or training:
        backend = resolve_backend(backend)
    if training and backend == "unsloth":
        loaded = _load_unsloth(str(model), quantization, quant_type, wanted)
    else:
        loaded = load_transformers(str(base_of(model) or model), quantization, quant_type, wanted)
        if base_of(model) is not None:
            loaded = with_adapter(loaded, model, training=training)
            loaded = loaded if training else loaded.get_base_model()
    if getattr(loaded.config.get_text_config(), "attn_logit_softcapping", None) and not (
        training and backend == "unsloth" and torch.cuda.is_available()  # with attention of its own
    ):
        loaded.set_attn_implementation("eager")  # torch's attention would leave the caps out, and nothing would say so
    if quantization == "4bit":
        if not getattr(loaded, "is_loaded_in_4bit", False):
            raise ModelError(f"model {model} could not be loaded in 4 bit here; set quantization to none")
        _mend_4bit(loaded)
    tokenizer = load_tokenizer(model)
    _check_size(model, loaded, tokenizer)
    loaded.config.use_cache = not training
    return (loaded.train() if training else loaded.eval()), tokenizer


def load_transformers(
    model: str, quantization: str = "none", quant_type: str = "nf4", dtype: Any = None, device: str = "cuda"
) -> Any:
    """The model itself through plain transformers; `dtype` None keeps that of its files. `device` counts where there is a
    GPU: one of them, since a model that is spread over several has its layers elsewhere than what is shared among draws."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = dict(
        dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if quantization == "4bit":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if torch.cuda.is_available():
        settings["device_map"] = device
    with explained(model):
        loaded, info = AutoModelForCausalLM.from_pretrained(model, **settings)
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model {model} lacks weights: {store.shorten(sorted(info['missing_keys']))}; copy or train it again"
        )
    return loaded


def _load_unsloth(model: str, quantization: str, quant_type: str, dtype: Any) -> Any:
    """An adapter's base comes with it. `use_exact_model_name`: Unsloth would rather take a quantized copy of its own, and
    the judge would be trained on another base than it judges with."""
    from unsloth import FastLanguageModel

    four = quantization == "4bit"
    if four and quant_type != "nf4":
        raise ModelError(
            f"Unsloth quantizes to nf4, not to {quant_type}; set quant_type to nf4 or backend to transformers"
        )
    with explained(model), quiet():
        return FastLanguageModel.from_pretrained(
            model, max_seq_length=None, load_in_4bit=four, dtype=dtype, trust_remote_code=False,
            use_exact_model_name=True, use_gradient_checkpointing=False,
        )[0]  # fmt: skip


def with_adapter(loaded: Any, adapter: str | Path, training: bool = False) -> Any:
    """A PeftModel: the loaded base with the adapter in `adapter` on top."""
    from peft import PeftModel

    with explained(str(adapter)), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(loaded, str(Path(adapter).expanduser()), is_trainable=training)
        except (RuntimeError, UserWarning) as error:  # a weight of another shape; a weight that is not there
            raise ModelError(f"model {adapter}: its adapter does not fit its base: {error}; train it again") from error


@contextlib.contextmanager
def explained(model: str):
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {model} cannot be loaded: {error}") from error


def base_of(model: str | Path) -> str | None:
    """The base under a judge that is an adapter, None for any other model.

    adapter_config.json names it, a local one by its full path, which is where plain transformers looks; where the project
    was moved since, it is looked for beside the project's notebooks under the name that the user gave.
    """
    path = Path(model).expanduser()
    if not (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return None
    named = str(store.read_json(path / "adapter_config.json").get("base_model_name_or_path"))
    given = str(judge_info(path).get("base", named))
    if not Path(named).is_absolute():  # on the hub
        return named
    if Path(named).is_dir():
        return named
    with contextlib.suppress(params.ParamError):  # outside a clone of the project
        if (place := params.project_root(path) / given).is_dir():
            return str(place)
    raise ModelError(f"model {model} is an adapter, and its base {given} is not there; put it back where it was")


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
    needed = [("config.json", "config.json"), ("weights", "*.safetensors"), ("tokenizer", "tokenizer*")]
    if (base := base_of(path)) is not None:
        check_model(base)
        needed = [("weights", "adapter_model.safetensors"), ("tokenizer", "tokenizer*")]
    for what, pattern in needed:
        if not list(path.glob(pattern)):
            raise ModelError(
                f"model {model} is not a model directory: it holds no {what} ({pattern}); choose another one"
            )


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer, which is all that counting and cutting take. Its end-of-sequence token is the one that ends a turn.

    Raises ModelError where it has none, and where its vocabulary is not the one that the judge was trained with.
    """
    check_model(model)
    hush()
    from transformers import AutoTokenizer

    with explained(str(model)):
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {model}: its tokenizer has no end-of-sequence token; a judgment could not end")
    if judge_info(model).get("vocabulary", vocabulary(tokenizer)) != vocabulary(tokenizer):
        raise ModelError(
            f"model {model}: its tokenizer is not the one it was trained with, although it may have as many tokens; "
            "copy the right tokenizer files into the directory"
        )
    tokenizer.eos_token = end_of_turn(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_of_turn(tokenizer: Any) -> str:
    """What ends the assistant's turn under the chat template: `<|eot_id|>`, `<|im_end|>`, `<end_of_turn>`, `</s>`.

    Often it is not the tokenizer's end-of-sequence token. Without a template, or where that writes no token at the end of
    a turn, it is.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return tokenizer.eos_token
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "@answer@"}]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return tokenizer.eos_token
    behind = tokenizer(rendered.rpartition("@answer@")[2], add_special_tokens=False)["input_ids"]
    known = tokenizer.added_tokens_decoder
    return next((str(known[i]) for i in behind if i in known), tokenizer.eos_token)


def vocabulary(tokenizer: Any) -> str:
    """Hash of token -> id: two tokenizers of one size are not one tokenizer."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _check_size(name: str | Path, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"model {name}: its tokenizer has {len(tokenizer)} tokens and its embedding {rows} rows: the tokenizer is "
            "another model's; copy the right tokenizer files into the directory"
        )


def _mend_4bit(model: Any) -> None:
    """On CPUs with avx512_bf16 one forward pass in eval mode repacks the weights in place and breaks the training after
    it (bitsandbytes 0.50.2); this switches the repacking off."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def judge_info(model: str | Path) -> dict[str, Any]:
    """What judge.json says of a judge: `{"template": "brief", "rationale": True, ...}`; the defaults for any other model."""
    path = Path(model).expanduser() / "judge.json"
    if not path.is_file():
        return dict(DEFAULTS)
    info = store.read_json(path)
    if not isinstance(info, dict) or not isinstance(info.get("template", ""), str):
        raise ModelError(f"{path} is not what a judge's directory holds; train the judge again or delete the file")
    return {**DEFAULTS, **info}
