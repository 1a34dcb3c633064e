"""Load a base model or a judge, the same way for training and for judging.

A model is a directory, a hub id or a GGUF file (gguf.py). A judge is a directory with judge.json and complete weights, or an
adapter and the name of its base. Functions import transformers and peft themselves: if Unsloth trains, it comes before both."""

import contextlib
import datetime
import functools
import gc
import hashlib
import io
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from jinja2 import TemplateError
from safetensors import SafetensorError

from srlib import config, files, prompts
from srlib.models import gguf
from srlib.models.attention import looks_ahead
from srlib.models.gguf import ModelError

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # transformers' function for chat templates
DEFAULTS = {"template": "prometheus", "rationale": True, "max_new_tokens": 512, "score_step": 0.25}  # no judge.json


@functools.cache
def hush() -> None:
    """Silence the progress bars and advice of transformers and bitsandbytes; their errors still show."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def torch_dtype(dtype: str = "auto") -> torch.dtype:
    """`"bfloat16" -> torch.bfloat16`; `auto` is fp32 on a CPU, bf16 on a GPU that computes in it, else fp16."""
    if dtype == "auto" and torch.cuda.is_available():  # a T4 emulates bf16, slowly, and torch calls that supported
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ModelError(f"dtype {dtype!r} is not one of auto, float32, bfloat16, float16")
    return torch.float32 if dtype == "auto" else getattr(torch, dtype)


def load(
    model: str | Path,
    *,
    backend: str = "transformers",
    quantization: str = "none",
    dtype: str = "auto",
    training: bool = False,
    checkpointing: bool = False,
    max_length: int = 2048,
) -> tuple[Any, Any]:
    """The causal language model and its tokenizer; `4bit` is bitsandbytes' nf4 (QLoRA, arXiv 2305.14314). A
    judge that is an adapter comes with its base: for training as a PeftModel, for judging with the adapter in the
    base's layers, never merged, so it computes what it computed in training. Loads no remote code and no pickled
    weights. `max_length` is for Unsloth, which sets memory aside for rows of that length and cuts longer ones."""
    if quantization not in ("none", "4bit"):
        raise ModelError(f"quantization {quantization!r} is neither none nor 4bit")
    gc.collect()  # models that nobody needs any more: in 4 bit their layers hold each other
    model = gguf.directory(model)
    unsloth = training and resolve_backend(backend) == "unsloth"
    tokenizer, base, torch_type = load_tokenizer(model), base_of(model), torch_dtype(dtype)
    if unsloth:
        loaded = _load_unsloth(str(model), quantization, torch_type, checkpointing, max_length)
    else:
        loaded = load_transformers(str(base or model), quantization, torch_type)
        if base is not None:
            loaded = with_adapter(loaded, model, training)
            loaded = loaded if training else loaded.get_base_model()
    soft_caps = getattr(loaded.config.get_text_config(), "attn_logit_softcapping", None)
    if soft_caps and not (unsloth and torch.cuda.is_available()):  # there, Unsloth has attention kernels of its own
        loaded.set_attn_implementation("eager")  # torch's attention would silently leave out the soft caps
    if quantization == "4bit":
        if not getattr(loaded, "is_loaded_in_4bit", False):
            raise ModelError(f"model {model} could not be loaded in 4 bit here; set quantization to none")
        if sum(p.numel() for p in loaded.parameters() if p.ndim == 3) > loaded.num_parameters() / 2:
            raise ModelError(f"model {model}: its experts would stay in 16 bit; set quantization to none")
        for module in loaded.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # else a forward pass in eval mode repacks the weights on
                module.support_avx512bf16_for_cpu = False  # such CPUs, and breaks later training (bitsandbytes 0.50.2)
    if (n := len(tokenizer)) > (rows := loaded.get_input_embeddings().num_embeddings):
        raise ModelError(f"model {model}: {n} tokens, {rows} rows in its embedding; copy the right tokenizer")
    if not unsloth:
        with _as_model_error(model, Exception):  # models raise anything
            loaded.eval()
            if looks_ahead(loaded):
                loaded.set_attn_implementation("eager")
                if looks_ahead(loaded):
                    raise ModelError("its attention is not causal; take a causal language model")
    loaded.config.use_cache = not training
    return (loaded.train() if training else loaded.eval()), tokenizer


def load_transformers(model: str, quantization: str = "none", dtype: Any = "auto", device: str = "cuda") -> Any:
    """The model alone. It goes to one GPU (`device`) as a whole, if there is any."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model, options = str(gguf.directory(model)), {"device_map": device} if torch.cuda.is_available() else {}
    if quantization == "4bit":
        bits = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        options["quantization_config"] = BitsAndBytesConfig(**bits, bnb_4bit_use_double_quant=True)
    options |= dict(dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    with _as_model_error(model):
        loaded, info = AutoModelForCausalLM.from_pretrained(model, **options)
    if info["missing_keys"]:  # transformers would put random numbers in their place
        raise ModelError(f"model {model} lacks weights: {files.shorten(sorted(info['missing_keys']))}; copy it again")
    return loaded


def _load_unsloth(model: str, quantization: str, dtype: Any, checkpointing: bool, max_length: int):
    from unsloth import FastLanguageModel

    if dtype == torch.float32 and torch.cuda.is_available():
        raise ModelError("on a GPU Unsloth computes float32 in bf16; set backend: transformers")
    options = dict(dtype=dtype, trust_remote_code=False, use_gradient_checkpointing=checkpointing and offloaded())
    options |= dict(load_in_4bit=quantization == "4bit", use_exact_model_name=True)  # not Unsloth's own quantized copy
    options |= {"device_map": "cuda"} if torch.cuda.is_available() else {}  # its default spreads over several GPUs
    with _as_model_error(model, RuntimeError), contextlib.redirect_stdout(io.StringIO()):
        return FastLanguageModel.from_pretrained(model, max_seq_length=max_length, **options)[0]


def offloaded() -> str | bool:
    """Unsloth's own way of checkpointing on a GPU, which keeps activations in the machine's RAM; the usual one on a CPU."""
    return "unsloth" if torch.cuda.is_available() else True


def with_adapter(loaded: Any, adapter: str | Path, training: bool = False) -> Any:
    """A PeftModel: the loaded base with the adapter in the directory `adapter` on top."""
    from peft import PeftModel

    with _as_model_error(adapter, RuntimeError, UserWarning), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # a weight of another shape is an error
        return PeftModel.from_pretrained(loaded, str(Path(adapter).expanduser()), is_trainable=training)


@contextlib.contextmanager
def _as_model_error(model: str | Path, *more: type[Exception]):
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError, *more) as error:
        gated = "; ask for access on its page, then `hf auth login`, or take another, such as Qwen/Qwen2.5-7B-Instruct"
        raise ModelError(f"model {model} cannot be loaded: {error}{gated * ('gated repo' in str(error))}") from error


