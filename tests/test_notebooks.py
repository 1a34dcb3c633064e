"""The six notebooks for real: the whole method through papermill, shrunken, and what a second run makes of it."""

import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import SHRUNKEN
from rich.console import Console

from srlib import config as params
from srlib import files as store
from srlib.evaluate import arms as readings
from srlib.run import pipeline, stages

pytestmark = pytest.mark.torch

POINTWISE = {
    "accuracy",
    "balanced_accuracy",
    "pearson",
    "spearman",
    "kendall",
    "qwk",
    "mae",
    "parse_rate",
    "seconds",
    "tokens",
}
RATIONALES = {"rationale_accuracy", "rationale_win_rate"}
CONFIDENCE = {"ece", "auroc", "aurc"}  # where the judge wrote scores with probabilities
DECIDED = {"ece_tempered", "selective_risk", "selective_coverage", "guaranteed_risk", "guaranteed_coverage"}  # last arm
DECIDED |= {"pass_accuracy", "pass_accuracy_score", "pass_gain"}
SIZES = {"validation": 10, "test": 24, "ood": 10, "pairwise": 6}


def load(root: Path, **changes) -> dict:
    wanted = [f"{name}={value}" for name, value in (SHRUNKEN | changes).items()]
    return params.load(root / "params" / "tiny.yaml", wanted, root / "notebooks")


def go(root: Path, **changes):
    """Run the pipeline in `root`: {stage: (status, reason)} and what was printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    reports = pipeline.run(load(root, **changes), root / "runs" / "t", root=root, console=console)
    printed = console.file.getvalue()
    assert {r.status for r in reports} <= {"done", "cached"}, printed
    return {r.stage: (r.status, r.reason) for r in reports}, printed


class Loads(HTMLParser):
    """Collects what a browser would fetch to show the page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        for name, value in attributes:
            if name in ("src", "srcset", "poster", "data") or (name == "href" and tag == "link"):
                self.fetched.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)


