"""results.json as a table for the terminal, and runs compared over settings and seeds. Shares are shown in percent."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from srlib import config, files
from srlib.evaluate.arms import in_order
from srlib.run import stages
from srlib.schema import SrlibError
from srlib.stats import intervals

COLUMNS = {  # title: metric, split, form
    "test": ("accuracy", "test", ".1%"), "ood": ("accuracy", "ood", ".1%"), "pairwise": ("accuracy", "pairwise", ".1%"),
    "Pearson": ("pearson", "test", ".3f"), "rationale": ("rationale_accuracy", "test", ".1%"),
    "win rate": ("rationale_win_rate", "test", ".1%"), "parsed": ("parse_rate", "test", ".1%"),
    "seconds": ("seconds", "test", ",.0f"), "tokens": ("tokens", "test", ",.0f"),
}  # fmt: skip
COMPARED = list(COLUMNS)[:7]
NO_SETTING = ("arm", "iteration", "arms", "n_boot")
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
    """Arms x metrics over runs, a line for each setting: means and t intervals over its seeds. Then, seed by seed, the
    differences of the last self-rationalized judge from AGAINST, and from itself in the first setting. Runs of one setting
    differ in their seed alone; the names of several say in what they differ. Writes compare.json, .md and .png to
    `comparison_dir`. Raises SrlibError on two runs of one setting and seed, and on results older than their judges."""
    from srlib.report import plots

    out, results = comparison_dir(run_dirs, out_dir), {Path(path): load(Path(path)) for path in run_dirs}
    settings = _by_setting(list(results))
    runs = [(name, seed, path) for name, by_seed in settings.items() for seed, path in by_seed.items()]
    arms = in_order([row["arm"] for rows in results.values() for row in rows])
    line = {(arm, name): ", ".join(filter(None, (arm, name))) for arm in arms for name in settings}
    of_seed = {"ci_low": None, "ci_high": None}  # an interval over items is none over seeds
    rows = [r | of_seed | {"arm": line[r["arm"], n], "seed": s} for n, s, path in runs for r in results[path]]
    last = max((arm for arm in arms if re.fullmatch(r"sre_\d+", arm)), key=lambda arm: int(arm[4:]), default="")
    first, *others = settings
    pairs = [(line[last, n], line[other, n]) for n in settings for other in AGAINST if last and other in arms]
    pairs += [(line[last, name], line[last, first]) for name in others if last]
    most, record, lines = max(map(len, settings.values())), {"arms": [], "differences": []}, []
    for name, against in [(name, "") for name in line.values()] + pairs:
        cells = [_over_seeds(rows, title, name, against) for title in COMPARED]
        record["differences" if against else "arms"] += cells
        texts = [_show(cell, title, most) for cell, title in zip(cells, COMPARED, strict=True)]
        lines.append([" − ".join(filter(None, (name, against))), *texts])
    seeds = ", ".join(str(seed) for _, seed, _ in runs)
    title = f"{len(settings)} settings, {len(runs)} runs" if others else f"seed{'s' * (len(runs) > 1)} {seeds}"
    title += ": mean, 95% t interval over seeds"
    named = {f"{name}, seed={seed}" if name else str(seed): path.name for name, seed, path in runs}
    files.write_json(out / "compare.json", {"runs": named} | record)
    markdown = [["arm", *COMPARED], ["---", *["---:"] * len(COMPARED)], *lines]
    markdown = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in markdown]
    head = "Shares in %, differences in points; Pearson's r as it is.\n\n![Each arm with its interval](compare.png)\n"
    files.write_text(out / "compare.md", "\n".join([f"# {title}", "", head, *markdown, ""]))
    figure = plots.forest(rows, [COLUMNS[title][:2] for title in ("test", "ood", "pairwise", "win rate")])
    with files.writing(out / "compare.png"):
        figure.savefig(out / "compare.png", dpi=120)
    return _table(title, ["arm", *COMPARED], lines)


def comparison_dir(run_dirs: Sequence[Path | str], out_dir: Path | str | None = None) -> Path:
    """The directory for a comparison, `compare-<common stem>` beside the runs by default; SrlibError if it cannot take one."""
    paths = [Path(path) for path in run_dirs]
    stem = os.path.commonprefix([path.name for path in paths]).rstrip("-_.=0123456789")  # noqa: RUF071
    out = Path(out_dir).expanduser() if out_dir else paths[0].parent / f"compare-{stem or 'runs'}"
    for path in [out / f"compare.{kind}" for kind in ("json", "md", "png")] if out.is_dir() else [out]:
        files.output(path, [{"runs", "arms", "differences"}], paths, record=out / "compare.json")
    return out


def _by_setting(paths: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Name of a setting, `"margin=1"`, -> seed -> run directory. The name holds what differs; the only setting has none."""
    settings: dict[str, tuple[dict, dict, dict]] = {}
    by_run = {path: parameters(path) for path in paths}
    anywhere = {name for values, _ in by_run.values() for name in values}
    for path, (values, shown) in by_run.items():
        if (recorded := path / "params.yaml").exists():  # a run without pairs has no DPO, and yet a beta
            asked = config.load(recorded).model_dump(mode="json")
            values |= {name: asked[name] for name in (anywhere & asked.keys()) - values.keys()}
        if (seed := values.pop("seed", None)) is None:
            raise SrlibError(f"{path}: eval/manifest.json is missing or not of a finished run; run it to its end")
        runs = settings.setdefault(json.dumps(values, sort_keys=True), (values, shown, {}))[2]
        if runs.setdefault(seed, path) is not path:
            raise SrlibError(f"{runs[seed]} and {path} both have seed {seed} and one setting; compare one run a seed")
    values, shown, runs = zip(*settings.values(), strict=True)
    differ = [name for name in sorted({*chain(*values)}) if any(v.get(name) != values[0].get(name) for v in values)]
    everywhere = [name for name in differ if all(name in v for v in values)]  # a stage that did not run has none
    for chosen, source in ((everywhere, shown), (differ, shown), (differ, values)):
        names = [", ".join(f"{name}={config.spelled(v.get(name, 'unset'))}" for name in chosen) for v in source]
        if len({*names}) == len(names):
            break
    return {name: dict(sorted(by_seed.items())) for name, by_seed in zip(names, runs, strict=True)}


