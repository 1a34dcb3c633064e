"""Judgments of a run to look at: what every arm said of each test item, and the pairs that DPO learned from.

Ten go into the report, all of them into judgments.html, one file that opens offline. Texts of models and data are
hostile: they reach a page escaped, or as JSON that its script shows as text only."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jinja2

from srlib import config, files
from srlib.evaluate import arms, results, slices
from srlib.report import plots
from srlib.run import stages
from srlib.schema import Comparison, Example, Item, Judgment, Pair, format_score

TEXTS = {"id", "instruction", "response", "response_a", "response_b", "reference_answer"}
PAIRS = 300  # of each iteration; a page of many thousands opens slowly


def marked(one: str, other: str) -> list[tuple[str, bool]]:
    """`one` in pieces, each with whether `other` lacks it: `("a b", "a c") -> [("a ", False), ("b", True)]`."""
    words, against = re.findall(r"\S+\s*", one), other.split()
    steps = SequenceMatcher(None, [word.strip() for word in words], against, autojunk=False).get_opcodes()
    return [("".join(words[i:j]), kind != "equal") for kind, i, j, _, _ in steps if j > i]


def judgments(run: Path, cfg: config.Parameters) -> dict[str, Any]:
    """The test items with each arm's judgment and their slices, by place, and PAIRS pairs of each iteration; {} if none."""
    paths = {name: run / "eval" / arms.arm(name).judged_in / "test.jsonl" for name in arms.in_order(cfg.arms)}
    items = files.read_rows(path, Example) if (path := run / "data" / "test.jsonl").exists() else []
    judged = {n: arms.read(arms.arm(n), files.read_rows(p, Judgment)) for n, p in paths.items() if items and p.exists()}
    known = [slices.features(item, item.meta) for item in items]
    parts = {part.name: part.members(known) for part in slices.named(known)}
    within = [[k for k, members in enumerate(parts.values()) if members[i]] for i in range(len(items))]
    rows = [_shown(item) | {"judged": {}, "slices": of} for item, of in zip(items, within, strict=True)]
    for name, said in judged.items():
        right = arms.on_scale(items, arms.scores(said)) == [item.score for item in items]
        for row, j, is_right in zip(rows, said, right.tolist(), strict=True):
            text = "" if j is None else j.rationale or j.text
            score, failure = (None, "no draw has a verdict") if j is None else (j.score, j.failure)
            row["judged"][name] = dict(score=score and round(score, 6), failure=failure, text=text, right=is_right)
    about = [dict(name=n, about=arms.ARMS.get(n, ""), color=plots.color_of(n), plain=arms.arm(n).plain) for n in judged]
    view = dict(run=run.resolve().name, arms=about, slices=list(parts), items=rows, groups=results.groups(items))
    return view | {"pairs": _pairs(run, cfg)} if judged else {}


def _shown(item: Item) -> dict[str, Any]:
    return item.model_dump(include=TEXTS) | {"gold": item.gold, "rubric": item.rubric.text}


def _pairs(run: Path, cfg: config.Parameters) -> list[dict[str, Any]]:
    paths = {run / "data" / "train.jsonl": Example, run / "data" / "train_pairwise.jsonl": Comparison}
    items = {item.id: item for path, kind in paths.items() if path.exists() for item in files.read_rows(path, kind)}
    rows: list[dict[str, Any]] = []
    for path in [run / stage.output / "pairs.jsonl" for stage in stages.of(cfg) if stage.notebook == "04_curate"]:
        pairs = files.read_rows(path, Pair) if path.exists() else []
        for pair in [pair for pair in pairs if pair.example_id in items][:PAIRS]:
            sides = dict(chosen=marked(pair.chosen, pair.rejected), rejected=marked(pair.rejected, pair.chosen))
            sides |= dict(pair=pair.id, kind=pair.kind, iteration=pair.iteration, of=len(pairs))
            rows.append(_shown(items[pair.example_id]) | sides | {"scores": [pair.chosen_score, pair.rejected_score]})
    return rows


def write_viewer(path: Path, view: Mapping[str, Any]) -> None:
    """Write judgments.html. Its content policy allows its own script, by hash, and no request."""
    script = Path(__file__).with_name("viewer.js").read_text("utf-8")
    data = json.dumps({name: value for name, value in view.items() if name != "groups"}).replace("<", "\\u003c")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    files.write_text(path, page("viewer.html", run=view["run"], script=script, data=data, hash=allowed))


def page(template: str, **values: Any) -> str:
    """A template beside this file, filled in; all but what it marks as safe is escaped. style.css is in every page."""
    folder = Path(__file__).parent
    options = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), **options)
    environment.filters["score"] = lambda score: "none" if score is None else format_score(score)
    return environment.get_template(template).render(style=(folder / "style.css").read_text("utf-8"), **values)
