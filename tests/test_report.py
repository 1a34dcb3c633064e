"""Tables, comparisons and report.html, from small results written by hand."""

import os
import re
from html.parser import HTMLParser

import pytest
from annotated import HOSTILE, write_reported
from rich.console import Console

from srlib import files
from srlib.report import browse, page, tables
from srlib.schema import SrlibError


def result(arm, value, split="test", metric="accuracy"):
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    return {"arm": arm, "split": split, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": 400}


def make_run(path, seed=0, sft=0.468, sre=0.623, **parameters):
    """A run whose results came from data, a judge and eval, with these parameters in their manifests."""
    rows = [result("sre_10", sre), result("sre_2", sre - 0.01), result("sft", sft), result("base", 0.0)]
    rows += [result("sft", sft - 0.05, split="ood"), result("sft", 0.7, metric="pearson")]
    rows += [result("base", None, metric="pearson"), result("sft", 28200, metric="tokens")]
    files.write_json(path / "results.json", rows)
    judge = {"seed": seed, "beta": 0.1, "iteration": 2, "arm": "sft", "code of x": "1", "input data": "d"} | parameters
    inputs = {"n_boot": 200, "input data": "d", "input judges/sre_2": "j"}
    for name, key, parts in (("data", "d", {"seed": seed}), ("judges/sre_2", "j", judge), ("eval", "e", inputs)):
        files.write_json(path / name / "manifest.json", {"content": key, "parts": parts})
    return path


def cells(table):
    columns = [[getattr(cell, "plain", cell) for cell in column.cells] for column in table.columns]
    return {name: list(rest) for name, *rest in zip(*columns, strict=True)}


def test_a_table_has_percentages_intervals_and_dashes(tmp_path):
    got = cells(tables.table(make_run(tmp_path / "tiny")))
    assert list(got) == ["base", "sft", "sre_2", "sre_10"]
    assert got["sft"] == ["46.8 [41.8, 51.8]", "41.8", "–", "0.700", "–", "–", "–", "–", "28,200"]
    assert got["base"][:4] == ["0.0 [-5.0, 5.0]", "–", "–", "–"]
    files.write_json(tmp_path / "tiny" / "results.json", [result("[red]sft[/red]", None)])
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tables.table(tmp_path / "tiny"))
    assert re.search(r"\[red\]sft\[/red\] *│ *– ", captured.get()), "no markup"
    with pytest.raises(SrlibError, match=r"there is no results\.json, the run has not finished"):
        tables.table(tmp_path)


@pytest.fixture
def runs(tmp_path):
    pytest.importorskip("seaborn")
    gains = {0: 0.10, 1: 0.16, 2: 0.13}
    return [make_run(tmp_path / f"tiny-{s}", s, 0.45 + 0.02 * s, 0.45 + 0.02 * s + gain) for s, gain in gains.items()]


def test_compare_writes_means_and_paired_differences(runs):
    got, out = cells(tables.compare(runs[::-1])), runs[0].parent / "compare-tiny"
    assert list(got) == ["base", "sft", "sre_2", "sre_10", "sre_10 − sft"]
    assert (got["sft"][0], got["sre_10 − sft"][0]) == ("47.0 ± 5.0", "+13.0 ± 7.5")
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md", "compare.png"]
    record = files.read_json(out / "compare.json")
    assert record["runs"] == {"0": "tiny-0", "1": "tiny-1", "2": "tiny-2"}
    gain, pearson = record["differences"][0], record["arms"][3]
    assert [gain[name] for name in ("arm", "against", "metric", "split", "n")] == [
        "sre_10",
        "sft",
        "accuracy",
        "test",
        3,
    ]
    assert gain["by_seed"] == pytest.approx({"0": 0.10, "1": 0.16, "2": 0.13})
    assert [pearson[name] for name in ("arm", "metric", "value", "n")] == ["base", "pearson", None, 0]
    page = (out / "compare.md").read_text()
    assert re.match(r"# seeds .*interval over seeds\n\nShares in %.*\n\n!\[.*\]\(compare.png\)\n\n\| arm ", page)
    assert "| sre_10 − sft | +13.0 ± 7.5 | – | – | – | – | – | – |\n" in page
    files.write_json(runs[2] / "results.json", [row for row in tables.load(runs[2]) if row["arm"] != "sft"])
    got = cells(tables.compare(runs))
    assert got["sre_10 − sft"][0].startswith("+13.0 ± "), "of 10 and 16, not of means over different seeds"
    assert cells(tables.compare(runs[:1]))["sft"][0] == "45.0", "one seed has no interval"


