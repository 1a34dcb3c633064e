"""One function for each figure: plain rows or arrays in, a matplotlib Figure out.

The look that all share is in canvas.py; in which order arms stand, in readings.py.

    figure = forest(results)
    figure.savefig("forest.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from srlib.evaluate.arms import in_order
from srlib.report import canvas
from srlib.stats import metrics, selective

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_histogram(scores: Mapping[str, Sequence[float]]) -> Figure:
    """How often each score occurs, as a share of each split: `{"train": [1, 5, ...], "test": [...]}`."""
    values = sorted({float(score) for column in scores.values() for score in column if not np.isnan(score)})
    figure, (axes,) = canvas.axes_of("Scores", "score", "share of the split")
    width = 0.8 / max(len(scores), 1)
    for i, (split, column) in enumerate(scores.items()):
        shares = [np.mean(np.asarray(column, dtype=float) == value) for value in values]
        left = np.arange(len(values)) - 0.4 + (i + 0.5) * width
        axes.bar(left, shares, width * 0.92, label=f"{split} ({len(column)})", color=canvas.palette(len(scores))[i])
    every = max(-(-len(values) // 12), 1)  # at most a dozen labels
    axes.set_xticks(range(0, len(values), every), [f"{value:g}" for value in values[::every]])
    canvas.percent(axes.yaxis)
    if scores:
        canvas.legend(axes, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, handlelength=1)
    return figure


def lengths(tokens: Mapping[str, Sequence[int]], limit: int | None = None) -> Figure:
    """Token lengths, a panel for each kind: `{"prompt": [...], "completion": [...]}`; `limit` is the most allowed."""
    import seaborn

    figure, panels = canvas.axes_of("Lengths", "tokens", "rows", panels=len(tokens))
    shown = [(name, np.asarray(column)) for name, column in tokens.items() if len(column)]
    for axes, (name, column), color in zip(panels, shown, canvas.palette(len(shown)), strict=False):
        seaborn.histplot(x=column, ax=axes, color=color, bins=30, edgecolor="none", alpha=0.9)
        median, longest = np.median(column), max(column)
        axes.axvline(median, color=canvas.INK, linewidth=1, linestyle="--")
        canvas.entitle(axes, f"{name}: median {median:.0f}, longest {longest}")
        axes.set(xlabel="tokens", ylabel="rows" if axes is panels[0] else "")
        if limit is not None and longest > 0.7 * limit:  # else it would squeeze what there is to see
            axes.axvline(limit, color=canvas.RED, linewidth=1.5)
    return figure


def loss_curve(log: Sequence[Mapping[str, float]], title: str = "Loss") -> Figure:
    """Training loss over steps, from a Trainer's `log_history`: rows without a loss are passed over."""
    figure, (axes,) = canvas.axes_of(title, "step", "loss")
    canvas.line(axes, log, "loss", canvas.BLUE)
    axes.set_ylim(bottom=0)
    return figure


def dpo_curves(log: Sequence[Mapping[str, float]], title: str = "DPO") -> Figure:
    """Margins, log-probabilities, loss and, where logged, lengths over steps, from TRL's `log_history`.

    Both log-probabilities falling while the margin grows is DPO's usual way to go wrong; hence one panel for both.
    """
    sides = {"chosen": canvas.BLUE, "rejected": canvas.ORANGE}
    panels = [
        ("margin of rewards", {"rewards/margins": ("margin", canvas.GREEN)}),
        ("log-probability", {f"logps/{side}": (side, color) for side, color in sides.items()}),
        ("loss", {"loss": ("loss", canvas.INK)}),
        ("tokens", {f"lengths/{side}": (side, color) for side, color in sides.items()}),
    ]
    panels = [panel for panel in panels if any(key in row for key in panel[1] for row in log)]
    figure, axes = canvas.axes_of(title, "step", "", panels=len(panels))
    for ax, (name, lines) in zip(axes, panels, strict=False):
        for key, (label, color) in lines.items():
            canvas.line(ax, log, key, color, label)
        canvas.entitle(ax, name)
        if len(lines) > 1:
            canvas.legend(ax)
        if name == "margin of rewards":
            ax.axhline(0, color=canvas.INK, linewidth=0.8)
    return figure


