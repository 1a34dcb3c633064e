"""Judge every arm on every split, then compute the rows of results.json:

    {arm, split, metric, value, ci_low, ci_high, n, seed, iteration, protocol}

A judgment without a score is wrong, is left out of correlations and errors, and shows in parse_rate. Comparisons are
two splits: `pairwise` compares the scores of both responses, `pairwise_compared` shows the judge both, in both orders."""

import functools
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from srlib import config, data, files, prompts
from srlib.data import world
from srlib.evaluate.arms import Arm, confidence, on_scale, read, scores
from srlib.hardware import machine
from srlib.schema import OTHER_WAY, Comparison, Example, Item, Judgment, SrlibError
from srlib.stats import agreement, calibration, comparison, intervals
from srlib.stats.intervals import Interval

SHOTS = (1, 2, 4, 8)  # examples that a few-shot prompt may show
COMPARED = "pairwise_compared"  # the split whose comparisons the judge sees as such
Split = Sequence[Example] | Sequence[Comparison]
Splits = Mapping[str, Split]
Passes = Mapping[str, Mapping[str, Sequence[Judgment]]]  # pass -> split -> judgments
Judged = Sequence[Judgment | None]
Options = Mapping[str, Any]


def judge_all(
    arms: Sequence[Arm],
    models: Mapping[str, str | Path],
    splits: Splits,
    out: Path,
    *,
    load: Options,
    draw: Options,
    workers: int = 1,
    shots: Sequence[Example] = (),
) -> Passes:
    """Judge every split in every pass that the arms read. `models` maps a judge's name ("base" for the base model) to its
    directory; `load` and `draw` are keywords of `models.load` and `sample.judgments` (a greedy pass draws one judgment at
    temperature 0; `template` is that of the base model's prompts). On a CPU, `workers` processes share the passes. A split that
    is complete in <out>/<pass> is read, a partial one resumed. `shots` are examples for arms that show some, each of which
    chooses its prompt on the split `validation`."""
    passes = {a.judged_in: a for a in arms}
    todo = [a for name, a in passes.items() if not all((out / name / f"{split}.done").exists() for split in splits)]
    todo.sort(key=lambda a: a.read == "greedy")  # N draws take longest: first
    workers = 1 if machine.found().gpu or config.together()[1] > 1 else workers
    shared = (splits, out, load, draw, shots, workers > 1)
    calls = [joblib.delayed(judge_pass)(a, models[a.judge or "base"], *shared) for a in todo]
    with joblib.parallel_config("loky", inner_max_num_threads=max(1, joblib.cpu_count() // workers)):
        running = joblib.Parallel(workers, return_as="generator_unordered")(calls)
        list(files.progress(running, total=len(calls), desc="judge every arm"))
    paths = {name: {split: out / name / f"{split}.jsonl" for split in splits} for name in passes}
    return {name: {split: files.read_rows(path, Judgment) for split, path in p.items()} for name, p in paths.items()}


def judge_pass(
    a: Arm, model: Any, splits: Splits, out: Path, load: Options, draw: Options, shots: Split = (), silent: bool = False
) -> None:
    """Judge all splits as the arm needs it, into <out>/<pass>; `silent` in a worker, whose parent shows the progress."""
    from srlib import models, sample
    from srlib.judge import prompt_nll

    if silent:
        os.environ["SRLIB_PROGRESS"] = ""
        machine.end_with_parent()
    loaded, tokenizer = models.load(model, **load)
    draw = dict(draw) | ({"n": 1, "temperature": 0.0} if a.read == "greedy" else {})
    draw["template"] = models.judge_info(model, template=draw["template"])["template"]
    judge = functools.partial(sample.judgments, loaded, tokenizer, **draw)
    if a.prompting == "verdict_only":
        judge = functools.partial(sample.verdicts, loaded, tokenizer, template=draw["template"])
    elif a.prompting:
        judge = functools.partial(judge, **chosen_prompt(a, judge, splits, out / a.judged_in, shots))
    for split, rows in splits.items():
        done, path = out / a.judged_in / f"{split}.done", out / a.judged_in / f"{split}.jsonl"
        if not done.exists():
            started, resumed = time.monotonic(), path.exists() or bool(sample.draws.parts(path))
            judgments = judge(to_judge(split, rows), out=path)
            seconds = None if resumed else round(time.monotonic() - started, 2)  # unknown after a resume
            if config.together()[0] == 0:
                cost = {"seconds": seconds, "tokens": sum(j.tokens for j in judgments)}
                if split == "validation" and a.plain:  # `srlib judge` compares other rows with it
                    nll = prompt_nll(loaded, tokenizer, rows, draw["template"])
                    cost |= {"prompt_nll_highest": round(max(nll), 4)} if nll else {}
                files.write_json(done, cost)


def chosen_prompt(a: Arm, judge: Any, splits: Splits, out: Path, shots: Sequence[Example]) -> dict[str, Any]:
    """Template and examples with the most right scores on validation, as keywords of `sample.judgments`; on ties the first of
    <out>/prompts.json, which keeps how often each was right. few_shot tries 1 to 8, best_prompt 0 and 2 in any template."""
    if not splits.get("validation"):
        raise SrlibError(f"{a.name}: its prompt is chosen on validation rows, and there are none; leave the arm out")
    chosen = [few(shots, k) for k in ((0, 2) if a.prompting == "best_prompt" else SHOTS)]  # maybe fewer than k
    tried: dict[str, dict[str, Any]] = {f"{len(some)} examples": {"shots": some} for some in chosen}
    if a.prompting == "best_prompt":
        tried = {f"{t}, {name}": {"template": t} | shown for name, shown in tried.items() for t in prompts.TEMPLATES}
    items, right = to_judge("validation", splits["validation"]), {}
    for i, (name, prompt) in enumerate(tried.items()):
        judgments = judge(items, out=out / f"prompt_{i}.jsonl", **prompt)
        right[name] = sum(j.score == item.score for j, item in zip(judgments, items, strict=True))
    best = max(right, key=right.__getitem__)
    files.write_json(out / "prompts.json", {"chosen": best, "validation items": len(items), "right": right})
    return tried[best]


def few(shots: Sequence[Example], k: int) -> tuple[Example, ...]:
    """k examples with a rationale, of as many different scores as there are, one score after the other."""
    by_score: dict[float, list[Example]] = {}
    for shot in shots:
        sound = not shot.annotated or (shot.score, shot.rationale) in shot.annotated  # else of another score
        by_score.setdefault(shot.score, []).extend([shot] if shot.rationale and sound else [])
    ranks = [(rank, score, shot) for score in sorted(by_score) for rank, shot in enumerate(by_score[score])]
    return tuple(shot for *_, shot in sorted(ranks, key=lambda rank: rank[:2])[:k])


def to_judge(split: str, rows: Split) -> list[Item]:
    """The items of a split: its examples; of a comparison its two sides, or in COMPARED itself in both orders."""
    if split == COMPARED:
        return [c for row in rows for c in (row, row.swapped())]
    return [e for row in rows for e in (row.sides() if isinstance(row, Comparison) else (row,))]


def results(
    arms: Sequence[Arm], judged: Passes, splits: Splits, out: Path, *, draw: Options, seed: int, n_boot: int = 2000
) -> list[dict[str, Any]]:
    """All rows of results.json, from the value of `judge_all`."""
    rows = []
    for split, items in splits.items():
        options = dict(n_boot=n_boot, group=groups(items))
        several = "pairwise" not in split and len({e.rubric.scale for e in items}) > 1
        sft = next((read(a, judged[a.judged_in][split]) for a in arms if a.name == "sft"), None)
        for a in arms if items else ():
            judgments, words = judged[a.judged_in][split], protocol(a, split, draw)
            if a.prompting in ("few_shot", "best_prompt"):
                chosen = files.read_json(out / a.judged_in / "prompts.json")["chosen"]
                words += f"; prompt of {chosen}, as on validation"
            words += "; mae and correlations mix several scales" * several
            if split == COMPARED:
                metrics = compared(read(a, judgments), items, options)
            elif split == "pairwise":
                metrics = _pairwise(a, judgments, items, options)
            else:
                metrics = _pointwise(read(a, judgments), sft, items, options)
            base = dict(arm=a.name, split=split, seed=seed, iteration=a.iteration, protocol=words)
            rows += as_rows(base, metrics)
            cost = files.read_json(out / a.judged_in / f"{split}.done")
            base |= dict(ci_low=None, ci_high=None, n=len(to_judge(split, items)))
            rows += [base | dict(metric=metric, value=value) for metric, value in cost.items()]
    return rows


def as_rows(base: Options, metrics: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """Rows of results.json from arm, split, seed, iteration and protocol, and the metrics' intervals by name."""
    return [dict(base) | dict(metric=name, **intervals.fields(interval)) for name, interval in metrics.items()]


def groups(items: Split) -> list[str] | None:
    """(n,) the item's group, or else its instruction, to resample; None if no two items, or all, share one."""
    clusters = [item.cluster for item in items]
    return clusters if 1 < len(set(clusters)) < len(clusters) else None


def _pointwise(judged: Judged, sft: Judged | None, items: Sequence[Example], options: dict) -> dict[str, Interval]:
    metrics = _agreement(items, scores(judged), options)
    if any(j is not None and j.rationale for j in judged) and (mine := quality(items, judged)) is not None:
        metrics["rationale_accuracy"] = intervals.mean(mine[:, 0], **options)
        if sft is not None:
            metrics["rationale_win_rate"] = comparison.win_rate(mine, quality(items, sft), **options)
    sure = confidence(judged)
    kept = np.flatnonzero(np.isfinite(sure))
    if len(kept):
        right = [judged[i].score == items[i].score for i in kept]
        options = options | {"group": intervals.pick(options["group"], kept)}
        metrics["ece"] = calibration.ece(sure[kept], right, **options)
        metrics |= calibration.summary(sure[kept], right, **options)
    return metrics


def _agreement(items: Sequence[Example], values: np.ndarray, options: dict) -> dict[str, Interval]:
    """Accuracies are of the nearest score of the scale, errors and correlations of the value itself, such as a mean."""
    gold, rounded = [item.score for item in items], on_scale(items, values)
    metrics = agreement.measure(gold, values, **options)
    if not np.array_equal(values, rounded, equal_nan=True):
        nearest = agreement.measure(gold, rounded, **options)
        metrics |= {name: nearest[name] for name in ("accuracy", "balanced_accuracy")}
    return metrics


def quality(rows: Sequence[Example], judgments: Judged) -> np.ndarray | None:
    """(n, 2) shares of right verdicts, and of right verdicts with right evidence; None if no program can check them."""
    if not all(world.has_checks(row) for row in rows):
        return None
    texts = ["" if j is None else j.rationale for j in judgments]
    return np.array([world.check_rationale(row, text) for row, text in zip(rows, texts, strict=True)])


def _pairwise(a: Arm, judgments: Sequence[Judgment], items: Sequence[Comparison], options: dict) -> dict[str, Interval]:
    """Expected scores compared; of N draws the mean, as a majority would tie more often."""
    judged = read(replace(a, read="mean") if a.read == "majority" else a, judgments)
    values = np.array([None if j is None else j.expected_score for j in judged], dtype=float)
    accuracy = agreement.pairwise_accuracy(values[::2], values[1::2], [c.preference for c in items], **options)
    both = options["group"] and [name for name in options["group"] for _ in "AB"]
    return {"accuracy": accuracy, "parse_rate": intervals.mean(np.isfinite(values), **(options | {"group": both}))}


def compared(judged: Judged, items: Sequence[Comparison], options: dict) -> dict[str, Interval]:
    """Both orders of each item: accuracy in each, how often they agree (two equal verdicts), and `position_bias`, how
    much more often the first response is preferred than the second: 0 is no bias, 1 is always the first."""
    if unknown := next((c.id for c in items if c.gold is None), None):
        raise ValueError(f"comparison {unknown} has no gold preference to hold a verdict against; remove it")
    said = np.array([(j and j.preference) or "" for j in judged], dtype=object).reshape(-1, 2)  # as given, swapped
    meant = np.array([(a, OTHER_WAY.get(b, "")) for a, b in said])  # both in the given order
    credit = np.where(meant == [[c.gold] for c in items], 1.0, np.where(meant == "tie", 0.5, 0.0))
    values = {
        "accuracy": credit.mean(1), "accuracy_as_given": credit[:, 0], "accuracy_swapped": credit[:, 1],
        "consistency": (meant[:, 0] == meant[:, 1]) & (meant[:, 0] != ""),
        "position_bias": ((said == "A") * 1.0 - (said == "B")).mean(1),
        "parse_rate": (said != "").mean(1),
    }  # fmt: skip
    return {name: intervals.mean(each, **options) for name, each in values.items()}


def baselines(train: Sequence[Example], splits: Splits, *, seed: int, n_boot: int = 2000) -> list[dict[str, Any]]:
    """Rows of two scores that need no judge, see `data.baselines`."""
    rows = []
    for split, items in splits.items():
        for name, values in data.baselines(train, items) if items and isinstance(items[0], Example) else ():
            metrics = _agreement(items, np.array(values), dict(n_boot=n_boot, group=groups(items)))
            base = dict(arm=name, split=split, seed=seed, iteration=0, protocol="no judge; see srlib.data.baselines")
            rows += as_rows(base, metrics)
    return rows


def annotators(splits: Splits, *, seed: int, n_boot: int = 2000) -> list[dict[str, Any]]:
    """Rows of how well annotators agree with each other, as the arm `annotators`: each rating of an item (meta["ratings"])
    against each other one, resampled by question. Judges meet gold; if that is a majority, a rating agrees with it more often."""
    rows = []
    for split, items in splits.items():
        rated = [e for e in items if isinstance(e, Example) and e.ratings]
        pairs = [(e.cluster, a, b) for e in rated for a, b in itertools.permutations(e.ratings, 2)]
        if rated:
            questions, one, other = zip(*pairs, strict=True)
            metrics = agreement.measure(one, other, n_boot=n_boot, group=questions)
            metrics = {name: interval._replace(n=len(rated)) for name, interval in metrics.items()}
            words = f"one annotator's rating against another's, {len(pairs) // 2} pairs; resampled by question"
            rows += as_rows(dict(arm="annotators", split=split, seed=seed, iteration=0, protocol=words), metrics)
    return rows


def protocol(a: Arm, split: str, draw: Options) -> str:
    """How a number came about, in words."""
    top_p = f", top_p={draw['top_p']:g}" if draw.get("top_p", 1) < 1 else ""
    draws = f"{draw['n']} draws at T={draw['temperature']:g}{top_p}"
    reading = {"greedy": "greedy", "likelihood": f"best of {draws} by mean token log-probability"}
    reading = reading.get(a.read, f"{'majority' if split == COMPARED else a.read} of {draws}")
    if a.prompting == "verdict_only":
        reading = "the likeliest verdict after a prompt that asks for it alone"
    if split == COMPARED:
        return f"both orders, {reading}; tie 0.5, no verdict 0; position_bias: excess of preferences for the first response"
    if split == "pairwise":
        value = "expected score" if a.read in ("greedy", "likelihood") else "median" if a.read == "median" else "mean"
        return f"pointwise on both responses, {reading}; compares the {value}; tie 0.5, no score 0"
    rounded = "; accuracies of the nearest score of the scale" if a.read in ("mean", "median") else ""
    return f"pointwise, {reading}, parsed score; no score counts as wrong{rounded}"
