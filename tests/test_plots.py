"""Figures show what they are given; how they look was looked at."""

import math
import subprocess
import sys

import numpy as np
import pytest

from srlib.evaluate import arms as readings
from srlib.report import plots
from srlib.stats import metrics, selective

pytest.importorskip("seaborn")
NAN = float("nan")


def row(arm, value, split="test", metric="accuracy", seed=0):
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    return {"arm": arm, "split": split, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "seed": seed}


def texts(figure) -> str:
    import matplotlib

    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible())


def y_labels(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_sharing_has_a_panel_a_result_and_says_each_speed():
    rows = [
        {"k": k, "way": way, "speed": k + 0.5, "ideal": k + 1.0}
        for k in (1, 3)
        for way in ("apart", "shared", "apart, checkpointing", "shared, checkpointing")
    ]
    sizes = {"prompt_tokens": 175, "completion_tokens": 59}
    figure = plots.sharing([{"parameters": n, "settings": sizes, "rows": rows} for n in (1e6, 28e6)])
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["1.5", "3.5", "1.5", "3.5"]
    assert right.get_title(loc="left") == "28 M parameters, 175 + 59 tokens"
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["shared", "shared, checkpointing"]


def test_importing_brings_no_heavy_library():
    code = (
        "import sys, srlib.plots; sys.exit(any(m in sys.modules for m in ('matplotlib', 'seaborn', 'pandas', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_arms_stand_in_order():
    shuffled = ["sre_10", "sft", "zebra", "sre_2_self_consistency", "sre_2", "base", "sre_1", "sre_3", "rft", "sft"]
    expected = ["base", "sft", "rft", "sre_1", "sre_2", "sre_2_self_consistency", "sre_3", "sre_10", "zebra"]
    assert readings.in_order(shuffled) == expected
    assert readings.in_order(list(readings.ARMS)[::-1]) == list(readings.ARMS)


def test_score_histogram_has_a_bar_for_each_score_of_each_split():
    figure = plots.score_histogram({"train": [1, 1, 2, 5], "test": [2.5, 5]})
    axes = figure.axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == [0.5, 0.25, 0, 0.25, 0, 0, 0.5, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "2.5", "5"]
    assert "train (4)" in texts(figure)


def test_lengths_tell_median_and_longest():
    figure = plots.lengths({"prompt": [100, 120, 200], "completion": [10, 20, 30]}, limit=220)
    assert "prompt: median 120, longest 200" in texts(figure)
    assert "completion: median 20, longest 30" in texts(figure)
    at = [[line.get_xdata()[0] for line in axes.lines] for axes in figure.axes]
    assert at == [[120, 220], [20]]  # the limit is drawn where it is near


def test_loss_curve_passes_over_rows_without_a_loss():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "train_runtime": 5.0}]
    line = plots.loss_curve(log, "SFT").axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [2.0, 1.0]


def test_dpo_curves_show_what_was_logged():
    log = [
        {"step": s, "loss": 0.69, "rewards/margins": 0.1 * s, "logps/chosen": -s, "logps/rejected": -2 * s}
        for s in (1, 2)
    ]
    figure = plots.dpo_curves(log)
    assert [axes.get_title("left") for axes in figure.axes] == ["margin of rewards", "log-probability", "loss"]
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [2, 2]
    assert len(plots.dpo_curves([{**r, "lengths/chosen": 60} for r in log]).axes) == 4


def test_waterfall_shows_what_each_step_took():
    shown = texts(plots.waterfall([("sampled", 6400), ("parsed", 6320), ("prompts", 6320), ("pairs", 482)]))
    assert "6,400" in shown
    assert "6,320   −80" in shown
    assert "482   −5,838" in shown


def test_forest_draws_values_with_intervals_and_leaves_out_the_undefined():
    rows = [row("sre_1", 0.62), row("sft", 0.468), row("base", None), row("rft", NAN), row("sft", 0.3, split="ood")]
    figure = plots.forest(rows)
    test, ood = figure.axes
    assert y_labels(test) == ["sft", "sre_1"]
    assert "46.8" in texts(figure)
    dashed, *lines = [list(line.get_xdata()) for line in test.lines if len(line.get_xdata()) == 2]
    assert dashed == pytest.approx([0.468, 0.468]), "what the others are held against"
    assert lines == [pytest.approx([0.418, 0.518]), pytest.approx([0.57, 0.67])]
    assert len(ood.lines) == 3


def test_alarms_right_of_the_line_have_fired():
    shared = {"iteration": 1, "n": 10, "protocol": "p"}
    rows = [
        {"alarm": "score_drift", "value": 0.5, "threshold": 0.25, "fired": True, **shared},
        {"alarm": "parse_fall", "value": None, "threshold": 0.05, "fired": False, **shared},
    ]
    axes = plots.alarms(rows).axes[0]
    assert y_labels(axes) == ["score drift"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[2.0], [1, 1]]


def test_costs_stack_what_was_trained_on_and_drawn():
    rows = [
        {"arm": "base", "training tokens": 0, "drawn tokens": None},
        {"arm": "sre_1", "training tokens": 2e6, "drawn tokens": 1e6},
    ]
    axes = plots.costs(rows).axes[0]
    assert y_labels(axes) == ["sre_1"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1.0]


