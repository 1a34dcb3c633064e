"""results.json -> a table in the terminal, one HTML file, and a comparison over seeds.

A run directory holds `results.json`, rows `{arm, split, metric, value, ci_low, ci_high, n, seed, iteration, protocol}`
with values as shares (0.468), null where undefined; this module shows shares as percentages (46.8).

    print(table("runs/tiny"))                                   # arms x metrics
    write("runs/tiny", {"Is it better?": [Part(...)]})          # runs/tiny/report.html
    compare(["runs/tiny-0", "runs/tiny-1"])                     # runs/compare-tiny/compare.{json,md,png,html}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from srlib.evaluate import arms as readings
from srlib.report import card, page, plots, sentences
from srlib.run import stages
from srlib.stats import metrics

Rows = Sequence[Mapping[str, Any]]


class Column(NamedTuple):
    title: str
    metric: str
    split: str


COLUMNS = (
    Column("test", "accuracy", "test"),
    Column("ood", "accuracy", "ood"),
    Column("pairwise", "accuracy", "pairwise"),
    Column("Pearson", "pearson", "test"),
    Column("rationale", "rationale_accuracy", "test"),
    Column("win rate", "rationale_win_rate", "test"),
    Column("parsed", "parse_rate", "test"),
    Column("seconds", "seconds", "test"),
    Column("tokens", "tokens", "test"),
)
COMPARED = COLUMNS[:7]
AGAINST = ("sft", "sft_continued", "sft_self_consistency", "rft")
CAPTION = (
    "Accuracy in % on the splits test, ood and pairwise, 95% intervals in brackets. The other columns are on test: "
    "Pearson with gold, rationale checks that are right, rationales that win against sft's (ties half), readable "
    "judgments, and the cost of all of them."
)


def load(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's results.json; says what to do where there is none."""
    path = Path(run_dir) / "results.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: the run has not finished its evaluation; run it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and run the evaluation again") from None


def table(run_dir: str | Path) -> Table:
    """Arms x metrics of one run, for the terminal."""
    results = load(run_dir)
    shown = _table(f"{Path(run_dir).name}: accuracy in %, 95% interval", [column.title for column in COLUMNS])
    for arm in readings.in_order([row["arm"] for row in results]):
        first, *rest = [(_find(results, arm, column), column) for column in COLUMNS]
        shown.add_row(Text(arm), _show(*first, interval=True), *(_show(*cell) for cell in rest))
    return shown


def write(run_dir: str | Path, sections: Mapping[str, Sequence[page.Part]], notes: Sequence[str] = ()) -> Path:
    """`run_dir`/report.html: the table, the notes (plain paragraphs; alarms among them stand out), a section for each
    question with its figures and readings, the executed notebooks, the parameters. Returns its path."""
    run_dir = Path(run_dir)
    results, params = load(run_dir), run_dir / "params.yaml"
    body = [f"<h1>{page.escape(run_dir.name)}</h1>"]
    body += [f"<p class=lead>{page.escape(line)}</p>" for line in _headline(results)]
    body += [f"<p{' class=alarm' * note.startswith('Alarm')}>{page.escape(note)}</p>" for note in notes]
    body += ["<section><h2>Results</h2>", _html_table(results), f"<p class=small>{page.escape(CAPTION)}</p></section>"]
    body += [page.section(question, parts) for question, parts in sections.items() if parts]
    body.append(page.links(run_dir))
    if params.exists():
        text = page.escape(_without_paths(params.read_text("utf-8")))
        body.append(f"<details><summary>Parameters when this was written</summary><pre>{text}</pre></details>")
    return page.save(run_dir / "report.html", page.page(run_dir.name, body))


def compare(run_dirs: Sequence[str | Path], out_dir: str | Path | None = None) -> Table:
    """Arms x metrics over runs that differ in their seed alone: means, t intervals, and paired differences.

    The last self-rationalized arm is held against AGAINST, seed by seed. Writes compare.json, .md and .png to `out_dir`
    (by default `compare-<common stem>` next to the runs). Refuses runs whose parameters differ otherwise.
    """
    runs = _checked(sorted(map(Path, run_dirs)))
    rows = [{**row, "seed": seed} for seed, path in sorted(runs.items()) for row in load(path)]
    arms = readings.in_order([row["arm"] for row in rows])
    last, others = _last(arms), [arm for arm in AGAINST if arm in arms]
    means = [_over_seeds(rows, column, arm) for arm in arms for column in COMPARED]
    differences = [_over_seeds(rows, column, last, arm) for arm in others for column in COMPARED if last]

    title = f"{len(runs)} seeds ({', '.join(map(str, sorted(runs)))}): mean, 95% t interval over seeds"
    header = [column.title for column in COMPARED]
    lines = []
    for first in range(0, len(means + differences), len(COMPARED)):
        row = (means + differences)[first : first + len(COMPARED)]
        name = " − ".join(row[0][key] for key in ("arm", "against") if key in row[0])
        lines.append([name, *(_show_mean(cell, column) for cell, column in zip(row, COMPARED, strict=True))])

    shared = os.path.commonprefix([path.name for path in runs.values()])  # noqa: RUF071 - of characters, indeed
    stem = re.sub(r"([-_.]+(seed|s)?\d*)?$", "", shared)
    out = Path(out_dir) if out_dir else next(iter(runs.values())).parent / f"compare-{stem or 'runs'}"
    out.mkdir(parents=True, exist_ok=True)
    record = {"runs": {str(seed): path.name for seed, path in sorted(runs.items())}, "arms": means}
    page.save(out / "compare.json", json.dumps(record | {"differences": differences}, indent=1, allow_nan=False) + "\n")
    page.save(out / "compare.md", _markdown(title, ["arm", *header], lines))
    figure = plots.compare(rows, [(column.metric, column.split) for column in COMPARED[:3] + COMPARED[5:6]])
    figure.savefig(out / "compare.png", dpi=120)
    sections = _questions(rows, last, differences)
    page.save(out / "compare.html", _compared_page(title, header, lines, len(arms), sections))

    shown = _table(title, header)
    for i, (name, *texts) in enumerate(lines):
        shown.add_row(Text(name), *texts, end_section=i == len(arms) - 1)
    return shown


