"""Do our 95% intervals hold the truth 95 times in 100? By simulation, where the truth is known.

    python bench/coverage.py --out docs/bench/coverage.json      # and a table beside it, coverage.md

Each method is given 2,000 samples of a population whose true value is computed exactly. A share between 93% and 97% is
what is asked; with 2,000 samples the share itself is known to half a point (one standard error).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from srlib import files as store
from srlib.stats import agreement, intervals, ppi

LOW, HIGH = 0.93, 0.97
SCALE = np.arange(1, 6)


def confusion(noise: float) -> np.ndarray:
    """(5, 5) shares of (gold, score): a judge that is right unless it errs, mostly by one; high scores are frequent."""
    off = np.exp(-np.abs(SCALE[:, None] - SCALE) / noise)
    return (np.array([0.1, 0.1, 0.2, 0.3, 0.3])[:, None] * off / off.sum(1, keepdims=True)).round(3)


def pairs(rng: np.random.Generator, table: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    cells = rng.choice(table.size, n, p=table.ravel() / table.sum())
    return SCALE[cells // 5], SCALE[cells % 5]


def of_agreement(rng: np.random.Generator, n: int, noise: float, draws: int, n_boot: int) -> Iterator[tuple]:
    """Accuracy, correlations and QWK of n items; the population is `confusion` as a thousand items."""
    table = confusion(noise)
    counts = (1000 * table).round().astype(int).ravel()
    gold, score = np.repeat(np.repeat(SCALE, 5), counts), np.repeat(np.tile(SCALE, 5), counts)
    truth = agreement.measure(gold, score, n_boot=1)
    for draw in range(draws):
        found = agreement.measure(*pairs(rng, table, n), n_boot=n_boot, seed=draw)
        for name in truth:
            if name != "parse_rate":  # all are read here
                yield name, truth[name].value, found[name]


def of_moods(rng: np.random.Generator, groups: int, size: int, draws: int, n_boot: int) -> Iterator[tuple]:
    """Correlations where a whole group is scored one too low, as it should be, or one too high, cut at the scale's ends."""
    table, moods = confusion(0.7), {-1: 0.25, 0: 0.5, 1: 0.25}
    population = np.zeros_like(table)
    for mood, share in moods.items():
        for column in range(5):
            population[:, np.clip(column + mood, 0, 4)] += share * table[:, column]
    counts = (4000 * population).round().astype(int).ravel()
    gold, score = np.repeat(np.repeat(SCALE, 5), counts), np.repeat(np.tile(SCALE, 5), counts)
    truth = agreement.measure(gold, score, n_boot=1)
    group = np.repeat(np.arange(groups), size).tolist()
    for draw in range(draws):
        gold, score = pairs(rng, table, groups * size)
        mood = np.repeat(rng.choice(list(moods), groups, p=list(moods.values())), size)
        found = agreement.measure(gold, np.clip(score + mood, 1, 5), n_boot=n_boot, seed=draw, group=group)
        for name in truth:
            if name != "parse_rate":
                yield name, truth[name].value, found[name]


def of_groups(
    rng: np.random.Generator, groups: int, size: int, draws: int, n_boot: int, clustered: bool
) -> Iterator[tuple]:
    """Accuracy where items share a question, and a question is easy or hard: a beta-binomial of mean 0.7."""
    for draw in range(draws):
        chance = np.repeat(rng.beta(1.4, 0.6, groups), size)
        right = (rng.random(groups * size) < chance).astype(float)
        group = np.repeat(np.arange(groups), size).tolist() if clustered else None
        yield "accuracy", 0.7, intervals.mean(right, n_boot=n_boot, seed=draw, group=group)


def of_ppi(rng: np.random.Generator, n: int, more: int, noise: float, draws: int) -> Iterator[tuple]:
    """Mean gold score from n labels and a judge's scores of them and of `more` rows."""
    table = confusion(noise)
    truth = float(table.sum(1) @ SCALE / table.sum())
    for _ in range(draws):
        gold, score = pairs(rng, table, n + more)
        found = ppi.debiased_mean(gold[:n], score[:n], score[n:])
        yield "PPI mean", truth, found.mean
        yield "classical mean", truth, found.classical


