"""Figures show the numbers they are given; their looks were checked by eye. No torch."""

import io
import math

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest

from srlib.report import plots
from srlib.stats import calibration

NAN = math.nan


def row(arm, value, split="test", metric="accuracy", seed=0, n=40):
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    about = {"arm": arm, "split": split, "metric": metric, "seed": seed, "n": n}
    return about | {"value": value, "ci_low": low, "ci_high": high}


def texts(figure):
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text) if text.get_visible())


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_score_histogram_has_a_bar_for_each_score_of_each_split():
    [axes] = plots.score_histogram({"train": [1, 1, 2, 5], "test": [2.5, 5]}).axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.25, 0, 0.25, 0, 0, 0.5, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "2.5", "5"]


def test_histograms_name_median_highest_and_n_and_leave_out_nan():
    figure = plots.histograms("Lengths", {"prompt": [100, 120, 200], "entropy": [0, NAN, 1.0]}, "", "")
    assert all(
        t in texts(figure) for t in ("prompt: median 120, highest 200 (n 3)", "entropy: median 0.5, highest 1 (n 2)")
    )
    assert [[line.get_xdata()[0] for line in axes.lines] for axes in figure.axes] == [[120], [0.5]]


def test_curves_skip_rows_without_the_column():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "train_runtime": 5.0}]
    [axes] = plots.curves(log, "SFT").axes
    [line] = axes.lines
    assert (axes.get_ylabel(), axes.get_ylim()[0]) == ("nats per token", 0)
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [2.0, 1.0])
    log = [{"step": s, "loss": 1, "rewards/margins": s, "logps/chosen": -s, "logps/rejected": -2 * s} for s in (1, 2)]
    figure = plots.curves(log, "DPO")
    assert [axes.get_title("left") for axes in figure.axes] == ["margin of rewards", "log-probability, nats", "loss"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[-1, -2], [-2, -4]]


def test_waterfall_shows_the_loss_of_each_step():
    shown = texts(plots.waterfall([("sampled", 6400), ("parsed", 6320), ("prompts", 6320), ("pairs", 482)]))
    assert "6,320   −80" in shown and "482   −5,838" in shown  # noqa: PT018


def test_forest_draws_values_with_intervals_and_leaves_out_the_undefined():
    rows = [
        row("sre_1", 0.62, n=38),
        row("sft", 0.468),
        row("base", None, n=9),
        row("rft", NAN),
        row("sft", 0.3, "ood"),
    ]
    figure = plots.forest(rows)
    test, ood = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["Accuracy on test (n 38–40)", "Accuracy on ood (n 40)"]
    assert labels(test) == ["sft", "sre_1"]
    assert "46.8" in texts(figure)
    by_place = {line.get_ydata()[0]: list(line.get_xdata()) for line in test.lines if len(set(line.get_xdata())) == 2}
    assert by_place == {0: pytest.approx([0.418, 0.518]), 1: pytest.approx([0.57, 0.67])}
    assert len(ood.lines) == 3  # the reference, its interval, its dot


def test_compare_has_a_dot_for_each_seed_and_the_mean():
    rows = [row("sft", 0.4 + 0.01 * s, seed=s) for s in range(3)] + [row("sre_1", 0.6, seed=0), row("base", None)]
    [axes] = plots.forest(rows, [("accuracy", "test"), ("accuracy", "nowhere")]).axes
    assert labels(axes) == ["sft", "sre_1"]
    assert (axes.get_title("left"), axes.get_xlabel()) == ("Accuracy on test (n 40)", "95% intervals over 3 seeds")
    dots, _, interval, mean = axes.lines[:4]
    assert list(interval.get_xdata()) == pytest.approx([0.41 - 0.02484, 0.41 + 0.02484], abs=1e-5)
    assert (list(dots.get_xdata()), mean.get_xdata()[0]) == (pytest.approx([0.4, 0.41, 0.42]), pytest.approx(0.41))


def test_alarms_right_of_the_line_have_fired():
    shared = {"iteration": 1, "n": 10, "protocol": "p"}
    rows = [{"alarm": "score_drift", "value": 0.5, "threshold": 0.25, "fired": True, **shared}]
    rows += [{"alarm": "parse_fall", "value": None, "threshold": 0.05, "fired": False, **shared}]
    [axes] = plots.alarms(rows).axes
    assert labels(axes) == ["score drift, iteration 1 (n 10)"]
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 0.0]]