def test_confusion_counts_and_has_a_column_for_no_score():
    figure = plots.confusion([1, 1, 2, 3], [1, 2, NAN, 3], [1, 2, 3])
    counts = figure.axes[0].collections[0].get_array().reshape(3, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    full = plots.confusion([1, 2], [1, 2], [1, 2])
    assert full.axes[0].collections[0].get_array().reshape(2, 2).tolist() == [[1, 0], [0, 1]]


def test_error_heatmap_has_a_row_for_each_slice_and_a_column_for_each_arm():
    cells = [
        {"slice": name, "n": n, "arm": arm, "error": error}
        for name, n, of_arm in (("gold is 4", 83, (0.602, 0.7)), ("x" * 90, 20, (0.05, NAN)))
        for arm, error in zip(("sre_1", "sft"), of_arm, strict=True)
    ]
    axes = plots.error_heatmap(cells).axes[0]
    first, second = y_labels(axes)
    assert first == "gold is 4  (n 83)"
    assert second.endswith("…  (n 20)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sft", "sre_1"]
    assert [text.get_text() for text in axes.texts] == ["70", "60", "5"]  # what is not known is left blank


def test_reliability_leaves_out_empty_bins():
    table = metrics.reliability([0.05, 0.95, 0.9], [0, 1, 0], bins=10)
    dots = plots.reliability(table).axes[0].collections[0].get_offsets()
    assert np.allclose(dots, [[0.05, 0], [0.925, 0.5]])


def test_risk_coverage_has_a_line_for_each_arm_and_one_for_the_target():
    curves = {"sft": selective.curve([0.9, 0.5], [1, 0]), "sre_2": selective.curve([0.9, np.nan], [1, 0])}
    [axes] = plots.risk_coverage(curves, target=0.2).axes
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[0.5, 1.0], [0.5]]
    assert axes.lines[2].get_ydata() == [0.2, 0.2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sft", "sre_2"]
    assert plots.risk_coverage({}).axes[0].get_legend() is None


def test_score_entropy_says_how_many_agree():
    figure = plots.score_entropy([0, 0, math.log(2), NAN, 1.0], n_scores=5)
    assert "50% of prompts are at 0" in texts(figure)
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 4


def test_audits_has_a_bar_with_its_interval_for_each_arm_and_a_panel_for_what_reached_the_top():
    def audit(arm, value, split, metric="shift"):
        return row(arm, value, f"audit_{split}", metric)

    rows = [audit("sre_1", 0.1, "padding"), audit("sft", 0.3, "padding"), audit("sft", 0.2, "injection_role_tags")]
    rows += [audit("sft", None, "position", "position_bias"), audit("sft", 0.5, "padding", "changed"), row("base", 0.9)]
    rows += [audit("sft", 0.4, "injection", "raised_to_top")]
    left, right = plots.audits(rows).axes
    assert (y_labels(left), y_labels(right)) == (["padded", "role_tags"], ["injected, all families"])
    assert [bar.get_width() for bar in left.patches] == [0.3, 0.2, 0.1]  # sft, then sre_1
    assert [line.tolist() for line in left.collections[0].get_segments()[0]] == [
        pytest.approx([0.25, -0.2]), pytest.approx([0.35, -0.2]),
    ]  # fmt: skip
    assert [bar.get_width() for bar in right.patches] == [0.4]


def test_compare_has_a_dot_for_each_seed_and_the_mean():
    rows = [row("sft", 0.4 + 0.01 * s, seed=s) for s in range(3)] + [row("sre_1", 0.6, seed=0), row("base", None)]
    figure = plots.compare(rows, [("accuracy", "test"), ("accuracy", "nowhere")])
    (axes,) = figure.axes  # a column without a value has no panel
    assert y_labels(axes) == ["sft", "sre_1"]
    dots, _, mean = axes.lines[:3]
    assert list(dots.get_xdata()) == pytest.approx([0.4, 0.41, 0.42])
    assert mean.get_xdata()[0] == pytest.approx(0.41)


def test_a_dollar_is_no_formula():
    import io

    steps = [("costs $1_2$ and $\\frac$", 5), ("x" * 300, 3)]
    plots.waterfall(steps, title="$\\bad{$").savefig(io.BytesIO())
    figure = plots.forest([row("$\\bad{$", 0.5, split="$\\split{$")], [("accuracy", "$\\split{$")])
    figure.savefig(io.BytesIO())
    assert len(figure.axes[0].lines) == 2


def test_figures_are_closed_and_legible():
    import matplotlib.pyplot as plt

    figure = plots.loss_curve([{"step": 1, "loss": 1.0}])
    assert plt.get_fignums() == []  # a notebook would draw an open one twice
    assert figure.dpi == 100


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.score_histogram({}),
        lambda: plots.loss_curve([]),
        lambda: plots.dpo_curves([]),
        lambda: plots.waterfall([]),
        lambda: plots.forest([]),
        lambda: plots.alarms([]),
        lambda: plots.costs([]),
        lambda: plots.compare([]),
        lambda: plots.audits([]),
        lambda: plots.error_heatmap([]),
        lambda: plots.score_entropy([]),
        lambda: plots.score_entropy([NAN]),
        lambda: plots.lengths({"prompt": []}),
    ],
)
def test_nothing_to_show_is_no_error(draw):
    import io

    out = io.BytesIO()
    draw().savefig(out)
    assert out.tell() > 0
