"""Every arm on every split: judge once, then compute every number from what was judged.

Arms that read the same draws share one pass (see readings).
Judgments lie in <eval>/<pass>/<split>.jsonl and are never computed twice; results are rows

    {arm, split, metric, value, ci_low, ci_high, n, seed, iteration, protocol}

where a judgment without a score counts as wrong, is left out of correlations and errors, and shows in parse_rate.

Comparisons are judged in two ways, each a split of its own: `pairwise` scores both responses and compares the scores,
which any judge can; `pairwise_compared` asks a judge that learned to compare, in both orders.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from srlib import files as store
from srlib import data
from srlib.data import world
from srlib.evaluate.arms import Arm, confidence, on_scale, read, scores
from srlib.files import progress
from srlib.schema import OTHER_WAY, Comparison, Example, Item, Judgment, Preference
from srlib.stats import intervals, metrics, selective

COMPARED = "pairwise_compared"  # the split whose comparisons are shown to the judge as such
Split = Sequence[Example] | Sequence[Comparison]


@dataclass(frozen=True)
class Settings:
    """How judgments are drawn for the evaluation; the same for every arm."""

    n_samples: int = 10
    temperature: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 0
    seed: int = 0
    backend: str = "transformers"
    quantization: str = "none"
    quant_type: str = "nf4"
    dtype: str = "auto"


def judge_all(
    arms: Sequence[Arm],
    models: Mapping[str, str | Path],
    splits: Mapping[str, Split],
    out: Path,
    settings: Settings,
    workers: int = 1,
    only: Mapping[str, Collection[str]] | None = None,
) -> dict[str, dict[str, list[Judgment]]]:
    """Judge every split in every pass that the arms read: `{pass: {split: judgments}}`; a split that `only` names, in
    these passes alone: `{"audit": ["sft", "sre_2"]}`.

    `models` maps a judge's name ("base" for the base model) to its directory. On a CPU, `workers` processes of one
    thread each share the passes. What lies in `out` already is read, not judged again.
    """
    passes = {a.judged_in: (str(models[a.judge or "base"]), a.read != "greedy") for a in arms}
    only = only or {}
    asked = {
        name: {split: rows for split, rows in splits.items() if name in only.get(split, passes)} for name in passes
    }
    todo = [name for name in passes if not all((out / name / f"{split}.done").exists() for split in asked[name])]
    jobs = [(*passes[name], asked[name], out / name, settings) for name in todo]
    jobs = sorted(jobs, key=lambda job: not job[1])  # the expensive ones, which draw N judgments, first
    with progress(total=len(passes), desc="judge every arm") as bar:
        bar.update(len(passes) - len(jobs))
        for _ in joblib.Parallel(workers, return_as="generator_unordered")(
            joblib.delayed(judge_pass)(*job) for job in jobs
        ):
            bar.update()
    return {
        name: {split: store.read_rows(out / name / f"{split}.jsonl", Judgment) for split in asked[name]}
        for name in passes
    }


def judge_pass(model: str, draws: bool, splits: Mapping[str, Split], out: Path, settings: Settings) -> None:
    """One model judges all splits into `out`; `draws` draws N judgments of each example, else one, greedily."""
    from srlib.models import load as models
    from srlib.sample import decode as sample

    info = models.judge_info(model)
    weights = dict(quantization=settings.quantization, quant_type=settings.quant_type, dtype=settings.dtype)
    loaded, tokenizer = models.load(model, backend=settings.backend, **weights)
    for split, rows in splits.items():
        done = out / f"{split}.done"
        if done.exists():
            continue
        started, resumed = time.monotonic(), (out / f"{split}.jsonl").exists()
        found = sample.judgments(
            loaded,
            tokenizer,
            to_judge(split, rows),
            template=info["template"],
            n=settings.n_samples if draws else 1,
            temperature=settings.temperature if draws else 0.0,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed + 1_000_003,  # other draws than the training prompts got
            batch_size=settings.batch_size,
            out=out / f"{split}.jsonl",
        )
        seconds = None if resumed else round(time.monotonic() - started, 2)  # what was killed did not tell
        store.write_json(done, {"seconds": seconds, "tokens": sum(j.tokens for j in found)})


def to_judge(split: str, rows: Split) -> list[Item]:
    """What a split asks the judge: its examples; of a comparison the two sides, or, in COMPARED, itself in both orders."""
    if split == COMPARED:
        return [c for row in rows for c in (row, row.swapped())]
    return [e for row in rows for e in (row.sides() if isinstance(row, Comparison) else (row,))]


def quality(rows: Sequence[Example], judgments: Sequence[Judgment | None]) -> np.ndarray | None:
    """(n, 2) shares of right verdicts and of right verdicts with right evidence; None where no program can check them."""
    if not all("checks" in row.meta for row in rows):
        return None
    texts = [j.rationale if j is not None else "" for j in judgments]
    return np.array([world.check_rationale(row, text)[:2] for row, text in zip(rows, texts, strict=True)])


def results(
    arms: Sequence[Arm],
    judged: Mapping[str, Mapping[str, Sequence[Judgment]]],
    splits: Mapping[str, Split],
    out: Path,
    *,
    seed: int,
    settings: Settings,
    n_boot: int = 2000,
) -> list[dict[str, Any]]:
    """All rows of results.json."""
    rows: list[dict[str, Any]] = []
    for split, items in splits.items():
        if not items:
            continue
        chosen = {a.name: read(a, judged[a.judged_in][split]) for a in arms}
        for a in arms:
            own = chosen[a.name]
            base = dict(
                arm=a.name, split=split, seed=seed, iteration=a.iteration, protocol=protocol(a, split, settings)
            )
            if split == COMPARED:
                found = _compared(own, items, n_boot)
            elif split == "pairwise":
                found = _pairwise(a, judged[a.judged_in][split], own, items, n_boot)
            else:
                found = _agreement(items, scores(own), n_boot)
                found |= _rationales(own, chosen.get("sft"), items, n_boot)
                if a.read in ("greedy", "likelihood", "majority"):  # a mean or a median of draws has no distribution
                    found |= calibration(items, own, n_boot)
            rows += as_rows(base, found)
            cost = store.read_json(out / a.judged_in / f"{split}.done")
            n = len(to_judge(split, items))
            rows += [
                base | dict(metric=m, value=cost[m], ci_low=None, ci_high=None, n=n) for m in ("seconds", "tokens")
            ]
    return rows


def as_rows(base: Mapping[str, Any], found: Mapping[str, intervals.Interval]) -> list[dict[str, Any]]:
    """Rows of results.json: `base` holds arm, split, seed, iteration and protocol, `found` a metric's interval by its name."""
    return [dict(base) | dict(metric=name, **intervals.fields(interval)) for name, interval in found.items()]