def base_of(model: str | Path) -> str | None:
    """The base of a judge that is an adapter, None for any other model. adapter_config.json holds its full path, as plain
    transformers needs it; if the project has moved since, the base is found below its root, by the name in judge.json."""
    path = Path(model).expanduser()
    if not (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return None
    recorded = str(files.read_json(path / "adapter_config.json").get("base_model_name_or_path"))
    name = str(judge_info(path).get("base", recorded))
    if not Path(recorded).is_absolute() or Path(recorded).is_dir():  # a hub id, or where it was
        return recorded
    if name.lower().endswith(".gguf"):  # the cache was on another machine, or is gone
        return str(gguf.directory(name))
    with contextlib.suppress(config.ParamError):  # outside a clone of the project
        if (moved := config.project_root(path) / name).is_dir():
            return str(moved)
    raise ModelError(f"model {model} is an adapter, and its base {name} is missing; put it back where it was")


def check_model(model: str | Path) -> None:
    """Refuse a local directory that is not a model (ModelError); a hub id is left to the hub."""
    path = Path(gguf.directory(model)).expanduser()
    if not path.exists() and not str(model).startswith((".", "/", "~")) and str(model).count("/") == 1:
        return
    if not path.is_dir():
        raise ModelError(f"model {model}: there is no such directory; give a model directory or a hub id (owner/name)")
    needed = ["config.json", "*.safetensors", "tokenizer*"]
    if (base := base_of(path)) is not None:
        check_model(base)
        needed = ["adapter_model.safetensors", "tokenizer*"]
    if missing := [pattern for pattern in needed if not list(path.glob(pattern))]:
        raise ModelError(f"model {model} is not a model directory: it holds no {missing[0]}")


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer, with the end of a turn as its end-of-sequence token, and such that a prompt ends where the judgment
    begins and is the same on any day. Raises ModelError if it is not the judge's own, or cannot write such prompts."""
    from transformers import AutoTokenizer

    model = gguf.directory(model)
    check_model(model)
    hush()
    with _as_model_error(model):
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {model}: its tokenizer has no end-of-sequence token, so a judgment could not end")
    if judge_info(model).get("vocabulary") not in (None, vocabulary(tokenizer)):
        raise ModelError(f"model {model}: its tokenizer is not the one it was trained with; copy the right files there")
    _add_nothing_behind_a_text(model, tokenizer)
    remedy = "change the template, chat_template.jinja, or remove it if the model can do without"
    try:
        if tokenizer.chat_template is not None:  # of several, the default one
            day = datetime.date(2024, 7, 26)  # Llama 3's own default: a prompt is the same tomorrow
            fixed = _TODAY.sub(lambda call: call[1] + day.strftime(call[2]) + call[1], tokenizer.get_chat_template())
            tokenizer.chat_template = fixed
        rendered = prompts.rendered(tokenizer, "@question@")
    except Exception as error:  # templates raise anything
        raise ModelError(f"model {model}: its chat template refuses a single user turn ({error}); {remedy}") from error
    if "strftime_now(" in (tokenizer.chat_template or ""):
        raise ModelError(f"model {model}: its chat template writes the date of the day; {remedy}")
    if "@question@" not in rendered:
        raise ModelError(f"model {model}: its chat template leaves out what the user writes; {remedy}")
    tokenizer.eos_token = end_of_turn(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _add_nothing_behind_a_text(model: str | Path, tokenizer: Any) -> None:
    """Undo an end-of-sequence token that a tokenizer adds to every text: the judgment would begin behind it."""
    from tokenizers.processors import TemplateProcessing

    bare, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    if whole[len(whole) - len(bare) :] == bare:
        return
    if hasattr(tokenizer, "backend_tokenizer"):
        first = tokenizer.convert_ids_to_tokens(whole[: whole.index(bare[0])])
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(first)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=[*first, "$A"], special_tokens=special)
    if tokenizer("a")["input_ids"][-len(bare) :] != bare:
        raise ModelError(f"model {model}: its tokenizer adds a token to the end of every text; turn that off")


def end_of_turn(tokenizer: Any) -> str:
    """The token that ends the assistant's turn in the chat template, `<|eot_id|>` or `<end_of_turn>`; often it is not the
    end-of-sequence token, which is returned if there is no template or the template writes no token there."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "@answer@"}]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except (ValueError, TemplateError):  # no template; a template that refuses these turns
        return tokenizer.eos_token
    after = tokenizer(rendered.rpartition("@answer@")[2], add_special_tokens=False)["input_ids"]
    special = tokenizer.added_tokens_decoder
    return next((str(special[i]) for i in after if i in special), tokenizer.eos_token)


def vocabulary(tokenizer: Any) -> str:
    """Hash of the map from token to id: two tokenizers of one size may still differ."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def resolve_backend(backend: str = "auto", lora_rank: int = 1, dtype: str = "auto") -> str:
    """`auto` -> `unsloth` if it works here, trains an adapter alone and was imported before trl, which it patches; else, and for
    `float32`, which Unsloth computes in bf16 on a GPU, `transformers`."""
    alone = "WORLD_SIZE" not in os.environ and ("trl" not in sys.modules or "unsloth" in sys.modules)
    if backend == "transformers" or (backend == "auto" and not (alone and lora_rank and dtype != "float32")):
        return "transformers"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a greeting
            import unsloth  # noqa: F401
    except Exception as error:  # it patches other libraries as it is imported, and any of them may be too new
        if backend == "unsloth":
            raise config.ParamError(
                f"backend unsloth does not work here: {error}; run `make unsloth` or change it"
            ) from error
        if getattr(error, "name", "") != "unsloth":  # it is installed
            print(f"Unsloth cannot be imported, so transformers trains ({files.shorten(str(error), 200)})")
        return "transformers"
    return "unsloth"


def judge_info(model: str | Path, **defaults: Any) -> dict[str, Any]:
    """judge.json of a judge, `{"template": "brief", "rationale": True, ...}`; of another model `defaults` and DEFAULTS."""
    path = Path(model).expanduser() / "judge.json"
    if model and not path.parent.exists() and str(model).count("/") == 1:
        with contextlib.suppress(OSError, ValueError):  # no such repository or file, or no network
            path = Path(hf_hub_download(str(model), "judge.json"))
    info = files.read_json(path) if model and path.is_file() else {}
    described = isinstance(info, dict) and info.get("template", "brief") in prompts.TEMPLATES
    if not described or type(info.get("max_new_tokens", 1)) is not int:
        raise ModelError(f"{path} does not describe a judge; train the judge again or delete the file")
    return {**DEFAULTS, **defaults, **info}