def test_settings_are_lines_and_what_differs_is_their_name(runs, tmp_path):
    others = [make_run(tmp_path / f"tiny-beta=0.3-{s}", s, 0.45, 0.45, beta=0.3, samples=8) for s in (0, 1)]
    got = cells(tables.compare([*runs, *others], tmp_path / "out"))
    lines = [f"{arm}, beta={beta}" for arm in ("base", "sft", "sre_2", "sre_10") for beta in (0.1, 0.3)]
    differences = [f"sre_10, beta={beta} − sft, beta={beta}" for beta in (0.1, 0.3)]
    assert list(got) == [*lines, *differences, "sre_10, beta=0.3 − sre_10, beta=0.1"], "samples are of one of them only"
    assert (got["sft, beta=0.1"][0], got["sft, beta=0.3"][0]) == ("47.0 ± 5.0", "45.0 ± 0.0 (n 2)")
    assert got["sre_10, beta=0.3 − sre_10, beta=0.1"][0].startswith("-14.0 ± "), "of seeds 0 and 1, which both have"
    (tmp_path / "tiny-beta=0.3-1" / "params.yaml").write_text("beta: 0.3\n")  # it came to no pairs, so to no DPO
    manifest = tmp_path / "tiny-beta=0.3-1" / "judges" / "sre_2" / "manifest.json"
    files.write_json(
        manifest,
        (made := files.read_json(manifest)) | {"parts": {k: v for k, v in made["parts"].items() if k != "beta"}},
    )
    assert list(cells(tables.compare([*runs, *others], tmp_path / "out"))) == list(got), "still a seed of its setting"
    record = files.read_json(tmp_path / "out" / "compare.json")
    assert record["runs"] == {f"beta=0.1, seed={s}": f"tiny-{s}" for s in range(3)} | {
        f"beta=0.3, seed={s}": f"tiny-beta=0.3-{s}" for s in range(2)
    }
    assert [row["arm"] for row in record["arms"][::7]] == lines
    only = make_run(tmp_path / "only", 0, samples=8)
    assert "sft, samples=unset" in cells(tables.compare([runs[0], only], tmp_path / "out"))
    made = files.read_json(only / "judges" / "sre_2" / "manifest.json")
    model = {"params": {"model": "org/a"}, "parts": made["parts"] | {"model": "sha256:1"}}
    files.write_json(only / "judges" / "sre_2" / "manifest.json", made | model)
    same = make_run(tmp_path / "same", 0, model="sha256:2", samples=8)
    files.write_json(
        same / "judges" / "sre_2" / "manifest.json", made | model | {"parts": made["parts"] | {"model": "sha256:2"}}
    )
    assert "sft, model=sha256:2" in cells(tables.compare([only, same], tmp_path / "out")), "one name, two contents"


def test_a_comparison_replaces_only_a_comparison(runs, tmp_path):
    out = tmp_path / "out"
    tables.compare(runs, out)
    tables.compare(runs[:2], out)
    notes = tmp_path / "notes"
    files.write_text(notes / "compare.md", "of somebody")
    for bad, words in (
        (notes, "compare.md: was not made"),
        (notes / "compare.md", "was not made"),
        (runs[0], "is an input"),
    ):
        with pytest.raises(SrlibError, match=words):
            tables.compare(runs, bad)
    assert (notes / "compare.md").read_text() == "of somebody"