def test_the_whole_method_then_cached_then_with_another_beta(project, quiet_kernels):
    first, _ = go(project)
    run = project / "runs" / "t"
    assert {status for status, _ in first.values()} == {"done"}
    assert len(first) == 13
    check_results(store.read_json(run / "results.json"))
    check_report(run)
    check_notebooks(run, project, first)
    check_judge(run)

    written = {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    started = time.monotonic()
    again, printed = go(project)
    assert time.monotonic() - started < 20
    assert set(again.values()) == {("cached", "")}, printed
    assert written == {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}

    # Another beta makes other judges behind DPO; what came before, and what never sees them, stays.
    before = {(r["arm"], r["split"], r["metric"]): r["value"] for r in store.read_json(run / "results.json")}
    changed, _ = go(project, beta=0.9, arms="sft,sre_1", iterations=1)
    assert changed["dpo_1"] == ("done", "beta 0.1 -> 0.9")
    assert [name for name, (status, _) in changed.items() if status == "cached"] == [
        "data",
        "sft",
        "sample_1",
        "curate_1",
    ]
    assert "input judges/sre_1 changed" in changed["eval"][1]
    for r in store.read_json(run / "results.json"):
        if r["arm"] == "sft" and r["metric"] != "seconds":
            assert before["sft", r["split"], r["metric"]] == r["value"]
    reasons = {s.name: stages.why(s, load(project, beta=0.9), run, project) for s in stages.of(load(project))}
    assert reasons["sample_2"] == "input judges/sre_1 changed"
    assert reasons["dpo_2"] == "beta 0.1 -> 0.9, input judges/sre_1 changed"
    assert {reasons[name] for name in ("sft_score_only", "sft_careful_only", "data", "curate_1")} == {None}


def test_a_judge_that_compares_is_merged_of_two(project, quiet_kernels):
    """An adapter for scores and one for comparisons; test_collections trains both in one."""
    small = {"n_train": 16, "n_test": 6, "n_ood": 5, "n_validation": 5, "n_pairwise": 3, "n_train_pairwise": 12}
    said, _ = go(project, sft_mode="merge", max_new_tokens=180, audit_items=0, **small, arms="sft", iterations=1)
    assert list(said) == ["data", "sft", "eval"]
    run = project / "runs" / "t"
    facts = store.read_json(run / "judges" / "sft" / "train.json")
    assert (facts["rows"], facts["steps"], len(facts["log"])) == (16 + 12, 12, 12)
    check_both_ways(store.read_json(run / "results.json"), {"sft"})


def check_both_ways(results: list[dict], arms: set[str]) -> None:
    found = {(r["arm"], r["split"]): r["protocol"] for r in results if r["split"].startswith("pairwise")}
    assert set(found) == {(arm, split) for arm in arms for split in ("pairwise", "pairwise_compared")}
    assert all(("both orders" in how) == (split == "pairwise_compared") for (_, split), how in found.items())
    metrics = {r["metric"] for r in results if r["split"] == "pairwise_compared"}
    assert {
        "accuracy",
        "accuracy_as_given",
        "accuracy_swapped",
        "consistency",
        "position_bias",
        "parse_rate",
    } <= metrics


def check_results(results: list[dict]) -> None:
    found: dict[tuple, set] = {}
    audits: dict[str, set] = {}
    for r in results:
        assert set(r) == {
            "arm", "split", "metric", "value", "ci_low", "ci_high", "n", "seed", "iteration", "protocol",
        }  # fmt: skip
        assert r["seed"] == 0
        assert r["protocol"]
        if r["split"].startswith("audit_"):
            audits.setdefault(r["split"], set()).add(r["arm"])
            continue
        found.setdefault((r["arm"], r["split"]), set()).add(r["metric"])
        if r["metric"] in ("accuracy", "parse_rate", *RATIONALES):
            assert 0 <= r["ci_low"] <= r["value"] <= r["ci_high"] <= 1
        if r["metric"] == "accuracy":
            assert r["n"] == SIZES[r["split"]]
    assert set(found) == {(arm, split) for arm in stages.ARMS + SRE for split in SIZES}
    assert {"audit_position", "audit_padding", "audit_injection", "audit_self_preference"} < set(audits)
    assert all(arms == {"sft", "sre_1", "sre_2"} for arms in audits.values())
    for (arm, split), names in found.items():
        names -= CONFIDENCE | (DECIDED if (arm, split) == ("sre_2", "test") else set())
        if split == "pairwise":
            assert names == {"accuracy", "parse_rate", "seconds", "tokens"}
        elif arm == "sft_score_only":  # after six steps it may still write what the base model writes
            assert names in (POINTWISE, POINTWISE | RATIONALES)
        else:
            assert names == POINTWISE | RATIONALES, arm
    iterations = {r["arm"]: r["iteration"] for r in results}
    assert (iterations["sft"], iterations["sre_1"], iterations["sre_2"]) == (0, 1, 2)
    assert readings.in_order(iterations) == list(dict.fromkeys(r["arm"] for r in results))
    (best,) = {r["protocol"] for r in results if r["arm"] == "sft_best_of_n" and r["split"] == "test"}
    assert "selector" in best


SRE = ("sre_1", "sre_2", "sre_2_self_consistency")


def check_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    for notebook in (run / "notebooks").glob("*.ipynb"):  # rendered when it had ended, the last one too
        assert notebook.with_suffix(".html").stat().st_mtime >= notebook.stat().st_mtime
    seen = Loads()
    seen.feed(page)
    assert all(url.startswith("data:") for url in seen.fetched), "the page opens offline"
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
    local = [link for link in seen.links if not link.startswith(("http", "#"))]
    assert len(local) >= 13
    assert all((run / link).exists() for link in local)
    assert "sre_2" in page


def check_notebooks(run: Path, project: Path, said: dict) -> None:
    for name in said:
        text = (run / "notebooks" / f"{name}.ipynb").read_text()
        outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error"], name
        assert any(o["output_type"] in ("display_data", "execute_result") for o in outputs), name
        assert str(project) not in text, "a notebook that is shown around tells nothing of this machine"
        assert (run / next(s.output for s in stages.of(load(project)) if s.name == name) / "manifest.json").exists()
    assert not list(run.rglob("*.partial"))


def check_judge(run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    judge, tokenizer = AutoModelForCausalLM.from_pretrained(run / "judge"), AutoTokenizer.from_pretrained(run / "judge")
    ids = torch.tensor([tokenizer("The host is Anna: pass.")["input_ids"]])
    with torch.no_grad():
        last = AutoModelForCausalLM.from_pretrained(run / "judges" / "sre_2")(ids).logits
        assert torch.equal(judge(ids).logits, last)
        assert not torch.equal(AutoModelForCausalLM.from_pretrained(run / "judges" / "sre_1")(ids).logits, last)
