"""The look that every figure has, in one place: plots.py draws on it.

Ink on a plain ground, no box, light grid lines, colours that a colour-blind reader tells apart (seaborn's
"colorblind"), legible at 100 dpi. Figures are closed as they are made, so a notebook shows each once, as the value of
its cell. Text is drawn as it is: a `$` in a label is no formula.

    figure, [left, right] = axes_of("Loss", "step", "", panels=2)
    line(left, log, "loss", BLUE)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#dddddd"  # page.py swaps these two for the reader's light or dark ones
BLUE, ORANGE, GREEN, RED, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#949494"


def axes_of(
    title: str,
    xlabel: str,
    ylabel: str,
    panels: int = 1,
    height: float = 3.2,
    width: float | None = None,
    left: float = 0,
) -> tuple[Figure, list]:
    """A figure with `panels` axes side by side, at least one, in the look that all share; sizes in inches, 100 dpi."""
    import matplotlib.pyplot as plt

    width = width or (6.4 if panels == 1 else 3.4)
    style = {
        "figure.dpi": 100, "font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.facecolor": "none",
    }  # fmt: skip
    with plt.rc_context(style):
        size = (left + width * max(panels, 1), height)
        figure, grid = plt.subplots(1, max(panels, 1), figsize=size, layout="constrained", squeeze=False)
    plt.close(figure)  # it lives on; a notebook just does not draw it a second time
    axes = list(grid[0])
    for ax in axes:
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.tick_params(length=3)
    if panels == 1:
        entitle(axes[0], title)
    elif title:
        figure.suptitle(plain([title])[0], x=0.01, ha="left", fontsize=12, color=INK)
    return figure, axes


def entitle(axes, text: str) -> None:
    axes.set_title(plain([text], 60)[0], loc="left", fontsize=11, color=INK, pad=10)


def legend(axes, **where) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, **where)


def line(axes, log: Sequence[Mapping[str, float]], key: str, color: str, label: str | None = None) -> None:
    from matplotlib.ticker import MaxNLocator

    points = [(row["step"], row[key]) for row in log if key in row and "step" in row]
    axes.plot([x for x, _ in points], [y for _, y in points], color=color, label=label, linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def bare(axes) -> None:
    """No scale where every bar carries its number."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)


def percent(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def palette(n: int) -> list[str]:
    return [(BLUE, ORANGE, GREEN, RED, GREY)[i % 5] for i in range(n)]


def plain(labels: Sequence[str], limit: int = 40) -> list[str]:
    """Labels as they are to be read: not as formulas, not longer than there is room for."""
    return [(text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$") for text in labels]