def waterfall(steps: Sequence[tuple[str, int]], title: str = "From judgments to pairs") -> Figure:
    """What is left after each step of curation: `[("sampled", 8000), ("parsed", 7950), ..., ("pairs", 480)]`.

    Each bar is what is left; the pale part is what this step took away. A unit may change on the way (judgments,
    prompts, pairs): the labels say so, and where a count grows nothing is shown as lost.
    """
    figure, (axes,) = canvas.axes_of(title, "", "", height=0.9 + 0.42 * len(steps), width=7.2)
    labels, counts = [label for label, _ in steps], [count for _, count in steps]
    before = [counts[0], *counts[:-1]] if counts else []
    for i, (count, was) in enumerate(zip(counts, before, strict=True)):
        axes.barh(i, count, color=canvas.GREEN if i == len(steps) - 1 else canvas.BLUE, height=0.7)
        axes.barh(i, max(was - count, 0), left=count, color=canvas.GREY, alpha=0.35, height=0.7)
        lost = f"   −{was - count:,}" if was > count else ""
        axes.text(max(count, was), i, f" {count:,}{lost}", va="center", color=canvas.INK)
    axes.set_yticks(range(len(steps)), canvas.plain(labels))
    axes.set_xlim(0, max(counts, default=1) * 1.3)
    axes.invert_yaxis()
    canvas.bare(axes)
    return figure


def forest(
    results: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, str]] = (("accuracy", "test"), ("accuracy", "ood"), ("accuracy", "pairwise")),
    reference: str = "sft",
) -> Figure:
    """Every arm as a dot with its interval, in the order of ARMS, a panel for each (metric, split) that `results`, rows of
    results.json, have; the dashed line is the arm `reference`."""
    defined = [row for row in results if _number(row["value"]) == _number(row["value"])]
    columns = [column for column in columns if any((row["metric"], row["split"]) == column for row in defined)]
    names = in_order([row["arm"] for row in defined if (row["metric"], row["split"]) in columns])
    height = 1.0 + 0.36 * len(names)
    figure, panels = canvas.axes_of(
        "", "", "", panels=max(len(columns), 1), height=height, width=2.9 if columns else None, left=2.0
    )
    for axes, (metric, split) in zip(panels, columns, strict=False):
        rows = {row["arm"]: row for row in defined if (row["metric"], row["split"]) == (metric, split)}
        share = metric in SHARES
        if reference in rows:
            axes.axvline(rows[reference]["value"], color=canvas.INK, linewidth=1, linestyle="--", alpha=0.6)
        for i, arm in enumerate(names):
            if arm not in rows:
                continue
            value, low, high = (_number(rows[arm][key]) for key in ("value", "ci_low", "ci_high"))
            color = _arm_color(arm)
            axes.plot([low, high], [i, i], color=color, linewidth=2.5, alpha=0.55, solid_capstyle="round")
            axes.plot(value, i, "o", color=color, markersize=8)
            text = f"{100 * value:.1f}" if share else f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"
            axes.annotate(
                text, (1, i), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=canvas.INK
            )
        canvas.entitle(axes, f"{_words(metric)} on {split}")
        axes.set_yticks(range(len(names)), canvas.plain(names) if axes is panels[0] else [""] * len(names))
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        if share:
            canvas.percent(axes.xaxis)
    return figure


def alarms(rows: Sequence[Mapping[str, Any]], title: str = "Alarms, as shares of their thresholds") -> Figure:
    """Each alarm of each iteration as a dot at value / threshold; right of the red line it has fired."""
    rows = [row for row in rows if row["value"] is not None and row["threshold"]]
    names = list(dict.fromkeys(row["alarm"] for row in rows))
    figure, (axes,) = canvas.axes_of(title, "value / threshold", "", height=1.2 + 0.34 * len(names))
    for iteration, color in zip(sorted({row["iteration"] for row in rows}), canvas.palette(9), strict=False):
        mine = [row for row in rows if row["iteration"] == iteration]
        places = [names.index(row["alarm"]) + 0.12 * (iteration - 1) for row in mine]
        axes.plot(
            [row["value"] / row["threshold"] for row in mine], places, "o", color=color, label=f"iteration {iteration}"
        )
    axes.axvline(1, color=canvas.RED, linewidth=1.8)
    axes.set_yticks(range(len(names)), canvas.plain([name.replace("_", " ") for name in names]))
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if rows:
        canvas.legend(axes)
    return figure


def costs(rows: Sequence[Mapping[str, Any]], title: str = "Tokens that each arm took") -> Figure:
    """What each arm needed before it judged, from ledger.arms: tokens trained on, and tokens drawn to learn from."""
    rows = [row for row in rows if (row["training tokens"] or 0) + (row["drawn tokens"] or 0)]
    figure, (axes,) = canvas.axes_of(title, "million tokens", "", height=1.2 + 0.3 * len(rows))
    start = np.zeros(len(rows))
    for key, label, color in (("training tokens", "trained on", canvas.BLUE), ("drawn tokens", "drawn", canvas.ORANGE)):
        values = np.array([(row[key] or 0) / 1e6 for row in rows])
        axes.barh(range(len(rows)), values, 0.7, left=start, color=color, label=label)
        start = start + values
    axes.set_yticks(range(len(rows)), canvas.plain([row["arm"] for row in rows]))
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    if rows:
        canvas.legend(axes)
    return figure


