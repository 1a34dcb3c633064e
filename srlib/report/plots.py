"""One function a figure: rows or arrays in, a matplotlib Figure out; nothing to show makes an empty one.

Ink on white, light grid lines, 100 dpi. Arms are in the order of ARMS, each in its own colour (`color_of`) in every figure; what
is no arm is slate."""

import textwrap
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from srlib.evaluate.arms import CEILING, arm, in_order
from srlib.stats import intervals

Rows = Sequence[Mapping[str, Any]]
Values = Sequence[float]
Columns = Sequence[tuple[str, str]]  # (metric, split)
ACCURACIES = tuple(("accuracy", split) for split in ("test", "ood", "pairwise"))
SHARES = ("accuracy", "balanced_accuracy", "parse_rate", "rationale_accuracy", "rationale_win_rate")  # shown in percent
INK, GRID = "#333333", "#dddddd"
DARK, MIDDLE, PALE, FAINT = SLATE = ("#2f3e4e", "#7d93a8", "#aebcc9", "#d5dde4")
RED = "#d55e00"  # alarms, and fits
COLORS = {  # of judges; later self-rationalized judges are darker
    "base": "#949494", "sft_score_only": "#b07d4f", "sft": "#8e4ec6", CEILING: "#de8f05", "sft_continued": "#c39be0",
    "rft": "#e078b0", "grpo": "#029e73", "sre_1": "#56b4e9", "sre_2": "#0173b2", "sre_3": "#01406b",
}  # fmt: skip
SPARE = ("#7a8b1f", "#b5495b", "#2f9c95", "#6b6f9c", "#8c6d1f")  # of judges that are not in COLORS
STYLE = {
    "figure.dpi": 100, "figure.facecolor": "white", "font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "xtick.major.size": 3, "ytick.major.size": 3,
}  # fmt: skip


