"""Do our 95% intervals hold the truth 95 times in 100? By simulation, where the truth is known.

    python scripts/coverage.py --out docs/bench/coverage.json      # and a table beside it, coverage.md

Each method is given 2,000 samples of a population whose true value is computed exactly. A share between 93% and 97% is
what is asked; with 2,000 samples the share itself is known to half a point (one standard error).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from srlib import machine, metrics, ppi, store

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
    truth = metrics.agreement(gold, score, SCALE, n_boot=1)
    for draw in range(draws):
        found = metrics.agreement(*pairs(rng, table, n), SCALE, n_boot=n_boot, seed=draw)
        for name in truth:
            if name != "parse_rate":  # all are read here
                yield name, truth[name].value, found[name]


def of_groups(rng: np.random.Generator, groups: int, size: int, draws: int, n_boot: int, clustered: bool) -> Iterator[tuple]:
    """Accuracy where items share a question, and a question is easy or hard: a beta-binomial of mean 0.7."""
    for draw in range(draws):
        chance = np.repeat(rng.beta(1.4, 0.6, groups), size)
        right = (rng.random(groups * size) < chance).astype(float)
        group = np.repeat(np.arange(groups), size).tolist() if clustered else None
        yield "accuracy", 0.7, metrics.mean(right, n_boot=n_boot, seed=draw, group=group)


def of_ppi(rng: np.random.Generator, n: int, more: int, noise: float, draws: int) -> Iterator[tuple]:
    """Mean gold score from n labels and a judge's scores of them and of `more` rows."""
    table = confusion(noise)
    truth = float(table.sum(1) @ SCALE / table.sum())
    for _ in range(draws):
        gold, score = pairs(rng, table, n + more)
        found = ppi.debiased_mean(gold[:n], score[:n], score[n:])
        yield "PPI mean", truth, found.mean
        yield "classical mean", truth, found.classical


def settings(draws: int, n_boot: int) -> list[tuple[str, Callable[[np.random.Generator], Iterator[tuple]]]]:
    return [
        ("PPI: 30 labels, 300 rows", lambda rng: of_ppi(rng, 30, 300, 0.7, draws)),
        ("PPI: 100 labels, 1,000 rows", lambda rng: of_ppi(rng, 100, 1000, 0.7, draws)),
        ("PPI: 100 labels, 1,000 rows, useless judge", lambda rng: of_ppi(rng, 100, 1000, 50.0, draws)),
        ("bootstrap: 100 items", lambda rng: of_agreement(rng, 100, 0.7, draws, n_boot)),
        ("bootstrap: 400 items", lambda rng: of_agreement(rng, 400, 0.7, draws, n_boot)),
        ("clustered bootstrap: 30 groups of 10", lambda rng: of_groups(rng, 30, 10, draws, n_boot, True)),
        ("clustered bootstrap: 80 groups of 5", lambda rng: of_groups(rng, 80, 5, draws, n_boot, True)),
        ("the same 80 groups of 5, items resampled as if alone", lambda rng: of_groups(rng, 80, 5, draws, n_boot, False)),
    ]


def simulate(draws: int, n_boot: int, seed: int) -> list[dict]:
    rows = []
    for number, (setting, samples) in enumerate(settings(draws, n_boot)):
        hits: dict[str, list[bool]] = {}
        widths: dict[str, list[float]] = {}
        for name, truth, found in samples(np.random.default_rng([seed, number])):
            hits.setdefault(name, []).append(found.low <= truth <= found.high)
            widths.setdefault(name, []).append(found.high - found.low)
        for name, own in hits.items():
            share = float(np.mean(own))
            rows.append({"setting": setting, "statistic": name, "coverage": round(share, 4), "draws": len(own),
                         "width": round(float(np.mean(widths[name])), 4), "within": LOW <= share <= HIGH})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="such as docs/bench/coverage.json")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--n-boot", type=int, default=1000, help="resamples behind each bootstrap interval")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.process_time()
    rows = simulate(given.draws, given.n_boot, given.seed)
    print(f"{time.process_time() - started:.0f} CPU seconds")
    for r in rows: print(r)


if __name__ == "__main__":
    main()
