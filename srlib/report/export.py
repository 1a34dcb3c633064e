"""Take a judge out of its run, as an adapter, as merged 16-bit weights or as GGUF, through a gate.

The gate: 32 items of the run, always the same, are judged greedily by the judge as the run used it, and again by what was
exported. Every score must be the same, and the log-probability of what the judge had written may move by no more than
TOLERANCE a token; else nothing is left behind. Rounding passes. A merge into other weights than those that the adapter
was trained on does not: after 4-bit training those are the quantized ones, so they are what is merged into, dequantized.

    export(Path("runs/tiny"), Path("my-judge"), "merged")   # my-judge/: weights, tokenizer, judge.json, README.md
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srlib import config as params
from srlib import files as store
from srlib import prompts
from srlib.models import adapters
from srlib.models import load as models
from srlib.report import card
from srlib.run import stages
from srlib.sample import decode as sample
from srlib.schema import Example, Judgment, SrlibError

FORMATS = ("adapter", "merged", "gguf")
ITEMS = 32
TOLERANCE = 0.02  # nats a token, in each of the judgments


class ExportError(SrlibError, ValueError):
    """An export that cannot start: what is missing, and what to do."""


class GateError(SrlibError):
    """What was written is not the judge that the run evaluated. It was deleted."""


@dataclass(frozen=True)
class Gate:
    """How near the exported judge is to the judge in its run; goes into export.json and the model card."""

    items: int
    same_score: int
    largest_difference: float  # nats a token, the largest over the items
    tolerance: float
    ids: list[str]


def export(run: Path, to: Path, how: str = "", push: str = "") -> Gate:
    """Write the judge of a run to the new directory `to` and, with `push`, to that private repository of the hub.

    `how` is one of FORMATS; by default as the run keeps it. Raises ExportError before anything is written, GateError when
    the gate does not hold; then there is nothing at `to`.
    """
    judge, to = run / "judge", to.expanduser()
    settings = _settings(run)
    how = how or ("adapter" if models.base_of(judge) else "merged")
    _check(judge, to, how, push)
    info, items = models.judge_info(judge), gate_items(run)
    how_loaded = {name: settings[name] for name in ("quantization", "quant_type", "dtype")}
    before = Judged.by(models.load(judge, **how_loaded), items, info)
    gc.collect()  # the next one may need the room
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(judge, partial, how, how_loaded)
        plain = how_loaded if how == "adapter" else {"dtype": settings["dtype"]}
        loaded = _load_gguf(partial) if how == "gguf" else models.load(partial, **plain)
        gate = compare(before, Judged.by(loaded, items, info, before.judgments))
        store.write_json(partial / "export.json", {"format": how, **asdict(gate)})
        store.write_text(partial / "README.md", card.card(run, settings, info, how, asdict(gate)))
        with store.writing(to):
            if to.exists():
                to.rmdir()  # it was empty
            partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if push:
        _push(to, push)
    return gate


def _settings(run: Path) -> dict[str, Any]:
    if not (run / "judge").is_dir() or not (run / "params.yaml").is_file():
        raise ExportError(f"{run}: holds no judge; give the directory of a run that has ended, such as runs/tiny")
    settings = params.load(run / "params.yaml", (), params.project_root() / "notebooks")
    changed = stages.made_otherwise(run / "judge", settings)
    if changed:
        raise ExportError(f"{run}: its judge was made with other parameters ({changed}); run it to its end first")
    return settings


def _check(judge: Path, to: Path, how: str, push: str) -> None:
    base = models.base_of(judge)
    if how not in FORMATS:
        raise ExportError(f"--format {store.shorten(how)} is not one of {', '.join(FORMATS)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"{to}: is there already; name a new directory, or delete it")
    if how == "adapter" and base is None:
        raise ExportError(
            "this run kept merged weights and no adapter: export it as merged, or train it with judge_format adapter"
        )
    if push and push.count("/") != 1:
        raise ExportError(f"--push {store.shorten(push)}: write ORG/NAME")
    if push and not os.environ.get("HF_TOKEN"):
        raise ExportError("--push needs a token that may write: set HF_TOKEN in the environment, and only there")
    if push and how == "adapter" and Path(base).is_dir():
        raise ExportError(
            "nobody else has this adapter's base, a directory of this machine: push it merged (--format merged)"
        )
    if how == "gguf" and (missing := _missing_for_gguf()):
        raise ExportError(
            f"GGUF is written by Unsloth and llama.cpp, and here {' and '.join(missing)}; or export as merged, which "
            "llama.cpp's convert_hf_to_gguf.py reads"
        )


# ---------------------------------------------------------------- the three formats


def write(judge: Path, out: Path, how: str, how_loaded: Mapping[str, str]) -> None:
    """The judge's files in one of the formats, not yet compared with anything."""
    if how == "adapter":
        with store.writing(out):
            of_the_run = shutil.ignore_patterns("manifest.json", "train.json", "reference.json", "alarms.json")
            shutil.copytree(judge, out, ignore=of_the_run)
        return
    tokenizer = models.load_tokenizer(judge)
    merged = merge(judge, **how_loaded)
    with adapters.saving(out):
        adapters.ending(merged, tokenizer).save_pretrained(out)
        tokenizer.save_pretrained(out)
        info = store.read_json(judge / "judge.json")
        store.write_json(out / "judge.json", info | ({"base": card.shown(info["base"])} if info.get("base") else {}))
    if how == "gguf":
        _to_gguf(out)


