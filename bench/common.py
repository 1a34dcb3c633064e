"""What every benchmark needs: a model of a given size with random weights, texts of a given length, a process of its own.

Speed and memory do not depend on the weights, so the models are random Llamas. Each measurement runs in a new process,
because memory that a process once had is not given back.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "bench"
SHAPES = {  # hidden, layers, heads, key heads, head size, MLP, vocabulary, tied output head
    "tiny": (128, 4, 4, 4, 32, 384, 1536, True),
    "10m": (256, 8, 4, 4, 64, 768, 8192, True),
    "25m": (384, 10, 6, 2, 64, 1024, 16384, False),
    "60m": (512, 12, 8, 4, 64, 1536, 32768, True),
    "llama-3.2-1b": (2048, 16, 32, 8, 64, 8192, 128256, True),
    "llama-3.1-8b": (4096, 32, 32, 8, 128, 14336, 128256, False),
}


def random_model(shape: str, folder: str | Path) -> str:
    """Write a random Llama of this shape with the tiny judge's tokenizer; returns its directory."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, head, mlp, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head, intermediate_size=mlp, tie_word_embeddings=tied,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    (model.bfloat16() if torch.cuda.is_available() else model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-base").save_pretrained(folder)
    return str(folder)


def words(tokenizer: Any, n: int, seed: str) -> str:
    """A text of exactly `n` tokens behind another word: `" day host price"` for n = 3."""
    return "".join(random.Random(seed).choices(_known(tokenizer), k=n))


@functools.lru_cache(1)
def _known(tokenizer: Any) -> list[str]:
    known = [text for i in range(len(tokenizer)) if (text := tokenizer.decode([i]))[:1] == " " and text[1:].isalpha()]
    return [text for text in known if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1]


def in_process(script: str, work: dict[str, Any]) -> dict[str, Any]:
    """`measure(work)` of a script of this folder, in a process of its own: what it prints last, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment |= {"OMP_NUM_THREADS": str(work.get("threads", 1))}
    command = [sys.executable, str(ROOT / "bench" / script), "--one", json.dumps(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed on {work}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> int:
    """Start a new peak; returns the bytes held now: of the GPU if there is one, else of this process."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """The facts that a figure is worth nothing without."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes", "triton", "xformers", "flash_attn")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "device": device, "gpu": torch.cuda.is_available(), "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2), "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }  # fmt: skip


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith("flags"))
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
        return f"{name}, {'with' if 'bf16' in flags else 'without'} bf16 instructions"
    return platform.processor() or platform.machine()


def write(name: str, result: dict[str, Any], title: str, header: list[str], lines: list[list[Any]], note: str) -> str:
    """Write docs/bench/<name>.json and .md; returns the Markdown."""
    versions = ", ".join(f"{package} {version}" for package, version in result["machine"]["versions"].items())
    rows = [header, ["---:"] * len(header), *lines]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    where = f"{result['machine']['device']}, {result['machine']['cores']} cores, load {result['machine']['load_average']} before"
    text = (
        f"# {title}\n\n`{result['command']}`, {result['machine']['date']}. {where}. {note}\n\n{table}\n\n{versions}\n"
    )
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (DOCS / f"{name}.md").write_text(text)
    return text


def temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="srlib-bench-")
