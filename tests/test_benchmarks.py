"""A judge on a benchmark, end to end: judged once, resumed, and scored again from what was kept."""

import io
import json

import pytest
from rich.console import Console
from test_answers import PAIR, write

from srlib.benchmarks import run as benchmarks
from srlib.benchmarks import suite
from srlib.files import RowError

FLAT = {
    "type": "pairwise", "instruction": "Invite Ann.", "response_a": "Dear Ann, come on Monday.", "response_b": "No.",
    "rubric": "[Is it polite?]\nScore 1: rude\nScore 2: neutral\nScore 3: kind", "meta": {"subset": "helpful"},
}  # fmt: skip


def score(path, name, rows, said, **how):
    data, judgments = write(path / "rows.jsonl", rows), write(path / "said.jsonl", said)
    return benchmarks.score(suite.BENCHMARKS[name], judgments, data=data, n_boot=20, **how)


def printed(rows):
    console = Console(width=200, file=io.StringIO())
    console.print(benchmarks.table(rows))
    return console.file.getvalue()


def test_every_row_carries_its_protocol_and_what_others_reported(tmp_path):
    rows = [PAIR | {"id": str(i), "subset": "Natural", "label": 1 + i % 2} for i in range(4)]
    said = [{"id": str(i), "order": o, "verdict": "A"} for i in range(4) for o in ("AB", "BA")]
    found = score(tmp_path, "llmbar", rows, said[:-1])
    for row in found:
        assert set(row) == {
            "benchmark", "revision", "judge", "part", "subset", "metric", "value", "ci_low", "ci_high", "n", "parse_rate",
            "failures", "seed", "left_out", "protocol", "published",
        }  # fmt: skip
        assert row["revision"].startswith("rows.jsonl sha256:")
        assert set(row["protocol"]) == {
            "mode", "reference", "samples", "aggregate", "temperature", "orders", "ties", "parse_failures", "interval",
        }  # fmt: skip
        assert (row["protocol"]["orders"], row["protocol"]["samples"]) == ("both", "not told")
    natural = next(row for row in found if row["metric"] == "accuracy")
    assert (natural["value"], natural["parse_rate"], natural["failures"]) == (0.5, 0.875, {"missing": 1})
    assert "orders: both" in printed(found)
    named = [PAIR | {"id": str(i), "subset": s} for i, s in enumerate(("Natural", "Manual"))]
    published = {
        row["subset"]: row["published"]
        for row in score(tmp_path, "llmbar", named, said[:2])
        if row["metric"] == "accuracy"
    }
    assert [p["value"] for p in published["Natural"]] == [0.955]
    assert "2310.07641" in published["Manual"][0]["source"]


def test_hostile_text_is_printed_as_text(tmp_path):
    rows = [PAIR | {"id": str(i), "subset": s} for i, s in enumerate(("[red]x[/red]", "[/nothing]"))]
    assert "[red]x[/red]" in printed(score(tmp_path, "llmbar", rows, [{"id": "0", "order": "AB", "verdict": "A"}]))


@pytest.mark.torch
def test_judged_resumed_and_scored_again(base_dir, one_thread, tmp_path, monkeypatch):
    """The rows that `score` computes from the kept judgments are those of `evaluate`; another judge's are not touched."""
    rows = [FLAT | {"id": f"p{i}", "preference": "AB"[i % 2], "response_b": f"No, {i}."} for i in range(3)]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    benchmark = suite.HHH_ALIGNMENT
    found = benchmarks.evaluate(base_dir, benchmark, out, data=data, n_boot=20)
    assert json.loads(out.read_text()) == found
    assert {row["n"] for row in found if row["metric"] == "accuracy"} == {3}
    kept = tmp_path / "out.judgments.jsonl"
    assert [json.loads(line)["example_id"] for line in kept.read_text().splitlines()] == [
        f"p{i}#{s}" for i in range(3) for s in "AB"
    ]
    assert benchmarks.score(benchmark, kept, data=data, n_boot=20) == found
    whole = kept.read_text()
    kept.write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert benchmarks.evaluate(base_dir, benchmark, out, data=data, n_boot=20) == found
    assert kept.read_text() == whole
    with pytest.raises(RowError, match="of another judge or of other rows"):
        benchmarks.evaluate(base_dir, benchmark, out, data=data, compare=True)
    assert kept.read_text() == whole
    compared = benchmarks.evaluate(base_dir, benchmark, tmp_path / "both.json", data=data, compare=True, n_boot=20)
    assert {row["protocol"]["orders"] for row in compared} == {"both"}
    assert "consistency" in {row["metric"] for row in compared}