def merge(judge: Path, quantization: str, quant_type: str, dtype: str) -> Any:
    """The weights that the judge computes with, in 16 bit: dequantized, its adapter added in, rounded once, at the end."""
    import torch

    exact = models.torch_dtype(dtype)
    base = str(models.base_of(judge) or judge)
    if quantization == "4bit":
        model = models.load_transformers(base, quantization, quant_type, exact).dequantize(dtype=torch.float32)
    else:
        model = models.load_transformers(base, dtype=torch.float32, device="cpu")
    if models.base_of(judge) is not None:
        model = models.with_adapter(model, judge).merge_and_unload()
    return model.to(torch.float16 if exact == torch.float32 else exact)  # fp16 rounds eight times finer than bf16


def _missing_for_gguf() -> list[str]:
    import importlib.util

    missing = []
    if importlib.util.find_spec("gguf") is None:
        missing.append("the package gguf is not installed")
    if importlib.util.find_spec("unsloth") is None:
        return [*missing, "Unsloth is not installed (make unsloth)"]
    models.resolve_backend("unsloth")
    from unsloth_zoo import llama_cpp

    try:
        llama_cpp.check_llama_cpp()
    except RuntimeError as error:
        missing.append(f"llama.cpp is not built ({error})")
    return missing


def _to_gguf(out: Path) -> None:
    from unsloth import FastLanguageModel

    with models.quiet(), adapters.saving(out):
        model, tokenizer = FastLanguageModel.from_pretrained(str(out), max_seq_length=None, load_in_4bit=False)
        model.save_pretrained_gguf(str(out), tokenizer, quantization_method="f16")


def _load_gguf(out: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    file = next(out.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    return model.eval(), models.load_tokenizer(out)


def _push(path: Path, name: str) -> None:
    """A repository that was not there becomes a private one."""
    import httpx
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=path, commit_message="A judge from srlib export")
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ExportError(
            f"{path} was written, but not pushed to {name} ({type(error).__name__}: {error}): push that directory again "
            "with `hf upload`"
        ) from None


# ---------------------------------------------------------------- the gate


def gate_items(run: Path) -> list[Example]:
    """32 examples of the validation split, then of test: in the order of a hash of their ids, so always the same."""
    rows: list[Example] = []
    for split in ("validation", "test"):
        path = run / "data" / f"{split}.jsonl"
        found = store.read_rows(path, Example) if path.exists() else []
        rows += sorted(found, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())
    if not rows:
        raise ExportError(f"{run}/data: holds no validation and no test examples to compare the export on")
    return rows[:ITEMS]


@dataclass(frozen=True)
class Judged:
    judgments: list[Judgment]
    logprobs: list[float]  # nats a token

    @classmethod
    def by(
        cls, loaded: tuple[Any, Any], items: Sequence[Example], info: Mapping[str, Any], of: Sequence[Judgment] = ()
    ) -> Judged:
        """Greedy judgments, and the mean log-probability of a token in them, or in `of`, what another judge wrote."""
        model, tokenizer = loaded
        settings = dict(template=info["template"], max_new_tokens=info["max_new_tokens"], distributions=False)
        judgments = sample.judgments(model, tokenizer, items, **settings, desc="judge for the gate")
        logprobs = []
        for item, judgment in zip(items, of or judgments, strict=True):
            ids = prompts.completion_ids(tokenizer, judgment.text)
            context = prompts.prompt_ids(tokenizer, item, info["template"])
            logprobs.append(sample.score_candidates(model, [context], [[ids]])[0][0] / len(ids))
        return cls(judgments, logprobs)


def compare(before: Judged, after: Judged) -> Gate:
    """Whether two judges are one; GateError with the items where they are not."""
    ids = [j.example_id for j in before.judgments]
    differences = [abs(a - b) for a, b in zip(before.logprobs, after.logprobs, strict=True)]
    changed = [
        f"{a.example_id}: {_verdict(a)} -> {_verdict(b)}"
        for a, b in zip(before.judgments, after.judgments, strict=True)
        if _verdict(a) != _verdict(b)
    ]
    differences = [d if d == d else math.inf for d in differences]  # NaN is no agreement
    largest = max(differences)
    gate = Gate(len(ids), len(ids) - len(changed), round(largest, 6), TOLERANCE, ids)
    if changed or not largest <= TOLERANCE:
        where = ids[differences.index(largest)]
        raise GateError(
            f"what was exported is not the judge of the run, and was deleted: {len(changed)} of {len(ids)} greedy scores "
            f"changed{''.join(f' ({c})' for c in changed[:3])}; log-probabilities differ by up to {largest:.3g} nats a "
            f"token ({where}), {TOLERANCE} are allowed"
        )
    return gate


def _verdict(judgment: Judgment) -> str:
    return judgment.failure if judgment.score is None else f"{judgment.score:g}"
