"""The table, the page and the comparison, from small results written by hand."""

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from srlib import files as store
from srlib.report import canvas, page, plots
from srlib.report import tables as report
from srlib.stats import metrics

NAN = float("nan")


def result(arm, value, split="test", metric="accuracy", half=0.05, n=400):
    low, high = (None, None) if value is None else (value - half, value + half)
    row = {"arm": arm, "split": split, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n}
    return row | {"seed": 0, "iteration": 0, "protocol": "greedy"}


def make_run(path: Path, seed: int = 0, sft: float = 0.468, sre: float = 0.623, **params) -> Path:
    path.mkdir(parents=True)
    rows = [
        result("sre_2", sre),
        result("sre_1", sre - 0.01),
        result("sft", sft),
        result("sft", sft - 0.05, split="ood"),
        result("sre_2", sre - 0.05, split="ood"),
        result("sft", 0.7, metric="pearson"),
        result("base", 0.0),
        result("base", None, metric="pearson"),
        result("sft", 12.3, metric="seconds"),
        result("sft", 28200, metric="tokens"),
        result("sre_2", 0.684, metric="rationale_win_rate"),
    ]
    (path / "results.json").write_text(json.dumps(rows))
    (path / "params.yaml").write_text(yaml.safe_dump({"seed": seed, "beta": 0.1, "run_dir": str(path)} | params))
    return path


def cells(table) -> dict[str, list[str]]:
    columns = [[getattr(cell, "plain", cell) for cell in column.cells] for column in table.columns]
    return {name: list(rest) for name, *rest in zip(*columns, strict=True)}