def test_heatmaps_count_and_leave_the_unknown_blank():
    counts = plots.confusion([1, 1, 2, 3], [1, 2, NAN, 3], [1, 2, 3]).axes[0].collections[0].get_array()
    assert counts.reshape(3, 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    full = plots.confusion([1, 2], [1, 2], [1, 2]).axes[0].collections[0].get_array()
    assert full.reshape(2, 2).tolist() == [[1, 0], [0, 1]]
    errors = [
        ("gold is 4", "sre_1", 0.602),
        ("gold is 4", "sft", 0.7),
        ("x" * 90, "sre_1", 0.05),
        ("x" * 90, "sft", NAN),
    ]
    cells = [dict(slice=part, n=83, arm=arm, error=error) for part, arm, error in errors]
    [axes] = plots.error_heatmap(cells).axes
    assert labels(axes)[0] == "gold is 4 (n\xa083)"
    assert labels(axes)[1].endswith("… (n\xa083)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sft", "sre_1"]
    assert [text.get_text() for text in axes.texts] == ["70", "60", "5"]
    alike = [dict(slice="x" * 90 + end, n=25, arm="sft", error=0.5) for end in "ab"]
    assert len(plots.error_heatmap(alike).axes[0].get_yticklabels()) == 2, "two slices that begin alike"


def test_calibration_and_coverage():
    dots = plots.reliability([0.05, 0.95, 0.92], [0, 1, 0], "sft").axes[0].collections[0]
    np.testing.assert_allclose(dots.get_offsets(), [[0.05, 0], [0.935, 0.5]])
    assert dots.get_sizes().tolist() == [100, 180]
    curves = {"sft": calibration.curve([0.9, 0.5, 0.5], [1, 0, 0]), "sre_2": calibration.curve([0.9, NAN], [1, 0])}
    [axes] = plots.risk_coverage(curves, target=0.2).axes
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[1 / 3, 1.0], [0.5]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sft (n 3)", "sre_2 (n 1)"]


def test_the_fitted_curve_and_the_colours_of_arms():
    observed = plots.reliability([0.5, 0.9], [1, 0], "sft", [0.4, 0.6], "#56b4e9").axes[0]
    assert [list(line.get_xdata()) for line in observed.lines[1:]] == [[0.5, 0.9]]
    assert list(observed.lines[1].get_ydata()) == [0.4, 0.6]
    assert matplotlib.colors.to_hex(observed.collections[0].get_facecolor()[0]) == "#56b4e9", "the arm's own colour"
    colors = {
        name: plots.color_of(name) for name in ("sft", "sft_careful_only", "base", "sre_1", "sre_2", "sre_3", "grpo")
    }
    assert len({*colors.values()}) == 7
    assert plots.color_of("sre_9") == plots.color_of("sre_3")
    assert plots.color_of("sft_best_of_n") == plots.color_of("sft")
    assert plots.color_of("base_few_shot") == plots.color_of("base")
    assert plots.color_of("an_arm_of_mine") == plots.color_of("an_arm_of_mine_self_consistency") in plots.SPARE
    rows = [row("sft_best_of_n", 0.5), row("sft_careful_only", 0.6), row("sft", 0.4)]
    [axes] = plots.forest(rows).axes
    assert labels(axes) == ["sft", "sft_careful_only (ceiling)", "sft_best_of_n"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == ["#8e4ec6", "#de8f05", "white"]
    assert [line.get_linestyle() for line in axes.lines if line.get_linestyle() in ("--", ":")] == ["--", ":"]
    settings = [row(f"{arm}, beta={beta}", 0.5) for arm in ("sft_careful_only", "sre_1", "sft") for beta in (0.3, 0.1)]
    [axes] = plots.forest(settings).axes
    in_order = ["sft", "sft_careful_only", "sre_1"]
    assert [label.removesuffix(" (ceiling)") for label in labels(axes)] == [
        f"{arm}, beta={b}" for arm in in_order for b in (0.3, 0.1)
    ]
    assert plots.color_of("sre_1, beta=0.1") == plots.color_of("sre_1")
    assert {*plots.COLORS.values(), *plots.SPARE}.isdisjoint(plots.SLATE), "a colour of an arm is of nothing else"


def test_audits_has_a_dot_with_its_interval_for_each_arm():
    rows = [row("sre_1", 0.1, "audit_padding", "shift"), row("sft", 0.3, "audit_padding", "shift"), row("base", 0.9)]
    rows += [row("sft", None, "audit_position", "position_bias"), row("sft", 0.4, "audit_injection", "raised_to_top")]
    left, right = plots.audits(rows).axes
    assert (labels(left), labels(right)) == (["padding (n 40)"], ["injection (n 40)"])
    assert [list(line.get_xdata()) for line in left.lines[:2]] == [[0.3], [0.1]]  # sft, then sre_1
    assert left.collections[0].get_segments()[0][:, 0] == pytest.approx([0.25, 0.35])


def test_a_dollar_is_no_formula_and_a_figure_is_shown_once():
    evil = "$\\bad{$"
    figures = [plots.waterfall([(evil, 5), ("x" * 300, 3)], title=evil), plots.forest([row(evil, 0.5)])]
    figures += [plots.error_heatmap([dict(slice=evil, n=3, arm=evil, error=0.3)])]
    for figure in figures:
        figure.savefig(io.BytesIO())
    assert plt.get_fignums() == []  # a notebook would draw an open one twice


def test_nothing_to_show_is_no_error():
    empty = "waterfall forest alarms audits error_heatmap".split()
    nothing = [(name, []) for name in empty] + [("score_histogram", {})]
    for name, rows in [*nothing, ("risk_coverage", {})]:
        getattr(plots, name)(rows).savefig(io.BytesIO())
    plots.curves([], "SFT").savefig(io.BytesIO())
    plots.reliability([], [], "sft").savefig(io.BytesIO())
    plots.histograms("", {"entropy": [NAN]}, "", "").savefig(io.BytesIO())