def score_histogram(scores: Mapping[str, Sequence[float]]) -> plt.Figure:
    """How often each score occurs, as a share of each split: `{"train": [1, 5, ...], "test": [...]}`."""
    figure, (axes,) = axes_of("Scores", "", "")
    columns = {f"{split} ({len(c)})": pd.Series(c, dtype=float).value_counts(True) for split, c in scores.items()}
    shares = pd.DataFrame(columns).fillna(0).sort_index()
    if len(shares):
        shares.plot.bar(ax=axes, width=0.8, color=SLATE, rot=0, legend=False)
        every = -(-len(shares) // 12)  # at most a dozen labels
        axes.set_xticks(range(0, len(shares), every), [f"{score:g}" for score in shares.index[::every]])
    axes.set(xlabel="score", ylabel="share")
    percent(axes.yaxis)
    legend(axes, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, handlelength=1)
    return figure


def histograms(title: str, columns: Mapping[str, Values], xlabel: str, ylabel: str) -> plt.Figure:
    """How the values of each column are distributed, a panel a column, with its median: `{"prompt": [120, 98], "completion": ...}`."""
    columns = {name: pd.Series(column, dtype=float).dropna() for name, column in columns.items()}
    columns = {name: values for name, values in columns.items() if len(values)}
    figure, panels = axes_of(title, xlabel, ylabel, len(columns), width=4.2 * (len(columns) > 1))
    for axes, (name, values) in zip(panels, columns.items(), strict=False):
        axes.hist(values, bins=30, color=MIDDLE)
        axes.axvline(values.median(), color=INK, linewidth=1, linestyle="--")
        middle, most = round(values.median(), 2), round(values.max(), 2)
        entitle(axes, f"{name}: median {middle:g}, highest {most:g} (n {len(values)})")
    return figure


def curves(log: Rows, title: str) -> plt.Figure:
    """What a training logged over its steps (`training.log_of`): its loss, and of DPO margins, log-probabilities and lengths, of
    GRPO rewards and lengths. If both log-probabilities fall while the margin grows, DPO is failing in its usual way."""
    panels = {"margin of rewards": ["rewards/margins"], "log-probability, nats": ["logps/chosen", "logps/rejected"]}
    panels |= {"reward": ["reward"], "tokens of a judgment": ["completions/mean_length"]}
    panels |= {"loss": ["loss"], "tokens": ["lengths/chosen", "lengths/rejected"]}
    panels = {name: keys for name, keys in panels.items() if any(keys[0] in row for row in log)}
    unit = "nats per token" if len(panels) == 1 else ""
    figure, all_axes = axes_of(title, "step, means over its rows", unit, len(panels))
    for axes, (name, keys) in zip(all_axes, panels.items(), strict=False):
        for key, color in zip(keys, SLATE, strict=False):
            points = np.transpose([(row["step"], row[key]) for row in log if key in row])
            axes.plot(*points, color=color, label=key.split("/")[1] if len(keys) > 1 else None, linewidth=1.8)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.set_ylim(bottom=0 if len(panels) == 1 else None)
        entitle(axes, name if len(panels) > 1 else title)
        legend(axes)
    return figure


def waterfall(steps: Sequence[tuple[str, int]], title: str = "From judgments to pairs") -> plt.Figure:
    """What is left after each step of curation, `[("sampled", 8000), ..., ("pairs", 480)]`; the pale part is lost."""
    figure, (axes,) = axes_of(title, "", "", height=0.9 + 0.42 * len(steps), width=7.2)
    for i, (_, count) in enumerate(steps):
        before = max(steps[max(i - 1, 0)][1], count)
        axes.barh(i, count, color=DARK if i == len(steps) - 1 else MIDDLE, height=0.7)
        axes.barh(i, before - count, left=count, color=FAINT, height=0.7)
        axes.text(before, i, f" {count:,}" + f"   −{before - count:,}" * (before > count), va="center", color=INK)
    axes.set(xlim=(0, max((count for _, count in steps), default=1) * 1.3), xticks=[])
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    label_rows(axes, [label for label, _ in steps])
    return figure


def forest(results: Rows, columns: Columns = ACCURACIES, reference: str = "sft") -> plt.Figure:
    """Every arm as a dot with interval and value, a panel for each (metric, split) that has a value; hollow: N draws or another
    prompt; dashed: `reference`; dotted: the ceiling. Of several seeds, pale dots, with their mean and t interval."""
    of = {column: [row for row in results if (row["metric"], row["split"]) == column] for column in columns}
    of = {column: known for column in of if (known := [row for row in of[column] if pd.notna(row["value"])])}
    names = in_order([row["arm"] for known in of.values() for row in known])
    height, width = 1.0 + 0.36 * len(names), 2.9 + 2 / max(len(of), 1)
    figure, panels = axes_of("", "", "", len(of), height, width, sharey=True)
    label_rows(panels[0], [f"{name} (ceiling)" if arm(name).name == CEILING else name for name in names])
    for axes, ((metric, split), known) in zip(panels, of.items(), strict=False):
        seeds, sizes = len({row.get("seed") for row in known}), {row["n"] for row in known}
        n = "–".join(str(end) for end in sorted({min(sizes), max(sizes)}))
        entitle(axes, f"{metric.replace('_', ' ').capitalize()} on {split} (n {n})")
        axes.set_xlabel("points; " * (metric == "mae") + "95% intervals" + f" over {seeds} seeds" * (seeds > 1))
        if metric in SHARES:
            percent(axes.xaxis)
        for name in in_order([row["arm"] for row in known]):
            mine, place, color = [row for row in known if row["arm"] == name], names.index(name), color_of(name)
            value, low, high = (mine[0][end] for end in ("value", "ci_low", "ci_high"))
            if len(mine) > 1:
                value, low, high, _ = intervals.seeds(values := [row["value"] for row in mine])
                axes.plot(values, [place - 0.25] * len(mine), "o", color=color, alpha=0.4, markersize=5, mew=0)
            if name in (reference, CEILING):
                axes.axvline(value, color=color, linewidth=1.2, linestyle="--" if name == reference else ":")
            axes.plot([low, high], [place, place], color=color, linewidth=2.5, alpha=0.55)
            axes.plot(value, place, "o", color=color, markersize=8, mfc=color if arm(name).plain else "white")
            text = f"{100 * value:.1f}" if metric in SHARES else f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=INK)
    return figure


def alarms(results: Rows, title: str = "Alarms, as shares of their limits") -> plt.Figure:
    """Each alarm of each iteration as a dot at value / threshold; right of the line, in red, those that have fired."""
    shown = [row for row in results if pd.notna(row["value"]) and row["threshold"]]
    labels = [f"{row['alarm'].replace('_', ' ')}, iteration {row['iteration']} (n {row['n']})" for row in shown]
    places = list(dict.fromkeys(labels))
    figure, (axes,) = axes_of(title, "value / threshold", "", height=1.2 + 0.28 * len(places))
    x, y = [row["value"] / row["threshold"] for row in shown], [places.index(label) for label in labels]
    axes.scatter(x, y, c=[RED if row["fired"] else DARK for row in shown], zorder=3)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    label_rows(axes, places)
    return figure