def test_compare_refuses_what_is_no_comparison_of_seeds(runs, tmp_path):
    with pytest.raises(SrlibError, match=r"tiny-0 and .*tiny-b both have seed 0"):
        tables.compare([*runs, make_run(tmp_path / "tiny-b")])
    made = files.read_json(runs[1] / "judges" / "sre_2" / "manifest.json")
    files.write_json(runs[1] / "judges" / "sre_2" / "manifest.json", made | {"content": "trained again"})
    with pytest.raises(SrlibError, match=r"tiny-1: judges/sre_2 is newer than eval"):
        tables.compare(runs)
    assert not (tmp_path / "compare-tiny").exists()
    (runs[1] / "eval" / "manifest.json").unlink()
    with pytest.raises(SrlibError, match=r"tiny-1: eval/manifest.json is missing"):
        tables.compare(runs)


def test_the_report_shows_both_notebooks_and_nothing_hostile(tmp_path):
    nbformat, run, found = pytest.importorskip("nbformat").v4, tmp_path / "<b>tiny", []
    bad = (
        "<script>alert('x')</script><img src=x onerror=alert(1)><a href='javascript:alert(2)'>z</a><iframe src=//evil>"
    )
    for stage in ("data", "eval", "diagnose"):
        table = (
            f"<style>td {{x}}</style><table><caption>of {stage}</caption><tr><th>kept {stage}</th></tr></table>{bad}"
        )
        rich = [{"text/html": table, "application/javascript": "alert(3)", "text/latex": bad, "text/plain": bad}]
        rich += [{"text/markdown": f"# Head\n\n{bad}"}, {"image/svg+xml": f"<svg onload='alert()'>{bad}"}]
        rich += [{"image/png": f"iVBORw'\"> {bad}"}, {"application/vnd.jupyter.widget-view+json": {"a": bad}}]
        outputs = [nbformat.new_output("display_data", d, metadata={"text/html": {"isolated": True}}) for d in rich]
        outputs.append(nbformat.new_output("stream", text=f"\x1b[31mred\x1b[0m {bad}"))
        outputs.append(nbformat.new_output("stream", name="stderr", text="/home/anna/lib.py: warning"))
        code = nbformat.new_code_cell("secret_code()", metadata={"tags": ["'><script>"]}, outputs=outputs)
        cells = [nbformat.new_markdown_cell(f"## Section\n\n{bad} ![y](https://evil/y.png)"), code]
        notebook = nbformat.new_notebook(cells=cells, metadata={"widgets": {"state": bad}, "title": bad})
        files.write_json(run / "notebooks" / f"{stage}.ipynb", notebook)
    report = page.write_report(run)
    html = report.read_text()
    assert html.index("kept eval") < html.index("kept diagnose")
    assert not [word for word in ("kept data", "secret_code", "anna", "alert(3)") if word in html]
    for word in (
        ">Section",
        "<caption>of eval</caption>",
        '<a href="notebooks/data.ipynb">data.ipynb</a>',
        "<title>&lt;b&gt;tiny</title>",
    ):
        assert word in html
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    assert {tag for tag, _ in found} <= {*page.TAGS, "main", "html", "head", "meta", "title", "style", "body", "img"}
    for tag, attributes in found:
        assert not [name for name in attributes if name.startswith("on")]
        assert not (attributes.get("href") or "").startswith("javascript:")
        assert tag != "img" or attributes["src"].startswith("data:image/")
    assert "Content-Security-Policy" in [attributes.get("http-equiv") for _, attributes in found]
    files.write_text(report, "as it was")
    assert page.write_report(run).read_text() == "as it was"
    os.utime(run / "notebooks" / "eval.ipynb", (report.stat().st_mtime + 10,) * 2)
    assert "kept eval" in page.write_report(run).read_text()
    read = {"parts": {"input eval": "the eval before"}}  # a diagnosis of other settings is no part of this report
    files.write_json(run / "eval" / "manifest.json", {"content": "this eval"})
    files.write_json(run / "diagnose" / "manifest.json", read)
    files.write_json(run / "results.json", [])  # as notebook 06 by hand leaves it
    os.utime(run / "results.json", (report.stat().st_mtime + 10,) * 2)
    html = page.write_report(run).read_text()
    assert ("kept eval" in html, "kept diagnose" in html) == (True, False)


