"""results.json -> a table in the terminal, one HTML file, and a comparison over seeds.

A run directory holds `results.json`, rows `{arm, split, metric, value, ci_low, ci_high, n, seed, iteration, protocol}`
with values as shares (0.468), null where undefined; this module shows shares as percentages (46.8).

    print(table("runs/tiny"))                                   # arms x metrics
    write("runs/tiny", {"Accuracy on test": plots.arms(...)})   # runs/tiny/report.html
    compare(["runs/tiny-0", "runs/tiny-1"])                     # runs/compare-tiny/compare.{json,md,png}

The HTML is one file without scripts, and a content policy that allows none: it opens offline, and text that a model
or a data file wrote is escaped wherever it stands.
"""

from __future__ import annotations

import html
import io
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from rich.table import Table
from rich.text import Text

from srlib import metrics, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    for arm in plots.in_order([row["arm"] for row in results]):
        first, *rest = [(_find(results, arm, column), column) for column in COLUMNS]
        shown.add_row(Text(arm), _show(*first, interval=True), *(_show(*cell) for cell in rest))
    return shown


def write(run_dir: str | Path, figures: Mapping[str, Figure], notes: Sequence[str] = ()) -> Path:
    """`run_dir`/report.html: the table, the notes (plain paragraphs), the figures under their titles, the executed
    notebooks (linked, and rendered to HTML where nbconvert is installed), the parameters. Returns its path."""
    run_dir = Path(run_dir)
    results, params = load(run_dir), run_dir / "params.yaml"
    body = [f"<h1>{_escape(run_dir.name)}</h1>", *(f"<p class=lead>{_escape(line)}</p>" for line in _headline(results))]
    body += ["<section><h2>Results</h2>", _html_table(results), f"<p class=small>{_escape(CAPTION)}</p>"]
    body += [*(f"<p>{_escape(note)}</p>" for note in notes), "</section>"]
    for title, figure in figures.items():
        body.append(f"<section><h2>{_escape(title)}</h2><figure>{_svg(figure, title)}</figure></section>")
    body.append(_links(run_dir))
    if params.exists():
        text = _escape(params.read_text("utf-8"))
        body.append(f"<details><summary>Parameters</summary><pre>{text}</pre></details>")
    return _save(run_dir / "report.html", PAGE.format(title=_escape(run_dir.name), css=CSS, body="\n".join(body)))


def compare(run_dirs: Sequence[str | Path], out_dir: str | Path | None = None) -> Table:
    """Arms x metrics over runs that differ in their seed alone: means, t intervals, and paired differences.

    The last self-rationalized arm is held against AGAINST, seed by seed. Writes compare.json, .md and .png to `out_dir`
    (by default `compare-<common stem>` next to the runs). Refuses runs whose parameters differ otherwise.
    """
    runs = _checked(sorted(map(Path, run_dirs)))
    rows = [{**row, "seed": seed} for seed, path in sorted(runs.items()) for row in load(path)]
    arms = plots.in_order([row["arm"] for row in rows])
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
    _save(out / "compare.json", json.dumps(record | {"differences": differences}, indent=1, allow_nan=False) + "\n")
    _save(out / "compare.md", _markdown(title, ["arm", *header], lines))
    figure = plots.compare(rows, [(column.metric, column.split) for column in COMPARED[:3] + COMPARED[5:6]])
    figure.savefig(out / "compare.png", dpi=120)

    shown = _table(title, header)
    for i, (name, *texts) in enumerate(lines):
        shown.add_row(Text(name), *texts, end_section=i == len(arms) - 1)
    return shown


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
        seed = params.get("seed", 0)
        if seed in runs:
            raise ValueError(f"{runs[seed]} and {path} both have seed {seed}; compare one run a seed")
        runs[seed] = path
        rest[path] = {name: value for name, value in params.items() if name not in ("seed", "run_dir")}
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
    head = "".join(f"<th>{_escape(column.title)}</th>" for column in COLUMNS)
    lines = []
    for arm in plots.in_order([row["arm"] for row in results]):
        cells = []
        for i, column in enumerate(COLUMNS):
            row = _find(results, arm, column)
            value, *interval = _show(row, column, interval=True).split(" ", 1)
            hover = f"n = {row['n']}, {row['protocol']}" if row else ""
            small = f"<small>{_escape(interval[0])}</small>" if interval and i < 3 else ""
            cells.append(f'<td title="{_escape(hover)}">{_escape(value)}{small}</td>')
        name = f"{_escape(arm)}<small>{_escape(plots.ARMS.get(arm, ''))}</small>"
        ours = " class=ours" if arm.startswith("sre") else ""
        lines.append(f"<tr{ours}><th>{name}</th>{''.join(cells)}</tr>")
    rows = "\n".join(lines)
    return f"<div class=scroll><table><thead><tr><th>arm</th>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"