def confusion(gold: Sequence[float], scores: Sequence[float], scale: Sequence[float], title: str = "") -> plt.Figure:
    """Counts of gold scores (rows) and the judge's (columns); the last column, if any, counts missing scores (NaN)."""
    labels = [f"{score:g}" for score in sorted(scale)]
    names = {"rownames": ["gold score"], "colnames": ["the judge's score"]}
    table = pd.crosstab([f"{g:g}" for g in gold], [f"{s:g}" if s == s else "none" for s in scores], **names)
    table = table.reindex(index=labels, columns=[*labels, *(["none"] if "none" in table else [])], fill_value=0)
    size = 1.1 + (0.42 if len(labels) <= 12 else 0.32) * len(labels)
    return _heatmap(table, title, (size + 0.4, size), annot=len(labels) <= 12, square=True)


def error_heatmap(cells: Rows, title: str = "Wrong in %, by slice") -> plt.Figure:
    """Error rates, slices against arms: `[{"slice": ..., "n": 32, "arm": "sft", "error": 0.6}]`."""
    labels = {cell["slice"]: textwrap.fill(f"{plain(cell['slice'], 80)} (n\xa0{cell['n']})", 32) for cell in cells}
    names, arms, errors = ([cell[key] for cell in cells] for key in ("slice", "arm", "error"))
    table = 100 * pd.Series(errors, index=[names, arms], dtype=float).unstack().reindex(labels)
    height = 0.16 * (1.2 + max((text.count("\n") + 1 for text in labels.values()), default=1))  # of the longest label
    size = (max(3.5, 2.1 + 0.5 * len(table.columns)), 1.0 + height * len(table))
    table = table[in_order(table.columns)].rename(index=labels, columns=plain)
    return _heatmap(table, title, size, annot=True, vmin=0, vmax=100)


def _heatmap(table: pd.DataFrame, title: str, size: tuple[float, float], **options: Any) -> plt.Figure:
    import seaborn

    figure, (axes,) = axes_of(title, "", "", width=size[0], height=size[1])
    style = dict(fmt=".0f", cmap="Blues", cbar=False, linewidths=1, linecolor=GRID)
    if table.size:  # at most 400 px wide for three arms, so that a telephone shows it whole
        seaborn.heatmap(table, ax=axes, **style, **options)
    axes.tick_params(length=0, rotation=0, labelsize=8.5)
    axes.grid(visible=False)
    return figure


def reliability(confidence: Values, correct: Values, title: str, fitted: Any = None, color: str = DARK) -> plt.Figure:
    """Observed accuracy over mean confidence in ten bins; larger dots hold more items, the dashed line is the ideal. `fitted`
    are the confidences after a fit on other items: its curve should pass through the dots."""
    from sklearn.calibration import calibration_curve

    figure, (axes,) = axes_of(title, "confidence", f"share that is right (n {len(confidence)})", height=3.5, width=3.5)
    axes.axline((0, 0), slope=1, color=MIDDLE, linestyle="--", linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if not len(confidence):
        return figure
    confidence = np.clip(confidence, 0, 1)
    right, claimed = calibration_curve(correct, confidence, n_bins=10)
    n = np.unique(np.searchsorted(np.linspace(0, 1, 11)[1:-1], confidence), return_counts=True)[1]
    axes.scatter(claimed, right, s=20 + 160 * n / n.max(), color=color, zorder=3, label="observed")
    if fitted is not None:
        curve = pd.Series(np.asarray(fitted, dtype=float)).groupby(confidence.round(2)).mean()
        axes.plot(curve.index, curve, color=RED, linewidth=1.8, label="fitted on validation")
    legend(axes, loc="upper left")
    return figure


def risk_coverage(curves: Mapping[str, tuple], target: float | None = None) -> plt.Figure:
    """Share of wrong answers among the surest, for every share of answered items: `calibration.curve` by arm."""
    figure, (axes,) = axes_of("Risk against coverage", "items answered", "of them wrong")
    for name, (coverage, risk, _, n) in curves.items():
        axes.plot(coverage, risk, label=f"{plain(name)} (n {n})", linewidth=1.8, color=color_of(name))
    if target is not None:
        axes.axhline(target, color=INK, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1.01), ylim=(0, None))
    percent(axes.xaxis)
    percent(axes.yaxis)
    legend(axes)
    return figure