def settings(draws: int, n_boot: int) -> dict[str, Callable[[np.random.Generator], Iterator[tuple]]]:
    return {
        "30 labels, 300 rows": lambda rng: of_ppi(rng, 30, 300, 0.7, draws),
        "100 labels, 1,000 rows": lambda rng: of_ppi(rng, 100, 1000, 0.7, draws),
        "100 labels, 1,000 rows, a judge that guesses": lambda rng: of_ppi(rng, 100, 1000, 50.0, draws),
        "100 items": lambda rng: of_agreement(rng, 100, 0.7, draws, n_boot),
        "100 items, a better judge": lambda rng: of_agreement(rng, 100, 0.4, draws, n_boot),
        "400 items": lambda rng: of_agreement(rng, 400, 0.7, draws, n_boot),
        "40 groups of 5, scored by group": lambda rng: of_moods(rng, 40, 5, draws, n_boot),
        "30 groups of 10": lambda rng: of_groups(rng, 30, 10, draws, n_boot, True),
        "80 groups of 5": lambda rng: of_groups(rng, 80, 5, draws, n_boot, True),
        "80 groups of 5, taken for 400 items": lambda rng: of_groups(rng, 80, 5, draws, n_boot, False),
    }


WRONG = ("80 groups of 5, taken for 400 items",)  # shown to tell what leaving `group` out costs


def simulate(draws: int, n_boot: int, seed: int) -> list[dict]:
    rows = []
    for number, (setting, samples) in enumerate(settings(draws, n_boot).items()):
        found: dict[str, list[tuple[bool, float]]] = {}
        for name, truth, interval in samples(np.random.default_rng([seed, number])):
            hit = interval.low <= truth <= interval.high
            found.setdefault(name, []).append((hit, interval.high - interval.low))
        for name, own in found.items():
            coverage, width = (float(x) for x in np.mean(own, axis=0))
            row = dict(setting=setting, statistic=name, coverage=round(coverage, 4), width=round(width, 4))
            rows.append(row | {"draws": len(own), "within": LOW <= coverage <= HIGH, "as_used": setting not in WRONG})
    return rows


def table(found: dict) -> str:
    """The result as a page of docs/bench."""
    used = [row for row in found["rows"] if row["as_used"]]
    outside = [f"{row['statistic']} of {row['setting']}" for row in used if not row["within"]]
    lines = [
        f"| {row['setting']} | {row['statistic'].replace('_', ' ')} | {100 * row['coverage']:.1f}% | {row['width']:.3f} | "
        f"{'yes' if row['within'] else '**no**'} |"
        for row in found["rows"]
    ]
    return "\n".join(
        [
            "# Do 95% intervals hold the truth 95 times in 100?",
            "",
            f"`{found['command']}`: {found['draws']:,} samples of each population, {found['n_boot']:,} resamples behind "
            f"each bootstrap interval, seed {found['seed']}; a share has a standard error of half a point. The target is 93 to 97%. "
            f"Methods outside it, used as intended: {', '.join(outside) or 'none'}. Accuracies and MAE have "
            "BCa bootstrap intervals (over groups where there are groups), correlations and QWK jackknife intervals "
            "on Fisher's z scale, means from labels Student's t. Below 30 groups or 30 labels nothing was checked.",
            "",
            "| sample | statistic | held the truth | mean width | 93 to 97% |",
            "| --- | --- | ---: | ---: | --- |",
            *lines,
            "",
            "The last line is what happens where items that share a question are resampled one by one.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="such as docs/bench/coverage.json")
    parser.add_argument("--draws", type=int, default=2000, help="samples of each population")
    parser.add_argument("--n-boot", type=int, default=1000, help="resamples behind each bootstrap interval")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.process_time()
    rows = simulate(given.draws, given.n_boot, given.seed)
    found = {
        "command": f"python bench/coverage.py --out {given.out}",
        "draws": given.draws,
        "n_boot": given.n_boot,
        "seed": given.seed,
        "cpu_seconds": round(time.process_time() - started),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
        "rows": rows,
    }
    store.write_json(given.out, found)
    store.write_text(given.out.with_suffix(".md"), table(found))
    outside = sum(row["as_used"] and not row["within"] for row in rows)
    print(f"{given.out}: {len(rows)} rows, {outside} outside of 93 to 97%, {found['cpu_seconds']} CPU seconds")


if __name__ == "__main__":
    main()