def _questions(rows: Rows, last: str | None, differences: Rows) -> dict[str, list[page.Part]]:
    """The report's five questions over seeds: figures with a dot a seed, what there are rows for, and a sentence each."""
    cells = dict.fromkeys((row["arm"], row["metric"], row["split"]) for row in rows)
    means = [_over_seeds(rows, Column("", metric, split), arm) for arm, metric, split in cells]
    on_test = [row for row in differences if (row["metric"], row["split"]) == ("accuracy", "test")]
    seen = {(row["metric"], row["split"]) for row in rows if _defined(row["value"])}

    def dots(title: str, reading: str, *columns: tuple[str, str]) -> list[page.Part]:
        columns = tuple(column for column in columns if column in seen)
        return [page.Part(title, plots.compare(rows, columns), reading)] if columns else []

    audits = [row for row in means if row["split"].startswith("audit_") and _defined(row["ci_low"])]
    return {
        "Is it better?": dots(
            "A dot a seed; mean and t interval",
            " ".join(sentences.over_seeds(on_test)),
            ("accuracy", "test"),
            ("rationale_win_rate", "test"),
        ),
        "At what?": dots(
            "Other splits, and the rationales",
            sentences.over_splits([row for row in differences if row["against"] == "sft"]),
            *(("accuracy", split) for split in ("ood", "pairwise")),
            ("rationale_accuracy", "test"),
        ),
        "Is it calibrated?": dots(
            "Expected calibration error, and whether right answers are surer",
            sentences.means(means, last, "ece", "test", "The expected calibration error"),
            ("ece", "test"),
            ("auroc", "test"),
        ),
        "Is it robust?": [
            page.Part("Audits, means over seeds", plots.audits(audits), sentences.robust(audits, plots.AUDITS))
        ]
        if audits
        else [],
        "What did it cost?": dots(
            "To judge the test split",
            sentences.means(means, last, "tokens", "test", "The tokens written"),
            ("tokens", "test"),
            ("seconds", "test"),
        ),
    }


def _compared_page(
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    n_arms: int,
    sections: Mapping[str, Sequence[page.Part]],
) -> str:
    """The comparison as one HTML file: the same table, then a section for each question."""
    rows = []
    for i, (name, *texts) in enumerate(lines):
        cells = [f"<td>{page.escape(text)}</td>" for text in texts]
        rows.append(
            ("ours" if name.startswith("sre") else "", _arm_cell(name) if i < n_arms else page.escape(name), cells)
        )
    body = [f"<h1>{page.escape(title)}</h1>"]
    body.append(f"<section><h2>Results</h2>{page.table(['arm', *header], rows)}</section>")
    body += [page.section(question, parts) for question, parts in sections.items() if parts]
    return page.page("compare", body)


def _checked(paths: Sequence[Path]) -> dict[int, Path]:
    """seed -> run directory, for runs that differ in nothing else."""
    import yaml

    if not paths:
        raise ValueError("no runs to compare: name at least one run directory")
    runs: dict[int, Path] = {}
    rest: dict[Path, dict[str, Any]] = {}
    for path in paths:
        if not (path / "params.yaml").exists():
            raise FileNotFoundError(f"{path / 'params.yaml'} is not there: {path} is not a run directory")
        params = yaml.safe_load((path / "params.yaml").read_text("utf-8")) or {}
        changed = stages.made_otherwise(path / "eval", params)
        if changed:
            raise ValueError(f"{path}: its results are those of other parameters ({changed}); run it to its end first")
        seed = params.get("seed", 0)
        if seed in runs:
            raise ValueError(f"{runs[seed]} and {path} both have seed {seed}; compare one run a seed")
        runs[seed] = path
        rest[path] = {name: value for name, value in params.items() if name not in ("seed", *stages.NOT_IDENTITY)}
    for a, b in pairwise(rest):
        names = [name for name in rest[a] | rest[b] if rest[a].get(name, "unset") != rest[b].get(name, "unset")]
        if names:
            shown = ", ".join(f"{n} ({rest[a].get(n, 'unset')} / {rest[b].get(n, 'unset')})" for n in names)
            raise ValueError(f"{a} and {b} differ in more than the seed: {shown}; compare runs of one profile")
    return runs