def confusion(gold: Sequence[float], scores: Sequence[float], scale: Sequence[float], title: str = "") -> Figure:
    """Gold scores (rows) against the judge's (columns), counts; the last column is where it gave none (NaN)."""
    import seaborn

    points, gold, scores = sorted(scale), np.asarray(gold, dtype=float), np.asarray(scores, dtype=float)
    columns = [scores == point for point in points] + [np.isnan(scores)]
    table = np.array([[int(((gold == point) & column).sum()) for column in columns] for point in points])
    if not table[:, -1].any():
        table = table[:, :-1]
    size = max(3.2, (0.5 if len(points) <= 12 else 0.32) * len(points) + 1.2)
    figure, (axes,) = canvas.axes_of(title or "Gold score against the judge's", "", "", height=size, width=size + 0.8)
    ticks = [f"{point:g}" for point in points]
    seaborn.heatmap(
        table, ax=axes, annot=len(points) <= 12, fmt="d", cmap="Blues", cbar=False, square=True, linewidths=1,
        linecolor=canvas.GRID, xticklabels=[*ticks, "none"][: table.shape[1]], yticklabels=ticks,
    )  # fmt: skip
    axes.set(xlabel="the judge's score", ylabel="gold score")
    axes.tick_params(length=0, rotation=0)
    axes.grid(visible=False)
    return figure


def error_heatmap(cells: Sequence[Mapping[str, Any]], title: str = "Error by slice") -> Figure:
    """Error rates, slices (rows, in the order given) against arms: `[{"slice": ..., "n": 32, "arm": "sft", "error": 0.6}]`.
    Numbers in %; darker is worse, and the whole range 0 to 100% has one colour scale."""
    import seaborn

    labels = list(dict.fromkeys((cell["slice"], cell["n"]) for cell in cells))
    names = in_order([cell["arm"] for cell in cells])
    value = {(cell["slice"], cell["arm"]): _number(cell["error"]) for cell in cells}
    table = np.array([[value.get((part, arm), np.nan) for arm in names] for part, _ in labels])
    width = max(4.0, 1.1 * len(names)) + 3.6
    figure, (axes,) = canvas.axes_of(title, "", "", height=1.0 + 0.3 * max(len(labels), 1), width=width)
    if len(labels):
        ticks = [
            f"{text}  (n {n})" for text, (_, n) in zip(canvas.plain([p for p, _ in labels], 48), labels, strict=True)
        ]
        seaborn.heatmap(
            100 * table, ax=axes, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False, linewidths=1,
            linecolor=canvas.GRID, xticklabels=canvas.plain(names), yticklabels=ticks,
        )  # fmt: skip
    axes.set(xlabel="wrong, %", ylabel="")
    axes.tick_params(length=0, rotation=0)
    axes.grid(visible=False)
    return figure


def reliability(
    table: Sequence[metrics.Bin], title: str = "Calibration", labels: tuple[str, str] | None = None
) -> Figure:
    """Claim against truth from `metrics.reliability`; calibrated is on the dashed line. Larger dots hold more."""
    low, high = table[0].low, table[-1].high
    rows = [row for row in table if row.n]
    xlabel, ylabel = labels or ("confidence", "share that is right")
    figure, (axes,) = canvas.axes_of(title, xlabel, ylabel, height=4.2, width=4.6)
    axes.plot([low, high], [low, high], color=canvas.GREY, linestyle="--", linewidth=1)
    most = max((row.n for row in rows), default=1)
    claimed, was = [row.confidence for row in rows], [row.correct for row in rows]
    axes.plot(claimed, was, color=canvas.BLUE, linewidth=1, alpha=0.5)
    axes.scatter(claimed, was, s=[20 + 160 * row.n / most for row in rows], color=canvas.BLUE, zorder=3)
    axes.set_aspect("equal", adjustable="box")
    return figure