def _links(run_dir: Path) -> str:
    items = []
    for path in sorted((run_dir / "notebooks").glob("*.ipynb"), key=_stage):
        name, url = _escape(path.stem), f"notebooks/{quote(path.stem)}"
        link = f'<a href="{url}.html">{name}</a> ' if _render(path) else f"{name} "
        items.append(f'<li>{link}<a class=small href="{url}.ipynb">.ipynb</a></li>')
    return f"<section><h2>Executed notebooks</h2><ul>{''.join(items)}</ul></section>" if items else ""


def _stage(path: Path) -> tuple[int, int, int, str]:
    """data, sft, then sample, curate, dpo of each iteration, then eval."""
    phases = {"data": (0, 0), "sft": (0, 1), "sample": (1, 0), "curate": (1, 1), "dpo": (1, 2), "eval": (2, 0)}
    name = re.sub(r"^\d+_", "", path.stem)
    iteration = re.search(r"_(\d+)$", name)
    phase, place = phases.get(name.split("_")[0], (3, 0))
    return phase, int(iteration[1]) if iteration else 0, place, path.stem


def _render(notebook: Path) -> bool:
    """<stage>.html beside <stage>.ipynb, sanitized and without scripts; False where nbconvert is not installed."""
    target = notebook.with_suffix(".html")
    if target.exists() and target.stat().st_mtime >= notebook.stat().st_mtime:
        return True
    try:
        import bleach
        from nbconvert import HTMLExporter
    except ImportError:
        return False

    def clean(text: str) -> str:  # nbconvert's own cleaning would escape headings and table heads
        text = re.sub(r"<style\b.*?</style>", "", str(text), flags=re.DOTALL | re.IGNORECASE)  # what pandas adds
        return bleach.clean(text, tags=HARMLESS, attributes={"*": ["class", "id"], "a": ["href", "title"]})

    exporter = HTMLExporter(sanitize_html=True)
    exporter.register_filter("clean_html", clean)
    page, _ = exporter.from_filename(str(notebook))
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL | re.IGNORECASE)  # the template's own
    _save(target, page.replace("<head>", f"<head>{POLICY}", 1))
    return True


def _svg(figure: Figure, title: str) -> str:
    """A figure as inline SVG whose ink and grid follow the reader's light or dark."""
    import matplotlib

    buffer, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    same = [
        text for text in figure.findobj(matplotlib.text.Text) if text.get_text() == title
    ]  # the heading says it already
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "svg.hashsalt": title}
    ):  # the salt: ids that no other figure has
        for text in same:
            text.set_visible(False)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        for text in same:
            text.set_visible(True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor").replace(plots.GRID, "var(--grid)")
    width = round(figure.get_figwidth() * 100)
    size = f'style="width:100%;max-width:{width}px;min-width:{min(width, max(440, round(width * 0.7)))}px"'
    tag = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{tag} {size} role="img" aria-label="{_escape(title)}"{svg[svg.index(">") :]}'


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _save(path: Path, text: str) -> Path:
    """All of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
    return path


HARMLESS = [
    "a", "b", "blockquote", "br", "code", "div", "em", "h1", "h2", "h3", "h4", "hr", "i", "li", "ol", "p", "pre",
    "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
]  # fmt: skip
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:\">"
)
CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #6b6b6b; --grid: #e3e3e3;
  --tint: #0173b212; --link: #0173b2 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e6e6; --soft: #9a9a9a; --grid: #34383d; --tint: #56b4e91c; --link: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { max-width: 46rem }
.lead { font-size: 1.1rem; margin: .4rem 0 0 }
.small, small { color: var(--soft); font-size: .8rem }
.scroll, figure { overflow-x: auto; margin: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .38rem .8rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--grid) }
thead th { color: var(--soft); font-weight: 500 }
tr > :first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper) }
tbody th { font-weight: 500 }
td small, th small { display: block; font-weight: 400; font-size: .74rem }
th small { white-space: normal; max-width: 16rem; line-height: 1.3 }
.ours td { background: var(--tint) }
a { color: var(--link) }
pre { overflow-x: auto; font-size: .85rem }
ul { padding-left: 1.1rem }
details { margin-top: 2.4rem }
summary { cursor: pointer; font-weight: 600 }
@media (max-width: 40rem) { th small { display: none } th, td { padding: .38rem .5rem } }
"""
PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    + POLICY
    + '\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
    + "<style>{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
)
