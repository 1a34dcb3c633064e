"""A model card made from a run: base and licence, data, recipe, results with n and intervals, limits.

Everything in it is read from the run's own files; what is not there is said to be not there.

    text = card(Path("runs/tiny"), params, models.judge_info("runs/tiny/judge"), "merged", gate)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib import config as params
from srlib import files as store
from srlib.run import stages

SPLITS = ("validation", "test", "ood", "pairwise")
MEASURES = (("pearson", "Pearson with gold"), ("mae", "mean absolute error"), ("parse_rate", "readable judgments"))
USE = """\
```python
from srlib import Judge, Rubric

judge = Judge.load("{name}")
rubric = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
judge.score(instruction="...", response="...", rubric=rubric).score
```"""
LIMITS = """\
- The numbers hold for the splits above and for one seed; the intervals are over items.
- The judge scores what its prompt shows. It checks no facts, and a response can try to talk it into a score.
- A judgment that cannot be read has no score and counts as wrong; it is never turned into a number.
- Rationales are generated text. A right score does not make the reasons right."""


def card(run: Path, settings: Mapping[str, Any], info: Mapping[str, Any], how: str, gate: Mapping[str, Any]) -> str:
    """The README.md of an exported judge, in Markdown with the hub's front matter."""
    base = str(info.get("base", settings.get("model", "not known")))
    licence, base = licence_of(base), shown(base)
    made = stages.manifest(run / "judge") or {}
    arm = {"sft": "sft"}.get(made.get("stage", ""), str(made.get("stage", "")).replace("dpo_", "sre_"))
    head = {"license": licence or "other", "library_name": "peft" if how == "adapter" else "transformers"}
    head |= {"base_model": base} if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith("models/") else {}
    front = "\n".join(f"{name}: {value}" for name, value in head.items())
    results = store.read_json(run / "results.json") if (run / "results.json").is_file() else []
    sections = {
        "": f"A judge that reads an instruction, a response and a rubric, writes a rationale and then a score. Made by "
        f"self-rationalization ([arXiv 2410.05495](https://arxiv.org/abs/2410.05495)) from {_code(base)}, exported as "
        f"{how} from the run {_code(run.resolve().name)}, where it is the arm {_code(arm or 'not known')}"
        f"{', the best one on the validation split' if settings.get('keep') == 'best' else ''}.\n\n"
        + USE.format(name=run.resolve().name),
        "Base and licence": f"{_code(base)}: "
        + (licence or "its licence is not known here; see the base's own page")
        + "."
        " The judge is a derivative of it and under its terms.",
        "Data": _data(run, settings),
        "Recipe": _recipe(settings),
        "Results": _results(results, arm),
        "Limits": LIMITS,
        "Export": f"{gate['same_score']} of {gate['items']} greedy scores are the same before and after the export; "
        f"log-probabilities differ by at most {gate['largest_difference']:.2g} nats a token ({gate['tolerance']:g} are "
        "allowed). The items are named in `export.json`.",
    }
    body = "\n\n".join(
        (f"## {title}\n\n" if title else "# A fine-grained judge\n\n") + text for title, text in sections.items()
    )
    return f"---\n{front}\npipeline_tag: text-generation\ntags: [judge, self-rationalization, dpo]\n---\n\n{body}\n"


def licence_of(base: str) -> str | None:
    """What the base's own card says: of a directory its README.md, of a hub id the copy in the local cache."""
    import yaml

    root = Path(base).expanduser()
    if not root.is_absolute():
        root = next((r / base for r in (Path.cwd(), params.project_root()) if (r / base).is_dir()), root)
    path: Any = root / "README.md"
    if not root.is_dir():
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(base, "README.md") if base.count("/") == 1 else None
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    match = re.match(r"---\n(.*?)\n---\n", Path(path).read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    licence = front.get("license_name", front.get("license")) if isinstance(front, dict) else None
    return re.sub(r"[^\w.-]", "", licence)[:40] if isinstance(licence, str) else None


def shown(value: Any) -> str:
    """A parameter's value as strangers may see it: of a path of this machine only its last part."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Path(text).name if text.startswith(("/", "~", "..")) else text


def _data(run: Path, settings: Mapping[str, Any]) -> str:
    facts = (stages.manifest(run / "data") or {}).get("facts", {})
    rows = {**facts.get("rows", {}), "pairwise": facts.get("pairwise", 0)}
    counts = ", ".join(f"{n:,} {name}" for name, n in rows.items() if n) or "sizes not recorded"
    return (
        f"Source {_code(shown(settings.get('data', 'not known')))}: {counts}. Scales are those of each item's rubric."
    )


def _recipe(settings: Mapping[str, Any]) -> str:
    known = params.declared()
    own = {n: v for n, v in settings.items() if n in known and v != known[n].default and n not in stages.NOT_IDENTITY}
    rows = [f"| {_cell(name)} | {_cell(shown(value))} | {_cell(known[name].help)} |" for name, value in own.items()]
    rest = "All other parameters have the defaults of this version of srlib."
    if not rows:
        return rest
    return "\n".join(["| parameter | value | what it is |", "| --- | --- | --- |", *rows, "", rest])


def _results(results: Sequence[Mapping[str, Any]], arm: str) -> str:
    """Accuracy of every arm on every split, then the judge's other measures on test."""
    accuracy = {(r["arm"], r["split"]): r for r in results if r["metric"] == "accuracy"}
    splits = [s for s in SPLITS if any(s == split for _, split in accuracy)]
    if not splits:
        return "This run has not been evaluated."
    names = list(dict.fromkeys(name for name, _ in accuracy))
    lines = ["Accuracy in %, with the 95% interval over items and the number of items. This judge's row is bold.", ""]
    lines += [f"| arm | {' | '.join(splits)} |", "| --- |" + " ---: |" * len(splits)]
    for name in names:
        cells = [_number(accuracy.get((name, split)), 100, 1) for split in splits]
        lines.append(f"| {f'**{_cell(name)}**' if name == arm else _cell(name)} | {' | '.join(cells)} |")
    own = {r["metric"]: r for r in results if r["arm"] == arm and r["split"] == "test"}
    found = [f"{title} {_number(own[metric], 1, 3)}" for metric, title in MEASURES if metric in own]
    return "\n".join(lines) + (f"\n\nOn test: {'; '.join(found)}." if found else "")


def _number(row: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if row is None or row["value"] is None:
        return "–"
    value, low, high = (
        None if row[k] is None else f"{scale * row[k]:.{digits}f}" for k in ("value", "ci_low", "ci_high")
    )
    return f"{value} [{low}, {high}] (n {row['n']})" if low and high else f"{value} (n {row['n']})"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("`", "'")
