"""Take a judge out of its run, as an adapter or as merged 16-bit weights, through a gate.

The gate: the judge of the run and the exported one judge the same 32 items greedily. Every score has to be the same and the
log-probability of each judgment within TOLERANCE; else nothing is left behind. Rounding passes, a wrong merge does not."""

import hashlib
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from srlib import config, files, models, prompts, sample
from srlib.models import adapters, loading
from srlib.report import card, tables
from srlib.run import stage, stages
from srlib.schema import Example, Judgment, SrlibError

ITEMS, TOLERANCE = 32, 0.02  # nats per token, in each of the judgments
Judged = tuple[list[Judgment], list[float]]  # greedy judgments; mean log-probability of a token, in nats
Gate = namedtuple("Gate", "items same_score largest_difference tolerance ids")


class GateError(SrlibError):
    """The exported judge is not the judge that the run evaluated, and was deleted."""

    exit_status = 1


def export(run: Path, to: Path, form: str = "") -> Gate:
    """Write the judge of a run to the new directory `to`; `form` is adapter or merged, by default as the run keeps it. Raises
    SrlibError before anything is written, and GateError, which leaves nothing at `to`. `export(Path("runs/tiny"), Path("mine"))`"""
    judge, to = run / "judge", to.expanduser().resolve()
    if not judge.is_dir() or not (run / "params.yaml").is_file():
        raise SrlibError(f"{run}: holds no judge; give the directory of a finished run, such as runs/tiny")
    cfg = config.load(run / "params.yaml")
    form = form or ("adapter" if models.base_of(judge) else "merged")
    _check(judge, cfg, to, form)
    info, items = models.judge_info(judge), gate_items(run)
    weights = dict(quantization=cfg.quantization, dtype=cfg.dtype)
    before = judged(models.load(judge, **weights), items, info)
    with files.writing(to), tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        write(judge, partial := Path(folder) / to.name, form, **weights)
        loading = weights if form == "adapter" else {"dtype": cfg.dtype}
        gate = compare(before, judged(models.load(partial, **loading), items, info, before))
        files.write_json(partial / "export.json", {"format": form, **gate._asdict()})
        files.write_text(partial / "README.md", str(card.card(run, cfg, info, form, gate)))
        to.rmdir() if to.is_dir() else None  # it was empty
        files.sync(partial)
        partial.rename(to)
    return gate


def _check(judge: Path, cfg: config.Parameters, to: Path, form: str) -> None:
    run, now = judge.parent, cfg.model_dump(mode="json", exclude={"arm", "iteration"})
    (known, trained), last = tables.parameters(run, "judge"), stages.manifest(run / stage.kept(run, cfg))
    base, root = models.base_of(judge), config.project_root(run)
    same = {n for n in stages.MAY_BE_PATHS if now[n] != trained.get(n) and stages.content(now[n], root) == known.get(n)}
    differ = [f"{n} {v} -> {now[n]}" for n, v in trained.items() if now.get(n, v) != v and n not in same]
    free = not to.exists() or (to.is_dir() and not any(to.iterdir()))
    for holds, problem in [
        (differ, f"{judge} was made with other parameters ({', '.join(differ)}); run it to its end first"),
        (last not in ({}, stages.manifest(judge)), f"{run} has a newer judge than {judge}; run it to its end first"),
        (form not in ("adapter", "merged"), f"--format {form!r} is not one of adapter, merged"),
        (not free, f"{to}: is there already; name a new directory, or delete it"),
        (not to.parent.is_dir(), f"{to}: its folder does not exist; make the folder first, or name another"),
        (to.is_relative_to(judge.resolve()), f"{to}: lies inside the judge that is exported; name another directory"),
        (form == "adapter" and base is None, "this run keeps no adapter: export it as merged"),
    ]:
        if holds:
            raise SrlibError(problem)


def write(judge: Path, out: Path, form: str, quantization: str, dtype: str) -> None:
    """The judge's files in one of the formats; merged are the weights that it computes with, rounded once, at the end."""
    if form == "adapter":
        with files.writing(out):
            shutil.copytree(judge, out, ignore=shutil.ignore_patterns("manifest.json", "train.json", "alarms.json"))
        return
    base, info, tokenizer = models.base_of(judge), models.judge_info(judge), models.load_tokenizer(judge)
    exact, four_bit = models.torch_dtype(dtype), quantization == "4bit"
    options = (quantization, exact) if four_bit else ("none", torch.float32, "cpu")
    model = loading.load_transformers(str(base or judge), *options)
    model = model.to("cpu").dequantize(torch.float32) if four_bit else model  # the adapter was trained on top of these
    model = loading.with_adapter(model, judge).merge_and_unload() if base else model
    model = model.to(torch.float16 if exact == torch.float32 else exact)  # fp16 rounds eight times finer than bf16
    with models.saving(out):
        adapters.stop_at_end_of_turn(model, tokenizer).save_pretrained(out)
        tokenizer.save_pretrained(out)
        files.write_json(out / "judge.json", info | ({"base": card.shown(info["base"])} if "base" in info else {}))


def gate_items(run: Path) -> list[Example]:
    """32 examples of the validation split, then of test, in the order of a hash of their ids, so always the same."""
    rows: list[Example] = []
    for path in [path for name in ("validation", "test") if (path := run / "data" / f"{name}.jsonl").exists()]:
        rows += sorted(files.read_rows(path, Example), key=lambda row: hashlib.sha256(row.id.encode()).digest())
    if not rows:
        raise SrlibError(f"{run}/data: holds no validation and no test examples to compare the export on")
    return rows[:ITEMS]


def judged(loaded: tuple, items: Sequence[Example], info: Mapping[str, Any], of: Judged | None = None) -> Judged:
    """Greedy judgments, and the log-probabilities of these, or of the texts in `of`, another judge's."""
    model, tokenizer = loaded
    settings = dict(template=info["template"], max_new_tokens=info["max_new_tokens"], distributions=False)
    judgments, logprobs = sample.judgments(model, tokenizer, items, **settings, desc="judge for the gate"), []
    for item, judgment in zip(items, of[0] if of else judgments, strict=True):
        prompt = prompts.prompt_ids(tokenizer, item, info["template"])
        ids = prompts.completion_ids(tokenizer, judgment.text)
        [[logprob]] = sample.score_candidates(model, [prompt], [[ids]]) if judgment.failure != "too_long" else [[0.0]]
        logprobs.append(logprob / len(ids))
    return judgments, logprobs


def compare(before: Judged, after: Judged) -> Gate:
    """How near two judges are, for export.json and the card; GateError if they are not the same judge."""
    ids, pairs = [j.example_id for j in before[0]], zip(before[0], after[0], strict=True)
    outcomes = [(a.example_id, a.failure or a.score, b.failure or b.score) for a, b in pairs]
    changed = [f"{name}: {a} -> {b}" for name, a, b in outcomes if a != b]
    differences = [abs(a - b) for a, b in zip(before[1], after[1], strict=True)]
    if changed or not all(difference <= TOLERANCE for difference in differences):  # NaN is not
        text = f"the exported judge is not the judge of the run, and was deleted: {len(changed)} of {len(ids)} greedy scores"
        apart = f"log-probabilities differ by up to {max(differences):.3g} nats per token"
        raise GateError(f"{text} changed ({', '.join(changed[:3])}); {apart}")
    return Gate(len(ids), len(ids), round(max(differences), 6), TOLERANCE, ids)