def test_the_report_tells_its_story_and_links_every_judgment(tmp_path):
    pytest.importorskip("nbformat")
    write_reported(run := tmp_path / "tiny")
    files.write_json(run / "judges" / "sft" / "manifest.json", {"key": "k", "facts": {"rows": 9}})
    html = " ".join(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page.write_report(run).read_text()).split())
    told = "Of 12 unseen test items, base gives the gold score to 0.0 % [0.0, 0.0] after SFT on 9 training rows, and"
    assert told.replace(" [0.0, 0.0]", "") in html
    assert (
        "100.0 % [90.0, 100.0] after 2 iterations of self-rationalization (sre_2): +100.0 points [+100.0, +100.0]"
        in html
    )
    assert "/home/anna" not in html
    assert "The dashed line is sft." in html
    assert "ceiling" not in html, "no arm of this run is one"
    assert "test-3 · gold 4 · sft 3 ✗ · sre_2 4 ✓" in html
    assert "sre_2 self-rationalized twice 100.0 % [90.0, 100.0]" in html
    seen, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append((tag, dict(attributes)))
    for name in ("report", "judgments"):
        parser.feed((run / f"{name}.html").read_text())
    assert [attributes.get("id") for tag, attributes in seen if tag == "script"] == ["data", None]
    assert not [tag for tag, attributes in seen if any(name.startswith("on") for name in attributes)]
    assert [attributes["src"][:21] for tag, attributes in seen if tag == "img"] == ["data:image/png;base64"]
    assert ("a", {"href": "judgments.html"}) in seen
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', (run / "judgments.html").read_text())[
        1
    ]
    data = files.parse_json("judgments.html", data.encode())
    said = data["items"][2]["judged"]
    assert said["sft"] == {"score": 3.0, "failure": None, "text": f"{HOSTILE} tfs", "right": False}
    assert said["sre_2"]["right"]
    assert data["pairs"][0]["chosen"][1] == ["pass. ", True]
    assert data["pairs"][0]["rejected"][-1] == ["1", True]
    assert data["pairs"][0]["kind"] == "cot"
    assert [arm["color"] for arm in data["arms"]] == ["#8e4ec6", "#56b4e9", "#0173b2"]


@pytest.mark.parametrize(
    ("arms", "told"), [("sft, sre_1", "after 1 iteration of self-rationalization (sre_1): +100"), ("sft", "0.0 % [0.0, 0.0] as sft. One seed")]
)  # fmt: skip
def test_the_story_is_about_the_last_judge_whatever_the_run_asked_for(tmp_path, arms, told):
    pytest.importorskip("nbformat")
    write_reported(run := tmp_path / "tiny")
    files.write_text(run / "params.yaml", f"arms: [{arms}]\nmodel: /home/anna/base\niterations: 2\n")
    html = " ".join(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page.write_report(run).read_text()).split())
    assert told in html
    assert ("over SFT" in html) == (arms != "sft"), "no judge is compared with itself"
    assert ('"chosen":' in (run / "judgments.html").read_text()) == (arms != "sft"), "pairs of an older configuration"


def test_words_that_differ_are_marked():
    assert browse.marked("a b  c", "a x c") == [("a ", False), ("b  ", True), ("c", False)]
    assert browse.marked("a b", "a") == [("a ", False), ("b", True)]
    assert browse.marked("", "a") == []