def groups(items: Split) -> list[str] | None:
    """(n,) what each item shares with others, its group or else its instruction; None where hardly any two share one, or
    all the same.

    Many responses to one question stand or fall together: then questions are resampled, not responses.
    """
    found = [item.cluster for item in items]
    return found if 1 < len(set(found)) < len(found) * 0.9 else None


def _agreement(items: Sequence[Example], values: np.ndarray, n_boot: int) -> dict[str, intervals.Interval]:
    """What is right is told of the nearest score on the scale (a mean of draws is most often between two); what is close,
    of the value itself."""
    gold, rounded = [item.score for item in items], on_scale(items, values)
    scale = {s for item in items for s in item.rubric.scale}
    how = dict(n_boot=n_boot, group=groups(items))
    found = metrics.agreement(gold, rounded, sorted(scale), **how)
    if np.array_equal(values, rounded, equal_nan=True):
        return found
    between = metrics.agreement(gold, values, sorted(scale | set(values[np.isfinite(values)])), **how)
    of_rounded = ("accuracy", "balanced_accuracy", "parse_rate")
    return between | {name: found[name] for name in of_rounded}


def calibration(items: Sequence[Example], own: Sequence[Judgment | None], n_boot: int) -> dict[str, intervals.Interval]:
    """ece, auroc and aurc of a judge's confidence in its own score, over the items on which it has one; empty where there
    is none at all."""
    sure = confidence(own)
    kept = np.flatnonzero(np.isfinite(sure))
    if not len(kept):
        return {}
    right = np.array([own[i].score == items[i].score for i in kept], dtype=float)
    group = groups(items)
    how = dict(n_boot=n_boot, group=None if group is None else [group[i] for i in kept])
    return {"ece": metrics.ece(sure[kept], right, **how)} | selective.summary(sure[kept], right, **how)


def _rationales(
    own: Sequence[Judgment | None], against: Sequence[Judgment | None] | None, items: Sequence[Example], n_boot: int
) -> dict[str, intervals.Interval]:
    """Only for arms that write rationales, and where a program can check them."""
    if not any(j is not None and j.rationale for j in own) or (mine := quality(items, own)) is None:
        return {}
    group = groups(items)
    found = {"rationale_accuracy": metrics.mean(mine[:, 0], n_boot=n_boot, group=group)}
    if against is not None:
        won = metrics.win_rate(mine, quality(items, against), n_boot=n_boot, group=group)
        found["rationale_win_rate"] = intervals.Interval(won.value, won.low, won.high, won.n)
    return found