def preferences(won: Mapping[str, Any], first: str, second: str, title: str = "") -> Figure:
    """Wins, ties and losses of the first arm as shares, a bar for each question, and its win rate with ties as halves as a
    dot with its interval: `{"overall": preference.win_rates(...)}`."""
    won = {name: rates for name, rates in won.items() if rates.ties_split.n}
    title = title or f"Preferred: {first} (left) or {second} (right)"
    figure, (axes,) = canvas.axes_of(title, "", "", height=1.3 + 0.42 * len(won))
    for i, rates in enumerate(won.values()):
        left = 0.0
        for count, color in ((rates.wins, canvas.BLUE), (rates.ties, canvas.GREY), (rates.losses, canvas.ORANGE)):
            axes.barh(i, count / rates.ties_split.n, left=left, color=color, alpha=0.35, height=0.7)
            left += count / rates.ties_split.n
        value, low, high, n = rates.ties_split
        axes.plot([low, high], [i, i], color=canvas.INK, linewidth=2, solid_capstyle="round")
        axes.plot(value, i, "o", color=canvas.INK, markersize=7)
        axes.annotate(
            f"{100 * value:.0f}% of {n}",
            (1, i),
            (6, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            color=canvas.INK,
        )
    axes.axvline(0.5, color=canvas.INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(won)), canvas.plain([name.replace("_", " ") for name in won]))
    axes.set(xlim=(0, 1), ylim=(max(len(won), 1) - 0.5, -0.5))
    axes.grid(visible=False)
    canvas.percent(axes.xaxis)
    return figure


def audits(results: Sequence[Mapping[str, Any]], title: str = "Audits: at 0, a judge does not mind") -> Figure:
    """What moves a score and should not, from the `audit_` rows of results.json, a bar an arm with its interval: on the
    left effects as shares of the scale, on the right how many of the scores below the top are at the top afterwards."""
    rows = {(row["split"], row["metric"], row["arm"]): row for row in results if row["split"].startswith("audit_")}
    rows = {key: row for key, row in rows.items() if _number(row["value"]) == _number(row["value"])}
    names = in_order([arm for *_, arm in rows])
    shown = {"shift, in % of the scale": ("position_bias", "slope", "shift"), "raised to the top": ("raised_to_top",)}
    panels = [list(dict.fromkeys(key[:2] for key in rows if key[1] in wanted)) for wanted in shown.values()]
    height = 1.3 + 0.14 * (max(len(names), 2) + 1) * max(map(len, panels))
    figure, axes = canvas.axes_of(title, "", "", panels=2, height=height, width=4.4)
    thick = 0.8 / max(len(names), 1)
    for ax, name, panel in zip(axes, shown, panels, strict=True):
        for k, arm in enumerate(names):
            mine = [
                (i + (k + 0.5) * thick - 0.4, rows[*key, arm]) for i, key in enumerate(panel) if (*key, arm) in rows
            ]
            y, values = [at for at, _ in mine], [row["value"] for _, row in mine]
            shade = 0.4 + 0.6 * (k + 1) / len(names)  # later iterations are darker
            ax.barh(y, values, thick * 0.9, color=_arm_color(arm), alpha=shade, label=canvas.plain([arm])[0])
            ax.hlines(
                y, *([_number(row[end]) for _, row in mine] for end in ("ci_low", "ci_high")), canvas.INK, linewidth=1.2
            )
            ax.plot(values, y, ".", color=canvas.INK, markersize=3)  # or nobody sees a 0
        ax.axvline(0, color=canvas.INK, linewidth=0.8)
        ax.set_yticks(
            range(len(panel)), canvas.plain([AUDITS.get(split, split.split("_", 2)[-1]) for split, _ in panel])
        )
        ax.set_ylim(max(len(panel), 1) - 0.5, -0.5)
        canvas.entitle(ax, name)
        canvas.percent(ax.xaxis)
    if names:
        canvas.legend(axes[-1], loc="lower right", handlelength=1)
    return figure


AUDITS = {  # how the figure calls them; the families of injections have their own names
    "audit_position": "first of two (share of verdicts)",
    "audit_padding": "padded",
    "audit_markdown": "in markdown",
    "audit_injection": "injected, all families",
    "audit_verbosity": "longer by 1 SD, equal gold",
    "audit_self_preference": "likelier by 1 SD, equal gold",
}


def risk_coverage(
    curves: Mapping[str, selective.Curve], target: float | None = None, title: str = "Risk against coverage"
) -> Figure:
    """Share of wrong answers among the surest, for every share of items that is answered: `selective.curve` by arm."""
    figure, (axes,) = canvas.axes_of(title, "items answered", "of them wrong")
    for (arm, curve), color in zip(curves.items(), canvas.palette(len(curves)), strict=True):
        axes.plot(curve.coverage, curve.risk, color=color, label=arm, linewidth=1.8)
    if target is not None:
        axes.axhline(target, color=canvas.INK, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1.01), ylim=(0, None))
    canvas.percent(axes.xaxis)
    canvas.percent(axes.yaxis)
    if curves:
        canvas.legend(axes)
    return figure