def text(table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_table_has_percentages_intervals_and_dashes(tmp_path):
    got = cells(report.table(make_run(tmp_path / "tiny")))
    assert list(got) == ["base", "sft", "sre_1", "sre_2"]
    assert got["sft"] == ["46.8 [41.8, 51.8]", "41.8", "–", "0.700", "–", "–", "–", "12", "28,200"]
    assert got["base"][0] == "0.0 [-5.0, 5.0]"
    assert got["base"][3] == "–"
    assert got["sre_2"][5] == "68.4"


def test_table_prints_an_arm_that_looks_like_markup(tmp_path):
    run = make_run(tmp_path / "tiny")
    (run / "results.json").write_text(json.dumps([result("[red]sft[/red]", 0.5)]))
    assert "[red]sft[/red]" in text(report.table(run))


def test_nan_in_results_is_a_dash(tmp_path):
    run = make_run(tmp_path / "tiny")
    (run / "results.json").write_text(json.dumps([result("sft", NAN)]))
    assert cells(report.table(run))["sft"][0] == "–"


def test_missing_or_broken_results_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is not there: the run has not finished"):
        report.table(tmp_path)
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        report.table(tmp_path)


@pytest.fixture
def written(tmp_path):
    pytest.importorskip("seaborn")
    nbformat = pytest.importorskip("nbformat")
    run = make_run(tmp_path / "tiny", model="<script>alert('params')</script>")
    hostile = "<script>alert('out')</script><img src=x onerror=alert(1)>"
    for stage in ("eval", "dpo_1", "sample_2", "data", "sample_1"):
        cell = nbformat.v4.new_code_cell("print('<b>source</b>')", execution_count=1)
        cell.outputs = [
            nbformat.v4.new_output("stream", text=hostile),
            nbformat.v4.new_output(
                "display_data", data={"text/html": hostile + "<table><tr><th>kept</th></tr></table>"}
            ),
        ]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Heading\n\n" + hostile), cell])
        (run / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, run / "notebooks" / f"{stage}.ipynb")
    rows = [*report.load(run), result("<script>alert('arm')</script>", 0.5)]
    (run / "results.json").write_text(json.dumps(rows))
    loss = plots.loss_curve([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    sections = {
        "Is it better?": [page.Part("Accuracy", plots.forest(rows), "sre_2 <is> 'better'.")],
        "What <of> it?": [page.Part("Loss <of> it", loss)],
        "Nothing here": [],
    }
    notes = ["a <script>alert('note')</script> & more", "Alarm after iteration 2: length_growth is 0.7."]
    return report.write(run, sections, notes=notes)


def test_page_is_one_file_without_scripts_or_requests(written):
    html = written.read_text("utf-8")
    assert written.name == "report.html"
    assert "<script" not in html
    assert "Content-Security-Policy" in html
    assert "&lt;script&gt;alert(&#x27;note&#x27;)&lt;/script&gt; &amp; more" in html
    assert "&lt;script&gt;alert(&#x27;arm&#x27;)" in html
    assert "params&#x27;)&lt;/script&gt;" in html
    loaded = re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?\s*(https?:)?//""", html)
    assert loaded == []
    assert html.count("<svg") == 2
    assert "Loss &lt;of&gt; it" in html
    assert "What &lt;of&gt; it?" in html
    assert "<p class=reading>sre_2 &lt;is&gt; &#x27;better&#x27;.</p>" in html
    assert "<p class=alarm>Alarm after iteration 2" in html
    assert "Nothing here" not in html


def test_the_page_shows_no_path_of_this_machine(tmp_path):
    run = make_run(tmp_path / "tiny", data="/home/anna/secret/rows.jsonl", model="org/model")
    html = report.write(run, {}).read_text("utf-8")
    assert "anna" not in html
    assert str(tmp_path) not in html
    assert "data: rows.jsonl" in html
    assert "model: org/model" in html


def test_page_leads_with_the_result(written):
    html = written.read_text("utf-8")
    assert "Accuracy from sft to sre_2: 46.8 → 62.3 % on test, 41.8 → 57.3 % on ood." in html
    assert "46.8<small>[41.8, 51.8]</small>" in html
    assert 'title="n = 400, greedy"' in html


def test_figures_follow_light_and_dark_and_have_one_title(written):
    html = written.read_text("utf-8")
    assert "currentColor" in html
    assert "var(--grid)" in html
    assert canvas.INK not in html
    figure = plots.loss_curve([{"step": 1, "loss": 1.0}], title="Loss")
    assert "<!-- Loss -->" in page.svg(figure, "Something else")
    assert "<!-- Loss -->" not in page.svg(figure, "Loss")
    assert "<!-- Loss -->" in page.svg(figure, "Something else")  # the caller's figure is as it was


def test_notebooks_are_linked_in_the_order_they_ran(written):
    html = written.read_text("utf-8")
    linked = re.findall(r'href="notebooks/(\w+)\.ipynb"', html)
    assert linked == ["data", "sample_1", "dpo_1", "sample_2", "eval"]
    assert all((written.parent / "notebooks" / f"{stage}.ipynb").exists() for stage in linked)


def test_rendered_notebooks_are_harmless(written):
    pytest.importorskip("nbconvert")
    html = (written.parent / "notebooks" / "data.html").read_text("utf-8")
    assert "<script" not in html
    assert not re.search(r"<img[^>]*onerror", html)
    assert "Content-Security-Policy" in html
    assert re.search(r"<h1[^>]*>Heading", html)
    assert "<th>kept</th>" in html
    assert 'href="notebooks/data.html"' in written.read_text("utf-8")


def test_a_notebook_is_rendered_again_only_when_it_changed(written):
    pytest.importorskip("nbconvert")
    import os

    notebook = written.parent / "notebooks" / "data.ipynb"
    rendered = notebook.with_suffix(".html")
    rendered.write_text("as it was")
    report.write(written.parent, {})
    assert rendered.read_text() == "as it was"
    later = rendered.stat().st_mtime + 10
    os.utime(notebook, (later, later))
    report.write(written.parent, {})
    assert "Heading" in rendered.read_text("utf-8")


def test_without_nbconvert_the_notebooks_themselves_are_linked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "tiny")
    (run / "notebooks").mkdir()
    (run / "notebooks" / "data.ipynb").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "nbconvert", None)
    html = report.write(run, {}).read_text("utf-8")
    assert 'href="notebooks/data.ipynb"' in html
    assert "data.html" not in html


@pytest.fixture
def runs(tmp_path):
    pytest.importorskip("seaborn")
    gains = {0: 0.10, 1: 0.16, 2: 0.13}
    return [make_run(tmp_path / f"tiny-{s}", s, sft=0.45 + 0.02 * s, sre=0.45 + 0.02 * s + g) for s, g in gains.items()]


def test_compare_means_and_paired_differences(runs):
    got = cells(report.compare(runs))
    assert list(got) == ["base", "sft", "sre_1", "sre_2", "sre_2 − sft"]
    gain = metrics.seeds([0.10, 0.16, 0.13])
    assert got["sre_2 − sft"][0] == f"+{100 * gain.value:.1f} ± {100 * (gain.high - gain.value):.1f}"
    assert got["sft"][0] == "47.0 ± 5.0"
    assert got["sre_2"][2] == "–"


def test_compare_writes_json_markdown_and_figure(runs):
    report.compare(runs[::-1])
    out = runs[0].parent / "compare-tiny"
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.md", "compare.png"]
    record = json.loads((out / "compare.json").read_text())
    assert record["runs"] == {"0": "tiny-0", "1": "tiny-1", "2": "tiny-2"}
    gain = next(row for row in record["differences"] if (row["metric"], row["split"]) == ("accuracy", "test"))
    assert (gain["arm"], gain["against"], gain["n"]) == ("sre_2", "sft", 3)
    assert gain["value"] == pytest.approx(0.13)
    assert gain["ci_low"] < 0.13 < gain["ci_high"]
    assert gain["by_seed"] == pytest.approx({"0": 0.10, "1": 0.16, "2": 0.13})
    undefined = next(row for row in record["arms"] if (row["arm"], row["metric"]) == ("base", "pearson"))
    assert undefined["value"] is None
    assert undefined["n"] == 0
    markdown = (out / "compare.md").read_text()
    assert "| sre_2 − sft | +13.0 ± 7.5 |" in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    html = (out / "compare.html").read_text()
    assert "sre_2 against sft: +13.0 points [+5.5, +20.5] over 3 seeds." in html
    asked = re.findall(r"<h2>([^<]*)</h2>", html)
    assert asked == ["Results", "Is it better?", "At what?", "What did it cost?"], (
        "a section for each, where there are rows"
    )
    assert html.count("<svg") == 3
    assert "<script" not in html


def test_compare_pairs_only_seeds_that_have_both(runs):
    rows = [row for row in report.load(runs[2]) if row["arm"] != "sft"]
    (runs[2] / "results.json").write_text(json.dumps(rows))
    got = cells(report.compare(runs))
    assert got["sre_2 − sft"][0].startswith("+13.0 ± ")  # of 10 and 16, not of means over different seeds
    assert got["sft"][0].startswith("46.0 ± ")


def test_compare_of_one_run_has_no_interval(runs, tmp_path):
    assert cells(report.compare(runs[:1], tmp_path / "out"))["sft"][0] == "45.0"
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000


def test_compare_refuses_runs_that_differ_otherwise(runs, tmp_path):
    other = make_run(tmp_path / "tiny-3", 3, beta=0.3, samples=8)
    with pytest.raises(ValueError, match=r"differ in more than the seed: beta \(0.1 / 0.3\), samples \(unset / 8\)"):
        report.compare([*runs, other])
    assert not (tmp_path / "compare-tiny").exists()


def test_compare_refuses_results_of_other_parameters(runs, tmp_path):
    """A run that was started again and stopped holds its new parameters beside its old results."""
    stopped = make_run(tmp_path / "tiny-3", 3)
    store.write_json(stopped / "eval" / "manifest.json", {"key": "1", "params": {"beta": 0.7, "seed": 3}})
    with pytest.raises(ValueError, match=r"tiny-3: its results are those of other parameters \(beta 0.7 -> 0.1\)"):
        report.compare([*runs, stopped])


def test_compare_takes_runs_that_differ_in_what_changes_no_result(runs, tmp_path):
    other = make_run(tmp_path / "tiny-3", 3, workers=1, wandb_mode="disabled")
    assert report.compare([*runs, other]).row_count


def test_compare_refuses_one_seed_twice_and_no_run(runs, tmp_path):
    again = make_run(tmp_path / "tiny-b", 0)
    with pytest.raises(ValueError, match=r"tiny-0 and .*tiny-b both have seed 0"):
        report.compare([*runs, again])
    with pytest.raises(ValueError, match="no runs to compare"):
        report.compare([])
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        report.compare([tmp_path])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tiny-0", "tiny-1"], "compare-tiny"),
        (["tiny-10", "tiny-11"], "compare-tiny"),
        (["tiny-seed0", "tiny-seed1"], "compare-tiny"),
        (["a", "b"], "compare-runs"),
    ],
)
def test_compare_is_named_after_the_common_stem(tmp_path, names, expected):
    pytest.importorskip("seaborn")
    report.compare([make_run(tmp_path / name, seed) for seed, name in enumerate(names)])
    assert (tmp_path / expected / "compare.json").exists()