def _pairwise(
    a: Arm, judged: Sequence[Judgment], own: Sequence[Judgment | None], items: Sequence[Comparison], n_boot: int
) -> dict[str, intervals.Interval]:
    if a.read == "majority":  # of N draws the mean: a majority would tie more often
        own = read(Arm(a.name, a.judge, "mean"), judged)
    values = [math.nan if j is None or j.score is None else j.expected_score for j in own]
    preference, group = [item.preference for item in items], groups(items)
    found = metrics.pairwise_accuracy(values[::2], values[1::2], preference, n_boot=n_boot, group=group)
    both = None if group is None else [name for name in group for _ in "AB"]
    parsed = metrics.mean(np.isfinite(values).astype(float), n_boot=n_boot, group=both)
    return {"accuracy": found, "parse_rate": parsed}


def _compared(
    own: Sequence[Judgment | None], items: Sequence[Comparison], n_boot: int
) -> dict[str, intervals.Interval]:
    """Both orders of each item: how often each is right, how often they agree (two verdicts, and the same one), and how
    much more often the first response is preferred than the second, whichever it is: 0 is no bias, 1 is always the first."""
    given = [None if j is None else j.preference for j in own]
    as_given, swapped = (
        given[::2],
        [None if p is None else OTHER_WAY[p] for p in given[1::2]],
    )  # both in the given order
    right = [np.array([_credit(p, c) for p, c in zip(o, items, strict=True)]) for o in (as_given, swapped)]
    agree = [float(a == b and a is not None) for a, b in zip(as_given, swapped, strict=True)]
    first = np.array([(p == "A") - (p == "B") for p in given], dtype=float).reshape(-1, 2).mean(axis=1)
    parsed = np.array([p is not None for p in given], dtype=float).reshape(-1, 2).mean(axis=1)
    found = {
        "accuracy": sum(right) / 2, "accuracy_as_given": right[0], "accuracy_swapped": right[1],
        "consistency": agree, "position_bias": first, "parse_rate": parsed,
    }  # fmt: skip
    return {name: metrics.mean(values, n_boot=n_boot, group=groups(items)) for name, values in found.items()}


def _credit(said: Preference | None, comparison: Comparison) -> float:
    if comparison.gold is None:
        raise ValueError(f"comparison {comparison.id} has no gold preference to hold a verdict against; leave it out")
    return 1.0 if said == comparison.gold else 0.5 if said == "tie" else 0.0


def baselines(
    train: Sequence[Example], splits: Mapping[str, Split], *, seed: int, n_boot: int = 2000
) -> list[dict[str, Any]]:
    """Rows for two scores that need no judge, see data.baselines."""
    rows = []
    for split, items in splits.items():
        if not items or isinstance(items[0], Comparison):
            continue
        for name, values in data.baselines(train, items):
            base = dict(arm=name, split=split, seed=seed, iteration=0, protocol="no judge; see srlib.data.baselines")
            found = _agreement(items, np.array(values), n_boot)
            rows += as_rows(base, found)
    return rows


def protocol(a: Arm, split: str, settings: Settings) -> str:
    """In words, how a number came about."""
    n, t = settings.n_samples, f"{settings.temperature:g}"
    how = {
        "greedy": "greedy",
        "majority": f"majority of {n} draws at T={t}",
        "likelihood": f"best of {n} draws at T={t}, selector: mean token log-probability",
        "mean": f"mean of {n} draws at T={t}",
        "median": f"median of {n} draws at T={t}",
    }[a.read]
    if split == COMPARED:
        how = how.replace(a.read, "majority") if a.read in ("mean", "median") else how
        bias = "position_bias: how much more often the first is preferred than the second"
        return f"pairwise in both orders, {how}; tie 0.5, no verdict 0; accuracy is the mean of the two orders; {bias}"
    if split == "pairwise":
        value = {"majority": "mean of the draws", "mean": "mean of the draws", "median": "median of the draws"}
        value = value.get(a.read, "expected score")
        return f"pointwise on both responses, {how}; compares the {value}; tie 0.5, no score 0"
    ceiling = "; a ceiling: told which annotators are careful" if a.name == "sft_careful_only" else ""
    rounded = "; accuracies of the nearest score of the scale" if a.read in ("mean", "median") else ""
    return f"pointwise, {how}, parsed score; no score counts as wrong{rounded}{ceiling}"