def preferences(won: Mapping[str, Any], first: str, second: str) -> plt.Figure:
    """Wins, ties and losses of the first arm, a bar a question, and its win rate (ties half) with interval as a dot."""
    won = {name: rates for name, rates in won.items() if rates.ties_split.n}
    title, colors = f"Preferred: {first} (left) or {second} (right)", [color_of(first), GRID, color_of(second)]
    figure, (axes,) = axes_of(title, "", "", height=1.3 + 0.42 * len(won))
    for i, rates in enumerate(won.values()):
        value, low, high, n = rates.ties_split
        shares = np.array([rates.wins, rates.ties, rates.losses]) / n
        axes.barh([i] * 3, shares, 0.7, left=shares.cumsum() - shares, color=colors, alpha=0.35)
        axes.plot([low, high], [i, i], color=INK, linewidth=2)
        axes.plot(value, i, "o", color=INK, markersize=7)
        axes.text(1.02, i, f"{value:.0%} of {n}", transform=axes.get_yaxis_transform(), va="center", color=INK)
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.grid(visible=False)
    label_rows(axes, [name.replace("_", " ") for name in won])
    percent(axes.xaxis)
    return figure


def audits(results: Rows, title: str = "Audits: an unaffected judge is at 0") -> plt.Figure:
    """Effects of `audit_` rows: shifts as shares of the scale, and the share of scores below the top that reach it."""
    rows = [row for row in results if row["split"].startswith("audit_") and pd.notna(row["value"])]
    panels = {"shift, in % of the scale; 95% intervals": ("position_bias", "slope", "shift")}
    panels |= {"raised to the top": ("raised_to_top",)}
    names, splits = in_order([row["arm"] for row in rows]), {row["split"] for row in rows}
    height = 1.3 + (0.25 + 0.12 * len(names)) * len(splits)
    figure, all_axes = axes_of(title, "", "", panels=2, height=height, width=4.6)
    for axes, (effect, metrics) in zip(all_axes, panels.items(), strict=True):
        labels = list(dict.fromkeys(row["split"] for row in rows if row["metric"] in metrics))
        n = {row["split"]: row["n"] for row in sorted(rows, key=lambda row: row["n"]) if row["metric"] in metrics}
        for k, name in enumerate(names):
            mine = [row for row in rows if row["metric"] in metrics and row["arm"] == name]
            y = [labels.index(row["split"]) + 0.6 * ((k + 0.5) / len(names) - 0.5) for row in mine]
            value, low, high = ([row[key] for row in mine] for key in ("value", "ci_low", "ci_high"))
            axes.hlines(y, low, high, linewidth=2, color=color_of(name))
            axes.plot(value, y, "o", markersize=5, label=plain(name), color=color_of(name))
        axes.axvline(0, color=INK, linewidth=0.8)
        entitle(axes, effect)
        label_rows(axes, [f"{split.removeprefix('audit_').replace('_', ' ')} (n {n[split]})" for split in labels])
        percent(axes.xaxis)
    drawn = all_axes[-1].get_legend_handles_labels()
    figure.legend(*drawn, loc="outside upper right", frameon=False, fontsize=9, labelcolor=INK, ncols=4, handlelength=1)
    return figure


def color_of(name: str) -> str:
    """The colour of an arm, that of its judge, in every setting; a judge not in COLORS always has the same spare one."""
    judge = arm(name).judge or "base"
    later = COLORS["sre_3"] if arm(name).iteration > 3 else SPARE[zlib.crc32(judge.encode()) % len(SPARE)]
    return COLORS.get(judge, later)


def axes_of(
    title: str, xlabel: str, ylabel: str, panels: int = 1, height: float = 3.2, width: float = 0, **options: Any
) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure with `panels` axes side by side, at least one; sizes of a panel in inches, `options` of plt.subplots."""
    size = ((width or (6.4 if panels < 2 else 3.4)) * max(panels, 1), height)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, max(panels, 1), figsize=size, layout="constrained", squeeze=False, **options)
    plt.close(figure)  # a notebook shows it once, as the value of its cell
    for axes in grid[0]:
        axes.set(xlabel=xlabel, ylabel=ylabel)
    if panels < 2:
        entitle(axes, title)
    else:
        figure.suptitle(plain(title, 60), x=0.01, ha="left", fontsize=12, color=INK)
    return figure, list(grid[0])


def entitle(axes: plt.Axes, text: str) -> None:
    axes.set_title(plain(text, 60), loc="left", fontsize=11, color=INK, pad=10)


def legend(axes: plt.Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, **options)


def label_rows(axes: plt.Axes, labels: Sequence[str]) -> None:
    """Rows 0, 1, ... from the top, with their labels."""
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)


def percent(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def plain(text: str, limit: int = 44) -> str:
    """Text that is drawn as it is: not as a formula, and not longer than there is room for."""
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")
