"""Means of result files over seeds, as a table in markdown: what `srlib compare` is for runs, for notebooks 10 to 12.

python scripts/over_seeds.py runs/notes-*/verdicts/results.json --columns accuracy:test,mae:test --minus three_kinds:rationales

Files of several settings are named: graded=runs/graded-0/results.json. Each file has one seed. A cell is the mean and the
95% t interval over seeds; a difference is taken seed by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from srlib import files
from srlib.stats import intervals

POINTS = ("accuracy", "parse_rate", "position_bias", "consistency", "rationale_accuracy")  # shares, in percent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("files", nargs="+")
    arguments.add_argument("--columns", required=True, help="METRIC:SPLIT,...")
    arguments.add_argument("--minus", default="", help="ARM:OTHER,...: the mean difference of two arms")
    a = arguments.parse_args()
    columns = [column.split(":") for column in a.columns.split(",")]
    named = [("", "", name) if Path(name).is_file() else name.rpartition("=") for name in a.files]
    rows = [r | {"arm": f"{r['arm']}, {n}" if n else r["arm"]} for n, _, path in named for r in files.read_json(path)]
    assert len({(n, files.read_json(path)[0]["seed"]) for n, _, path in named}) == len(named), "one file a seed"
    value = {(row["arm"], row["metric"], row["split"], row["seed"]): row["value"] for row in rows}
    seeds, arms = sorted({row["seed"] for row in rows}), list(dict.fromkeys(row["arm"] for row in rows))

    def cell(metric: str, split: str, arm: str, other: str = "") -> str:
        of = {name: [value.get((name, metric, split, s)) for s in seeds] for name in (arm, other)}
        of |= {} if other else {"": [0.0] * len(seeds)}
        both = [pair for pair in zip(of[arm], of[other], strict=True) if None not in pair]
        if not both:
            return "–"
        mean, low, _, n = intervals.seeds([(x - y) * (100 if metric in POINTS else 1) for x, y in both])
        form = ("+" if other else "") + (".1f" if metric in POINTS else ".3f")
        return (
            f"{mean:{form}}" + (f" ± {mean - low:{form.lstrip('+')}}" if n > 1 else "") + f" (n {n})" * (n < len(seeds))
        )

    print(f"Seeds {', '.join(map(str, seeds))}: mean and 95% t interval over seeds.\n")
    print("|", " | ".join(["arm", *(f"{metric}, {split}" for metric, split in columns)]), "|")
    print("|", " | ".join(["---", *["---:"] * len(columns)]), "|")
    for arm, _, other in [(arm, "", "") for arm in arms] + [pair.partition(":") for pair in a.minus.split(",") if pair]:
        name = f"`{arm}`" + (f" − `{other}`" if other else "")
        print("|", " | ".join([name, *(cell(metric, split, arm, other) for metric, split in columns)]), "|")


if __name__ == "__main__":
    main()