def score_entropy(
    values: Sequence[float], n_scores: int | None = None, title: str = "Entropy of the N scores"
) -> Figure:
    """How much the N samples of each prompt disagree; at 0 they agree. With `n_scores` the axis ends at the most."""
    import seaborn

    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    figure, (axes,) = canvas.axes_of(title, "nats", "prompts")
    top = float(np.log(n_scores)) if n_scores else max(float(values.max(initial=0)), 0.1)
    seaborn.histplot(
        x=values, ax=axes, bins=np.linspace(0, top * 1.0001, 25), color=canvas.BLUE, edgecolor="none", alpha=0.9
    )
    axes.set(
        xlabel=f"nats ({np.mean(values < 1e-9):.0%} of prompts are at 0)" if len(values) else "nats", ylabel="prompts"
    )
    return figure


def compare(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]] = (("accuracy", "test"), ("accuracy", "ood"))
) -> Figure:
    """Arms x metrics over seeds: a dot a seed, above them mean and t interval; `columns` are (metric, split)."""
    rows = [row for row in rows if _number(row["value"]) == _number(row["value"])]
    columns = [column for column in columns if any((row["metric"], row["split"]) == column for row in rows)]
    names = in_order([row["arm"] for row in rows if (row["metric"], row["split"]) in columns])
    figure, panels = canvas.axes_of(
        "", "", "", panels=len(columns), height=1.1 + 0.36 * len(names), width=3.2, left=2.0
    )
    for axes, (metric, split) in zip(panels, columns, strict=False):
        for i, arm in enumerate(names):
            mine = [row for row in rows if (row["arm"], row["metric"], row["split"]) == (arm, metric, split)]
            if not mine:
                continue
            got = metrics.seeds([row["value"] for row in mine])
            color = _arm_color(arm)
            axes.plot([row["value"] for row in mine], [i + 0.25] * len(mine), "o", color=color, alpha=0.35, ms=5, mew=0)
            axes.plot([got.low, got.high], [i, i], color=color, linewidth=2, solid_capstyle="round")
            axes.plot(got.value, i, "D", color=color, markersize=6)
        canvas.entitle(axes, f"{_words(metric)} on {split}")
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), canvas.plain(names) if axes is panels[0] else [""] * len(names))
        if metric in SHARES:
            canvas.percent(axes.xaxis)
    return figure


SHARES = (
    "accuracy",
    "balanced_accuracy",
    "parse_rate",
    "rationale_accuracy",
    "rationale_win_rate",
)  # shown as percentages


def sharing(results: Sequence[Mapping[str, Any]]) -> Figure:
    """How much faster DPO is with each prompt read once, a panel for each result of `srlib bench --sharing`; a tick stands
    where the count of tokens puts it, a dotted line at TRL's own trainer."""
    ways = ("shared", "shared, checkpointing")
    figure, panels = canvas.axes_of(
        "DPO with each prompt read once", "pairs a prompt", "", panels=len(results), width=4.2
    )
    for axes, result in zip(panels, results, strict=True):
        sizes, ks = result["settings"], sorted({row["k"] for row in result["rows"]})
        for i, way in enumerate(ways):
            found = {row["k"]: row for row in result["rows"] if row["way"] == way}
            at = [ks.index(k) + 0.38 * (i - 0.5) for k in found]
            speeds = [row["speed"] for row in found.values()]
            axes.bar(at, speeds, 0.34, label=way, color=(canvas.BLUE, canvas.GREEN)[i])
            axes.plot(at, [row["ideal"] for row in found.values()], "_", color=canvas.INK, markersize=22)
            for x, speed in zip(at, speeds, strict=True):
                axes.text(x, 0.06, f"{speed:.1f}", ha="center", va="bottom", fontsize=10, color="white")
        axes.axhline(1, color=canvas.GREY, linestyle=":")
        size = f"{result['parameters'] / 1e6:.0f} M parameters, {sizes['prompt_tokens']} + {sizes['completion_tokens']} tokens"
        canvas.entitle(axes, size)
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.grid(visible=False, axis="x")
    if panels:
        panels[0].set_ylabel("times as fast as TRL")
        canvas.legend(panels[-1], loc="upper left")
    return figure


def _arm_color(arm: str) -> str:
    """Ours in blue, the ceiling in orange, what it is held against in grey."""
    return canvas.BLUE if arm.startswith("sre") else canvas.ORANGE if arm == "sft_careful_only" else canvas.GREY


def _words(metric: str) -> str:
    return metric.upper() if metric in ("qwk", "mae", "ece", "auroc", "aurc") else metric.replace("_", " ").capitalize()


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