def parameters(run: Path, of: str = "eval") -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters behind a run's results, or its "judge", from the manifests of that and of all that it was computed
    from: as their stages count them (a model by its content), and as they were set."""
    if outdated := stages.outdated(run, of):
        raise SrlibError(f"{run}: {outdated[1]} is newer than {of}; run it to its end first")
    values, shown, queue = {}, {}, [of]
    for name in queue:  # it grows by all that is behind the results
        parts = (manifest := stages.manifest(run / name)).get("parts", {})
        sources = [part.removeprefix("input ") for part in parts if part.startswith("input ")]
        queue += [source for source in sources if source not in queue]
        values |= {part: value for part, value in parts.items() if " " not in part and part not in NO_SETTING}
        shown |= parts | manifest.get("params", {})
    return values, shown


def _over_seeds(rows: Sequence[Mapping[str, Any]], title: str, arm: str, against: str) -> dict[str, Any]:
    """An arm's mean, or its mean difference from another on the same seeds, as a row of compare.json."""
    metric, split, _ = COLUMNS[title]
    rows = [row for row in rows if (row["metric"], row["split"]) == (metric, split) and row["value"] is not None]
    values, others = ({row["seed"]: row["value"] for row in rows if row["arm"] == name} for name in (arm, against))
    if against:
        values = {seed: value - others[seed] for seed, value in values.items() if seed in others}
    names = {"arm": arm} | ({"against": against} if against else {}) | {"metric": metric, "split": split}
    return names | intervals.fields(intervals.seeds(list(values.values()))) | {"by_seed": values}


def _show(row: Mapping[str, Any], title: str, most: int) -> str:
    """`64.4 ± 3.5`, a difference with its sign, fewer seeds than `most` with their number: `64.4 ± 3.5 (n 2)`."""
    half = f" ± {_number(row['ci_high'] - row['value'], title)}" if row["ci_high"] is not None else ""
    few = f" (n {row['n']})" if 0 < row["n"] < most else ""
    return _number(row["value"], title, "+" if "against" in row else "") + half + few


def _number(value: float | None, title: str, sign: str = "") -> str:
    return f"{value:{sign}z{COLUMNS[title][2]}}".rstrip("%") if value is not None else "–"  # z: no negative zero


def _table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in header:
        shown.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name == "arm")
    for line in lines:
        shown.add_row(*map(Text, line))
    return shown
