"""results.json as a table for the terminal, and runs compared over their seeds. Shares are shown in percent."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from srlib import files
from srlib.evaluate.arms import in_order
from srlib.schema import SrlibError
from srlib.stats import intervals

COLUMNS = {  # title: metric, split, form
    "test": ("accuracy", "test", ".1%"),
    "ood": ("accuracy", "ood", ".1%"),
    "pairwise": ("accuracy", "pairwise", ".1%"),
    "Pearson": ("pearson", "test", ".3f"),
    "rationale": ("rationale_accuracy", "test", ".1%"),
    "win rate": ("rationale_win_rate", "test", ".1%"),
    "parsed": ("parse_rate", "test", ".1%"),
    "seconds": ("seconds", "test", ",.0f"),
    "tokens": ("tokens", "test", ",.0f"),
}
COMPARED = list(COLUMNS)[:7]
AGAINST = ("sft", "sft_continued", "sft_self_consistency", "rft")  # arms that the last judge is compared with


def load(run: Path) -> list[dict[str, Any]]:
    """The rows of results.json of a run; SrlibError if it has not been evaluated."""
    if not (run / "results.json").exists():
        raise SrlibError(f"{run}: there is no results.json, the run has not finished its evaluation; run it again")
    return files.read_json(run / "results.json")


def table(run_dir: Path | str) -> Table:
    """Arms x metrics of one run, for the terminal; accuracy on test with its interval."""
    rows = {(row["arm"], row["metric"], row["split"]): row for row in load(Path(run_dir))}
    lines = []
    for arm in in_order([arm for arm, _, _ in rows]):
        cells = [rows.get((arm, metric, split), {}) for metric, split, _ in COLUMNS.values()]
        texts = [_number(cell.get("value"), title) for cell, title in zip(cells, COLUMNS, strict=True)]
        ends = [_number(cells[0].get(end), "test") for end in ("ci_low", "ci_high")]
        lines.append([arm, f"{texts[0]} [{', '.join(ends)}]" if "–" not in ends else texts[0], *texts[1:]])
    return _table(f"{Path(run_dir).name}: accuracy in %, 95% interval", ["arm", *COLUMNS], lines)


def compare(run_dirs: Sequence[Path | str], out_dir: Path | str | None = None) -> Table:
    """Arms x metrics over runs that differ in their seed alone: means and t intervals over seeds, and the differences of
    the last self-rationalized judge from AGAINST, seed by seed. Writes compare.json, .md and .png to `out_dir`
    (`compare-<common stem>` beside the runs). Raises SrlibError on runs whose other parameters differ, whose seeds are the
    same, or whose results are older than their judges."""
    from srlib.report import plots

    results = {Path(path): load(Path(path)) for path in run_dirs}
    runs = _by_seed(list(results))
    rows = [row | {"seed": seed} for seed, path in runs.items() for row in results[path]]
    arms = in_order([row["arm"] for row in rows])
    last = max((arm for arm in arms if re.fullmatch(r"sre_\d+", arm)), key=lambda arm: int(arm[4:]), default="")
    names = [(arm, "") for arm in arms] + [(last, other) for other in AGAINST if last and other in arms]
    cells = [_over_seeds(rows, title, *name) for name in names for title in COMPARED]
    texts = [_show(cell, title) for cell, title in zip(cells, COMPARED * len(names), strict=True)]
    lines = [[" − ".join(filter(None, name)), *texts[7 * i : 7 * i + 7]] for i, name in enumerate(names)]
    title = f"{len(runs)} seeds ({', '.join(map(str, runs))}): mean, 95% t interval over seeds"
    stem = os.path.commonprefix([path.name for path in results]).rstrip("-_.0123456789")  # noqa: RUF071
    out = Path(out_dir) if out_dir else next(iter(results)).parent / f"compare-{stem or 'runs'}"
    record = {"arms": cells[: 7 * len(arms)], "differences": cells[7 * len(arms) :]}
    files.write_json(out / "compare.json", {"runs": {str(seed): path.name for seed, path in runs.items()}} | record)
    markdown = [["arm", *COMPARED], ["---", *["---:"] * len(COMPARED)], *lines]
    markdown = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in markdown]
    files.write_text(out / "compare.md", "\n".join([f"{title}.", "", *markdown, ""]))
    figure = plots.compare(rows, [COLUMNS[title][:2] for title in ("test", "ood", "pairwise", "win rate")])
    figure.savefig(out / "compare.png", dpi=120)
    return _table(title, ["arm", *COMPARED], lines)


def _by_seed(paths: Sequence[Path]) -> dict[int, Path]:
    """seed -> run directory, for runs that differ in nothing else."""
    runs: dict[int, Path] = {}
    for path in paths:
        own, first = _parameters(path), _parameters(paths[0])
        if names := sorted(name for name in {*first, *own} - {"seed"} if first.get(name) != own.get(name)):
            shown = ", ".join(f"{name} ({first.get(name, 'unset')} / {own.get(name, 'unset')})" for name in names)
            raise SrlibError(f"{paths[0]} and {path} differ in more than the seed: {shown}; compare runs of one kind")
        if own["seed"] in runs:
            raise SrlibError(f"{runs[own['seed']]} and {path} both have seed {own['seed']}; compare one run a seed")
        runs[own["seed"]] = path
    return dict(sorted(runs.items()))


def _parameters(run: Path) -> dict[str, Any]:
    """The parameters behind a run's results: those in the manifests of eval and of all that it was computed from."""
    found, queue = {}, [("eval", None)]
    while queue:
        name, key = queue.pop()
        manifest = files.read_json(run / name / "manifest.json")
        if key not in (None, manifest["key"]):
            raise SrlibError(f"{run}: {name} is newer than the results; run it to its end first")
        parts = manifest["parts"]
        queue += [(part.removeprefix("input "), key) for part, key in parts.items() if part.startswith("input ")]
        found |= {part: value for part, value in parts.items() if " " not in part and part not in ("arm", "iteration")}
    return found


def _over_seeds(rows: Sequence[Mapping[str, Any]], title: str, arm: str, against: str) -> dict[str, Any]:
    """An arm's mean, or its mean difference from another on the same seeds, as a row of compare.json."""
    metric, split, _ = COLUMNS[title]
    rows = [row for row in rows if (row["metric"], row["split"]) == (metric, split) and _defined(row["value"])]
    values, others = ({row["seed"]: row["value"] for row in rows if row["arm"] == name} for name in (arm, against))
    if against:
        values = {seed: value - others[seed] for seed, value in values.items() if seed in others}
    value, low, high, n = (number if _defined(number) else None for number in intervals.seeds(list(values.values())))
    names = {"arm": arm} | ({"against": against} if against else {}) | {"metric": metric, "split": split}
    return names | {"value": value, "ci_low": low, "ci_high": high, "n": n, "by_seed": values}


def _show(row: Mapping[str, Any], title: str) -> str:
    """`64.4 ± 3.5`, a difference with its sign; the t interval lies evenly about the mean."""
    half = f" ± {_number(row['ci_high'] - row['value'], title)}" if row["ci_high"] is not None else ""
    return _number(row["value"], title, "+" if "against" in row else "") + half


def _number(value: float | None, title: str, sign: str = "") -> str:
    return f"{value:{sign}z{COLUMNS[title][2]}}".rstrip("%") if _defined(value) else "–"  # z: no negative zero


def _defined(value: float | None) -> bool:
    return value is not None and value == value  # null or NaN


def _table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in header:
        shown.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name == "arm")
    for line in lines:
        shown.add_row(*map(Text, line))
    return shown
