"""The needs of a run, computed before anything is loaded: memory of each stage, tokens, and the GPUs that it fits.

The formulas of memory are in srlib.hardware.memory. Tokens are upper bounds: every row is as long as max_length and
max_new_tokens allow, and there are as many pairs as there can be. DPO reads both sides of a pair twice, for the reference
reads them, too; sampling reads a prompt once and writes N judgments."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from srlib import config
from srlib.config import Parameters
from srlib.evaluate import arms, robustness
from srlib.hardware import machine, memory, shapes
from srlib.hardware.machine import Card
from srlib.hardware.memory import Job
from srlib.run import stages

GIB = 2**30
LIBRARIES = {True: 0.8 * GIB, False: 0.7 * GIB}  # CUDA's context on a GPU; torch, transformers and TRL in RAM
# Tokens a second on an H200, 8B in 4 bit (docs/bench/gpu.md): DPO at its slowest; one of up to 160 rows drawn without an adapter
MEASURED = {"dpo": 4_200, "sample": 19}
ROOM = 0.85  # above this share of a card's memory it is tight, for the forecast is no better than that


@dataclass(frozen=True)
class Plan:
    shape: shapes.Shape
    jobs: dict[str, Job]  # the largest of each kind of stage: sft, dpo, sample, eval, grpo
    tokens: dict[str, float]  # of each stage, at most
    workers: int  # processes in which 06 judges on a CPU
    card: Card  # the machine at hand

    def parts(self, gpu: bool) -> dict[str, dict[str, float]]:
        """Bytes by kind of stage and part, on a GPU or a CPU: `{"sft": {"weights": ..., "logits": ...}, ...}`."""
        jobs = {name: replace(job, gpu=gpu, bf16=gpu or config.cpu_has_bf16()) for name, job in self.jobs.items()}
        parts = {k: memory.forecast(self.shape, job) | {"libraries": LIBRARIES[gpu]} for k, job in jobs.items()}
        return {k: {p: n * (1 if gpu or k != "eval" else self.workers) for p, n in s.items()} for k, s in parts.items()}

    def need(self, gpu: bool) -> tuple[float, str]:
        """(bytes, kind of stage) of the stage that needs most."""
        return max((sum(parts.values()), name) for name, parts in self.parts(gpu).items())

    def verdict(self, card: Card) -> str:
        """`fits`, `tight` or `does not fit`."""
        need, _ = self.need(card.gpu)
        return "does not fit" if need > card.bytes else "tight" if need > ROOM * card.bytes else "fits"


def forecast(cfg: Parameters, root: Path | None = None, card: Card | None = None) -> Plan:
    """The plan of a run on `card` (the machine at hand). Raises ShapeError, or RunError on arms that no stage makes."""
    shape = shapes.of_model(cfg.model, root or config.project_root())
    steps = stages.of(cfg)
    tokens = {s.name: tokens_of(s, cfg) for s in steps if s.notebook[:2] in ("02", "03", "05", "06", "07", "13")}
    return Plan(shape, jobs_of(cfg, shape), tokens, cfg.workers, card or machine.found())


def refusal(cfg: Parameters, root: Path | None = None, card: Card | None = None) -> str | None:
    """Why `srlib run` should not start, or None: the stage that needs most, its need, and what would help."""
    try:
        plan = forecast(cfg, root, card)
    except shapes.ShapeError:  # loading will tell
        return None
    if plan.verdict(plan.card) != "does not fit":
        return None
    need, stage = plan.need(plan.card.gpu)
    advice = ["set quantization: 4bit"] if plan.card.gpu and cfg.quantization != "4bit" and cfg.lora_rank else []
    if stage in ("sft", "dpo"):
        advice += [] if cfg.gradient_checkpointing else ["set gradient_checkpointing: true"]
        advice += ["lower micro_batch_size"] if cfg.micro_batch_size > 1 else []
    else:
        name, rows = "sample_batch_size", plan.jobs[stage].rows
        name, rows = ("grpo_batch_size", cfg.grpo_batch_size) if stage == "grpo" else (name, rows)
        advice += [f"set {name} below {rows}"] * (rows > 1) + ["lower workers"] * (stage == "eval" and plan.workers > 1)
    text = f"this run does not fit: stage {stage} of {plan.shape.name} needs about {need / GIB:.1f} GiB and {plan.card.name} has"
    text += f" {plan.card.bytes / GIB:.1f} GiB: {', '.join([*advice, 'choose a smaller model'])}"
    return f"{text}; `srlib plan` shows every part, `--anyway` starts it regardless"


def jobs_of(cfg: Parameters, shape: shapes.Shape) -> dict[str, Job]:
    """The largest forward pass of each kind of stage."""
    weights: dict[str, Any] = dict(four_bit=cfg.quantization == "4bit", dtype=cfg.dtype)
    named = [name.strip() for name in cfg.lora_targets.split(",")]
    targets = tuple(name for name in shapes.LINEAR if name in named) or shapes.LINEAR
    training = weights | dict(checkpointing=cfg.gradient_checkpointing, lora_rank=cfg.lora_rank, targets=targets)
    shared, micro = cfg.max_new_tokens if cfg.share_prompts else 0, cfg.micro_batch_size
    prompt = max(1, min(cfg.max_length, shape.max_positions - cfg.max_new_tokens))

    def sampling(n: int) -> Job:
        rows = cfg.sample_batch_size or max(1, min(memory.ROWS // n, memory.PROMPTS))
        rows = min(rows, max(1, memory.PROMPT_TOKENS // prompt))
        return Job("sample", rows, prompt, cfg.max_new_tokens, n, **weights)

    draws = {1 if arms.arm(name).read == "greedy" else cfg.eval_samples for name in cfg.arms}
    rows = cfg.grpo_batch_size * cfg.n_samples  # TRL generates them together, each behind a copy of its prompt
    grpo = {"grpo": Job("sample", rows, prompt, cfg.max_new_tokens, **weights)}
    return (grpo if "grpo" in cfg.arms else {}) | {
        "sft": Job("sft", min(micro, cfg.sft_batch_size // cfg.gpus), cfg.max_length, **training),
        "dpo": Job("dpo", min(micro, cfg.dpo_batch_size // cfg.gpus), cfg.max_length, shared, **training),
        "sample": sampling(cfg.n_samples),
        "eval": max(map(sampling, draws or {1}), key=lambda job: sum(memory.forecast(shape, job).values())),
    }


def tokens_of(stage: stages.Stage, cfg: Parameters) -> float:
    """Tokens that a stage reads and writes, at most: `dpo_1 -> 1638400`."""
    judgment = min(cfg.max_new_tokens, cfg.max_length - 1)
    prompt = cfg.max_length - judgment
    if stage.notebook == "02_sft":
        rows = {"sft_pointwise": cfg.n_train, "sft_pairwise": cfg.n_train_pairwise}.get(stage.name, _train_rows(cfg))
        rows = cfg.sft_batch_size * (cfg.sft_steps or math.ceil(rows * cfg.sft_epochs / cfg.sft_batch_size))
        if stage.name in stages.FROM_PAIRS:  # as many steps as all iterations of DPO
            rows = sum(2 * _pairs_read(cfg, t) for t in range(1, cfg.iterations + 1))
        merges = stage.name == "sft" and cfg.sft_mode == "merge"  # the two before it, which were trained
        return 0 if merges else rows * cfg.max_length
    if stage.notebook == "05_dpo":
        return 4 * _pairs_read(cfg, stage.fixed["iteration"]) * cfg.max_length
    if stage.notebook == "03_sample":
        return _prompts(cfg, stage.fixed["iteration"]) * (prompt + cfg.n_samples * judgment)
    if stage.notebook == "13_grpo":  # every judgment is drawn, then read with a prompt of its own
        prompts = sum(_prompts(cfg, t) for t in range(1, cfg.iterations + 1))
        return prompts * (prompt + cfg.n_samples * (judgment + cfg.max_length))
    reads = [arms.arm(name) for name in cfg.arms]
    if stage.notebook == "07_diagnose":
        audited = sum(arm.plain and (arm.name == "sft" or arm.iteration > 0) for arm in reads)
        rows = cfg.audit_items * robustness.COPIES * audited
        return (rows + cfg.n_test) * cfg.max_length if rows else 0  # the base reads every response, too
    compared = cfg.n_pairwise * (2 if cfg.sft_mode == "pointwise" else 4)  # both responses; both orders as well
    items = cfg.n_validation + cfg.n_test + cfg.n_ood + compared
    n = {arm.judged_in: 1 if arm.read == "greedy" else cfg.eval_samples for arm in reads}  # arms of one pass share it
    return items * sum(prompt + draws * judgment for draws in n.values())


def _train_rows(cfg: Parameters) -> int:
    """Training examples, and comparisons if J0 learns to compare."""
    return cfg.n_train + (cfg.n_train_pairwise if cfg.sft_mode != "pointwise" else 0)


def _prompts(cfg: Parameters, iteration: int) -> int:
    wanted = cfg.sample_prompts if iteration == 1 else cfg.sample_prompts_later
    return min(wanted or _train_rows(cfg), _train_rows(cfg))


def _pairs_read(cfg: Parameters, iteration: int) -> int:
    """Pairs that training reads, in whole steps."""
    pairs = _prompts(cfg, iteration) * cfg.pairs_per_prompt
    pairs = min(pairs, cfg.max_pairs or pairs)
    return cfg.dpo_batch_size * math.ceil(pairs * cfg.dpo_epochs / cfg.dpo_batch_size)


def show(plan: Plan) -> Any:
    """The plan as rich tables: memory by part, tokens by stage, and the cards that it fits."""
    job, drawn, card = plan.jobs["sft"], plan.jobs["sample"], plan.card
    lora = plan.shape.lora(job.lora_rank, job.targets)
    model = f"{plan.shape.name}: {plan.shape.parameters / 1e6:,.1f} M parameters, adapter {lora / 1e6:,.2f} M"
    fits = [f"  {c.name:<24}{c.bytes / GIB:6.1f} GiB  {plan.verdict(c)}" for c in (*machine.CARDS, card)]
    tokens = ", ".join(f"{name} {n / 1e6:,.1f}" for name, n in plan.tokens.items())
    tables = []
    for gpu in (True,) if card.gpu else (True, False):
        parts = plan.parts(gpu)
        title = f"Memory by part, GiB, forecast, on a {'GPU' if gpu else 'CPU'}"
        table = Table("", *parts, title=title, title_justify="left", title_style="", box=None, pad_edge=False)
        for name in dict.fromkeys(name for sizes in parts.values() for name in sizes):
            table.add_row(name, *(f"{sizes.get(name, 0) / GIB:.3f}" for sizes in parts.values()))
        table.add_row("together", *(f"{sum(sizes.values()) / GIB:.3f}" for sizes in parts.values()))
        table.add_row("rows x tokens", *(f"{plan.jobs[kind].rows} x {plan.jobs[kind].tokens:,}" for kind in parts))
        tables.append(table)
    notes = f"Tokens, M, at most (04, 09 and trials of prompts not counted): {tokens}; in all {sum(plan.tokens.values()) / 1e6:,.0f}"
    rates = MEASURED | {"sample": MEASURED["sample"] * min(160, drawn.rows * drawn.n)}  # a smaller batch takes as long
    rates = rates if job.four_bit and 0.9 < plan.shape.parameters / 8.03e9 < 1.1 else {}
    times = {name: n / rates[kind] / 3600 for name, n in plan.tokens.items() if (kind := name.split("_")[0]) in rates}
    hours = f"hours at the rates of an H200 (docs/bench/gpu.md): {', '.join(f'{name} {n:.1f}' for name, n in times.items())}"
    notes += f"\nTime on a GPU: {hours if times else '`bash bench/gpu.sh` measures yours'}"
    return Group(Text(model), *tables, Text(notes), Text("\n".join([f"Fits (tight: above {ROOM:.0%}):", *fits])))
