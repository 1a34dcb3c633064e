"""What a run will need, before anything is loaded: memory, tokens, time and disk, and which GPU that fits.

    print(show(forecast(params.load("params/paper.yaml"))))          # what `srlib plan` prints

The formulae of memory are in srlib.memory. Tokens: SFT reads steps x batch rows, DPO two sequences a pair (each prompt
in both), sampling reads each prompt once and writes N judgments. Operations: 2 a parameter and token in a forward pass,
as many again in a backward pass (twice as many where all weights are trained), and one forward more with gradient
checkpointing (arXiv 2001.08361 section 2.1, less the gradient of frozen weights). Pairs are not known before sampling:
counted are as many as there can be. Time comes from docs/bench/, where this machine was measured, or there is none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srlib import config as parameters
from srlib import files as store
from srlib.evaluate import attacks
from srlib.hardware import machine as machines
from srlib.hardware import memory, shapes
from srlib.hardware.machine import CARDS, Card
from srlib.hardware.memory import Job
from srlib.hardware.shapes import LINEAR, Shape
from srlib.run import stages
from srlib.sample import decode as sample
from srlib.schema import Example

GIB = 2**30
CUDA = 0.8 * GIB  # CUDA context, cuBLAS and Triton workspaces; what nvidia-smi shows of an idle torch process
LIBRARIES = 0.7 * GIB  # resident memory of torch, transformers and TRL before any model (docs/bench/memory.md)
ROOM = 0.85  # a card is called tight above this share of its memory; the forecast is no better than that


@dataclass(frozen=True)
class Lengths:
    prompt: float
    judgment: float
    how: str


@dataclass(frozen=True)
class Work:
    """One stage: what it reads and writes, and the job whose memory it needs."""

    stage: str
    tokens: float
    operations: float
    rate: str  # what throughput it takes: "sft", "dpo", "sample"
    units: float  # of that throughput: tokens, pairs, judgments


@dataclass(frozen=True)
class Plan:
    shape: Shape
    jobs: dict[str, Job]  # sft, dpo, sample, eval: the largest of each
    judge_format: str  # auto, merged or adapter
    lengths: Lengths
    works: list[Work]
    disk: dict[str, float]  # bytes by part
    machine: Card
    workers: int = 1  # processes that judge side by side on a CPU, each with the model in its memory

    def parts(self, gpu: bool) -> dict[str, dict[str, float]]:
        """Bytes by kind of stage and part, on a GPU or a CPU: `{"sft": {"weights": ...}, ...}`."""
        found = {}
        for name, job in self.jobs.items():
            job = replace(job, gpu=gpu, bf16=gpu or machines.cpu_has_bf16())
            found[name] = memory.forecast(self.shape, job) | {"libraries": CUDA if gpu else LIBRARIES}
            if job.kind == "sample" and not gpu:
                found[name] = {part: self.workers * size for part, size in found[name].items()}
        if not gpu and self.merges(gpu) and self.jobs["dpo"].lora_rank:  # a GPU's judge is merged in RAM
            found["save"] = memory.saving(self.shape, replace(self.jobs["dpo"], gpu=gpu)) | {"libraries": LIBRARIES}
        return found

    def merges(self, gpu: bool) -> bool:
        """Whether a judge is kept as merged weights: under `auto` only where these are fp32, and merging exact."""
        job = replace(self.jobs["sft"], gpu=gpu)
        exact = not job.four_bit and memory.size(job) == 4
        return self.judge_format == "merged" or job.lora_rank == 0 or (self.judge_format == "auto" and exact)

    def need(self, gpu: bool) -> tuple[float, str]:
        """(bytes, kind of stage) of the stage that needs most."""
        return max((sum(parts.values()), name) for name, parts in self.parts(gpu).items())

    def verdict(self, card: Card) -> str:
        """`fits`, `tight` or `does not fit`."""
        need, _ = self.need(card.gpu)
        return "does not fit" if need > card.bytes else "tight" if need > ROOM * card.bytes else "fits"


def forecast(
    params: Mapping[str, Any], root: Path | None = None, machine: Card | None = None, rows: bool = True
) -> Plan:
    """The plan of a run with these parameters. `rows` False spares looking into the data: all lengths are the limits.

    Raises shapes.ShapeError on a model whose size cannot be told, stages.RunError on arms that cannot be.
    """
    root = root or parameters.project_root()
    shape = shapes.of_model(params["model"], root)
    lengths = _lengths(params, root) if rows else _limits(params)
    jobs = _jobs(params, shape)
    works = [work for stage in stages.of(params) if (work := _work(stage, params, shape, lengths)) is not None]
    card = machine or machines.found()
    plan = Plan(shape, jobs, params.get("judge_format", "auto"), lengths, works, {}, card, params["workers"])
    return replace(plan, disk=_disk(params, plan))


def refusal(params: Mapping[str, Any], root: Path | None = None, machine: Card | None = None) -> str | None:
    """Why `srlib run` should not start, or None: the stage that needs most, what it needs, and what would help."""
    try:
        plan = forecast(params, root, machine, rows=False)
    except shapes.ShapeError:  # a model of unknown size is the run's own business
        return None
    card = plan.machine
    if plan.verdict(card) != "does not fit":
        return None
    need, stage = plan.need(card.gpu)
    helps = "smaller micro_batch_size or max_length"
    if stage in ("sample", "eval"):
        helps = "smaller sample_batch_size" if card.gpu else "smaller sample_batch_size or workers"
    return (
        f"this run cannot fit: stage {stage} of {plan.shape.name} needs about {need / GIB:.1f} GiB and {card.name} has "
        f"{card.bytes / GIB:.1f} GiB. Set quantization: 4bit, gradient_checkpointing: true or a {helps}, or take a smaller "
        "model; `srlib plan` shows every part, `--anyway` starts all the same"
    )


def _jobs(params: Mapping[str, Any], shape: Shape) -> dict[str, Job]:
    longest, new = params["max_length"], params["max_new_tokens"]
    same = dict(
        four_bit=params["quantization"] == "4bit",
        dtype=params.get("dtype", "auto"),
        checkpointing=params["gradient_checkpointing"],
        lora_rank=params["lora_rank"],
        targets=_targets(params.get("lora_targets", "all-linear")),
    )
    prompt = min(longest, shape.max_positions - new) if shape.max_positions > new else longest

    def reading(n: int) -> Job:
        rows = params["sample_batch_size"] or max(1, min(sample.ROWS // n, sample.PROMPTS))
        rows = min(rows, max(1, sample.PROMPT_TOKENS // prompt))
        return Job("sample", rows, prompt, new, n, four_bit=same["four_bit"], dtype=same["dtype"])

    arms = " ".join(params["arms"])
    n_eval = params["eval_samples"] if "consistency" in arms or "_of_n" in arms else 1
    rows = {kind: min(params["micro_batch_size"], params[f"{kind}_batch_size"]) for kind in ("sft", "dpo")}
    return {
        "sft": Job("sft", rows["sft"], longest, **same),
        "dpo": Job("dpo", rows["dpo"], longest, **same),
        "sample": reading(params["n_samples"]),
        "eval": max((reading(n) for n in {1, n_eval}), key=lambda job: sum(memory.sampling(shape, job).values())),
    }


def _targets(text: str) -> tuple[str, ...]:
    named = tuple(name.strip() for name in text.replace(",", " ").split())
    return tuple(name for name in LINEAR if name in named) or LINEAR


# ---------------------------------------------------------------- tokens


def _limits(params: Mapping[str, Any]) -> Lengths:
    judgment = min(params["max_new_tokens"], params["max_length"] - 1)
    return Lengths(params["max_length"] - judgment, judgment, "at most: max_length, max_new_tokens")


def _lengths(params: Mapping[str, Any], root: Path) -> Lengths:
    """Mean tokens of 200 training rows where they can be had here; else the limits."""
    from srlib import prompts
    from srlib.data import load as data
    from srlib.data import world

    path = root / Path(params["data"]).expanduser() if params["data"] else None
    if path is None:
        rows = world.examples("train", params["seed"], 200, params["care"])
    elif path.is_file():
        readable = (row for _, _, row, _, _ in data.read_rows(path, score_step=params["score_step"]))
        rows = list(itertools.islice((row for row in readable if isinstance(row, Example)), 200))
    else:
        rows = []
    if not rows:
        return _limits(params)
    count, how = _counter(root / Path(params["model"]).expanduser())
    prompt = sum(count(prompts.request(row, params["template"])) for row in rows) / len(rows)
    written = [prompts.completion(row.rationale, row.score) for row in rows if row.score is not None]
    judgment = sum(map(count, written)) / max(1, len(written))
    return Lengths(prompt, min(judgment, params["max_new_tokens"]), f"mean of {len(rows)} rows, {how}")


def _counter(model: Path) -> tuple[Any, str]:
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception:  # not installed, or no such file: tokenizers raises plain Exceptions
        return (lambda text: len(text) / 4), "4 characters a token"
    return (lambda text: len(tokenizer.encode(text).ids)), "tokenized"


def _work(stage: stages.Stage, params: Mapping[str, Any], shape: Shape, lengths: Lengths) -> Work | None:
    per_token = 2.0 * (shape.linear + shape.vocab * shape.hidden)
    trained = per_token * (2 + params["gradient_checkpointing"] + (params["lora_rank"] == 0))
    row = lengths.prompt + lengths.judgment
    if stage.notebook == "02_sft":
        if stage.name in stages.FROM_PAIRS:
            steps, batch = (
                sum(_dpo_steps(params, t) for t in range(1, params["iterations"] + 1)),
                2 * params["dpo_batch_size"],
            )
        else:
            batch = params["sft_batch_size"]
            steps = params["sft_steps"] or math.ceil(_trained_on(params) * params["sft_epochs"] / batch)
            steps *= 2 if params["sft_mode"] == "merge" and params["sft_steps"] else 1  # one adapter after the other
        tokens = steps * batch * row
        return Work(stage.name, tokens, tokens * trained, "sft", tokens)
    if stage.notebook == "05_dpo":
        pairs = _dpo_steps(params, stage.fixed["iteration"]) * params["dpo_batch_size"]
        tokens = 2 * pairs * row
        # The reference reads every pair once, without a backward pass.
        return Work(stage.name, tokens, tokens * (trained + per_token), "dpo", pairs)
    if stage.notebook == "03_sample":
        prompts, judgments = _prompts(params, stage.fixed["iteration"]), params["n_samples"]
        return _reading(stage.name, prompts, prompts * judgments, per_token, lengths)
    if stage.notebook == "06_eval":
        compared = params["n_pairwise"] * (2 if params["sft_mode"] == "pointwise" else 4)  # both sides; both orders
        items = sum(params[name] for name in ("n_validation", "n_test", "n_ood")) + compared
        drawn = sum("consistency" in arm or "_of_n" in arm for arm in params["arms"])
        greedy = len(params["arms"]) - drawn
        audited = sum(arm == "sft" or arm.removeprefix("sre_").isdigit() for arm in params["arms"])
        altered = params["audit_items"] * audited * attacks.COPIES
        judgments = items * (greedy + drawn * params["eval_samples"]) + altered
        return _reading("eval", items * (greedy + drawn) + altered, judgments, per_token, lengths)
    return None


def _reading(stage: str, prompts: float, judgments: float, per_token: float, lengths: Lengths) -> Work:
    tokens = prompts * lengths.prompt + judgments * lengths.judgment
    return Work(stage, tokens, tokens * per_token, "sample", judgments)


def _prompts(params: Mapping[str, Any], iteration: int) -> int:
    wanted = params["sample_prompts"] if iteration == 1 else params["sample_prompts_later"]
    return min(wanted or _trained_on(params), _trained_on(params))


def _trained_on(params: Mapping[str, Any]) -> int:
    """Training rows: examples, and comparisons where J0 learns to compare."""
    return params["n_train"] + (params["n_train_pairwise"] if params["sft_mode"] != "pointwise" else 0)


def _dpo_steps(params: Mapping[str, Any], iteration: int) -> int:
    pairs = _prompts(params, iteration) * params["pairs_per_prompt"]
    pairs = min(pairs, params["max_pairs"] or pairs)
    return math.ceil(pairs * params["dpo_epochs"] / params["dpo_batch_size"])


# ---------------------------------------------------------------- disk and time


def _disk(params: Mapping[str, Any], plan: Plan) -> dict[str, float]:
    """Bytes that a run leaves on the machine of the plan, and one checkpoint while it trains."""
    shape, job = plan.shape, replace(plan.jobs["sft"], gpu=plan.machine.gpu)
    judges = 1 + sum(stage.output.startswith("judges/") for stage in stages.of(params))
    adapter = 4.0 * shape.lora(job.lora_rank, job.targets)
    merges = plan.merges(plan.machine.gpu)
    drawn = sum(_prompts(params, t) for t in range(1, params["iterations"] + 1)) * params["n_samples"]
    return {
        f"{judges} judges ({'merged' if merges else 'adapters'}; one to take home)": judges
        * (memory.size(job) * shape.parameters if merges else adapter),
        "judgments": drawn * (6.0 * params["max_new_tokens"] + 300),
        "checkpoint": 4 * adapter if job.lora_rank else 3.0 * memory.size(job) * shape.parameters,
    }


def throughput(device: str, shape: Shape, directory: Path) -> dict[str, float]:
    """Measured units a second on this GPU or CPU for this shape (`{"sft": tokens, "dpo": pairs, "sample": judgments}`),
    from docs/bench/*.json; empty where it was not measured."""
    for path in sorted(directory.glob("*.json")):
        measured = store.read_json(path)
        if measured.get("device") == device and measured.get("parameters") == shape.parameters:
            return {kind: row["per_second"] for kind, row in measured.get("plan", {}).items()}
    return {}


# ---------------------------------------------------------------- what is printed


def show(plan: Plan, bench: Path | None = None) -> Any:
    """Everything as rich tables without colours; `bench` is the directory of measured throughputs."""
    from rich.console import Group
    from rich.text import Text

    shape, jobs = plan.shape, plan.jobs
    lines = [
        f"{shape.name}: {shape.parameters / 1e6:,.1f} M parameters ({shape.source}); adapter of rank "
        f"{jobs['sft'].lora_rank}: {shape.lora(jobs['sft'].lora_rank, jobs['sft'].targets) / 1e6:,.2f} M",
        f"Tokens a row: prompt {plan.lengths.prompt:,.0f}, judgment {plan.lengths.judgment:,.0f} ({plan.lengths.how})",
    ]
    card = plan.machine
    here = f"GPU found: {card.name}" if card.gpu else "no GPU found, RAM"
    shown = [Text("\n".join(lines)), _memory_table(plan, gpu=True)]
    if not card.gpu:
        shown.append(_memory_table(plan, gpu=False))
    rates = throughput(card.name if card.gpu else machines.cpu(), shape, bench) if bench else {}
    shown.append(_work_table(plan, rates))
    disk = "; ".join(f"{name} {size / GIB:.2f} GiB" for name, size in plan.disk.items())
    shown.append(Text(f"Disk: {disk}"))
    verdicts = "\n".join(f"  {c.name:<24}{c.bytes / GIB:6.1f} GiB  {plan.verdict(c)}" for c in (*CARDS, card))
    shown.append(Text(f"Fits (tight: above {ROOM:.0%} of the memory):\n{verdicts}\n{here} {card.bytes / GIB:.0f} GB"))
    return Group(*shown)


def _memory_table(plan: Plan, gpu: bool) -> Any:
    from rich.table import Table

    kinds = plan.parts(gpu)
    title = f"Memory by part, GiB, forecast, on a {'GPU (16-bit weights)' if gpu else 'CPU (fp32 weights)'}"
    table = Table(title=title, title_justify="left", title_style="", header_style="", box=None, pad_edge=False)
    table.add_column("")
    for kind in kinds:
        table.add_column(kind, justify="right")
    names = [name for name in (*memory.PARTS, "libraries") if any(parts.get(name) for parts in kinds.values())]
    for name in names:
        table.add_row(name, *(f"{parts.get(name, 0) / GIB:.3f}" for parts in kinds.values()))
    table.add_row("together", *(f"{sum(parts.values()) / GIB:.3f}" for parts in kinds.values()))
    jobs = plan.jobs
    at_once = [f"{jobs[kind].rows} x {jobs[kind].tokens:,}" if kind in jobs else "" for kind in kinds]
    table.add_row("rows x tokens", *at_once)
    return table


def _work_table(plan: Plan, rates: Mapping[str, float]) -> Any:
    from rich.table import Table

    table = Table(
        title="Work by stage", title_justify="left", title_style="", header_style="", box=None, pad_edge=False
    )
    for title in ("stage", "M tokens", "PFLOP", "time"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for work in plan.works:
        rate = rates.get(work.rate)
        time = f"{work.units / rate / 60:,.1f} min" if rate else "no throughput measured"
        table.add_row(work.stage, f"{work.tokens / 1e6:,.2f}", f"{work.operations / 1e15:,.3f}", time)
    return table


def header(plan: Plan) -> str:
    """The forecast as the comment that a recipe carries; a test writes it anew and compares."""
    parts = ", ".join(f"{kind} {sum(own.values()) / GIB:.1f}" for kind, own in plan.parts(gpu=True).items())
    tokens, operations = sum(work.tokens for work in plan.works), sum(work.operations for work in plan.works)
    fits = "; ".join(f"{card.name.split(', ')[1]}: {plan.verdict(card)}" for card in CARDS)
    hours = ", ".join(
        f"{card.name.split(',')[0]} {operations / card.flops / 3.6e15:.1f} h"
        for card in CARDS
        if plan.verdict(card) != "does not fit"
    )
    return (
        f"# Forecast by `srlib plan`, not measured:\n"
        f"#   GPU memory, GiB: {parts}\n"
        f"#   {fits}\n"
        f"#   {tokens / 1e6:,.0f} M tokens at most, {operations / 1e15:,.0f} PFLOP\n"
        f"#   time: no throughput measured on a GPU; at the datasheet's peak, which nobody reaches: {hours}\n"
    )