def _values(rows: Rows, arm: str, column: Column) -> dict[int, float]:
    """seed -> value, without the undefined ones."""
    mine = [row for row in rows if (row["arm"], row["metric"], row["split"]) == (arm, column.metric, column.split)]
    return {row["seed"]: row["value"] for row in mine if _defined(row["value"])}


def _over_seeds(rows: Rows, column: Column, arm: str, against: str | None = None) -> dict[str, Any]:
    """An arm's mean, or its mean difference from another on the same seeds, as a row of compare.json."""
    name, values = {"arm": arm}, _values(rows, arm, column)
    if against:
        name, others = {"arm": arm, "against": against}, _values(rows, against, column)
        values = {seed: values[seed] - others[seed] for seed in values if seed in others}
    got = metrics.seeds(list(values.values()))
    value, low, high = (v if _defined(v) else None for v in got[:3])
    name |= {"metric": column.metric, "split": column.split}
    return name | {"value": value, "ci_low": low, "ci_high": high, "n": got.n, "by_seed": values}


def _last(arms: Collection[str]) -> str | None:
    """The greedy judge of the last iteration, `sre_2`."""
    return max((arm for arm in arms if re.fullmatch(r"sre_\d+", arm)), key=lambda arm: int(arm[4:]), default=None)


def _find(results: Rows, arm: str, column: Column) -> Mapping[str, Any] | None:
    wanted = (arm, column.metric, column.split)
    return next((row for row in results if (row["arm"], row["metric"], row["split"]) == wanted), None)


def _show(row: Mapping[str, Any] | None, column: Column, interval: bool = False) -> str:
    """`46.8 [41.9, 51.6]`, or a dash where there is no value."""
    if row is None or not _defined(row["value"]):
        return "–"
    value, low, high = (_number(row[key], column) for key in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]" if interval and low and high else value


def _show_mean(row: Mapping[str, Any], column: Column) -> str:
    """`64.4 ± 3.5`, a difference with its sign; the t interval lies evenly about the mean."""
    value = _number(row["value"], column, signed="against" in row) or "–"
    return f"{value} ± {_number(row['ci_high'] - row['value'], column)}" if _defined(row["ci_high"]) else value


def _number(value: float | None, column: Column, signed: bool = False) -> str:
    if value is None or not _defined(value):
        return ""
    share = column.metric in plots.SHARES
    form = ".1f" if share else ",.0f" if column.metric in ("seconds", "tokens") else ".3f"
    return f"{100 * value if share else value:{'+' if signed else ''}z{form}}"  # z: no negative zero


def _defined(value: float | None) -> bool:
    return value is not None and value == value  # null or NaN


def _table(title: str, columns: Sequence[str]) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("arm", no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right")
    return shown


def _markdown(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, rule, *lines)]
    return "\n".join([f"{title}.", "", *rows, ""])


def _without_paths(params: str) -> str:
    """params.yaml as others may see it: of a path of this machine only its last part."""
    import yaml

    values = {name: card.shown(v) if isinstance(v, str) else v for name, v in (yaml.safe_load(params) or {}).items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _headline(results: Rows) -> list[str]:
    """What the run found, in one sentence: its last self-rationalized arm against where it started."""
    last = _last({row["arm"] for row in results})
    found = [(_find(results, "sft", column), _find(results, last or "", column), column) for column in COLUMNS[:2]]
    parts = [
        f"{_show(a, column)} → {_show(b, column)} % on {column.split}"
        for a, b, column in found
        if a and b and _defined(a["value"]) and _defined(b["value"])
    ]
    return [f"Accuracy from sft to {last}: {', '.join(parts)}."] if parts else []


def _html_table(results: Rows) -> str:
    lines = []
    for arm in readings.in_order([row["arm"] for row in results]):
        cells = []
        for i, column in enumerate(COLUMNS):
            row = _find(results, arm, column)
            value, *interval = _show(row, column, interval=True).split(" ", 1)
            hover = f"n = {row['n']}, {row['protocol']}" if row else ""
            small = f"<small>{page.escape(interval[0])}</small>" if interval and i < 3 else ""
            cells.append(f'<td title="{page.escape(hover)}">{page.escape(value)}{small}</td>')
        lines.append(("ours" if arm.startswith("sre") else "", _arm_cell(arm), cells))
    return page.table(["arm", *(column.title for column in COLUMNS)], lines)


def _arm_cell(arm: str) -> str:
    return f"{page.escape(arm)}<small>{page.escape(readings.ARMS.get(arm, ''))}</small>"
