"""One sentence for each figure of the report, computed from the numbers that it shows; templates, no model.

Ground floor: imports nothing of ours; rows are those of results.json. A sentence claims no more than the interval carries:
an effect whose interval holds 0 is called none that shows.

>>> row = {"arm": "sre_2", "value": 0.637, "ci_low": 0.59, "ci_high": 0.685, "n": 400}
>>> better(row, {"sft": {"value": 0.155, "low": 0.1, "high": 0.21, "p_holm": 0.0004, "detectable": 0.07}})
'sre_2 is right on 63.7 % of 400 items [59.0, 68.5]. Against sft that is +15.5 points [+10.0, +21.0], p 0.0004 after \
Holm; so many items find a difference of 7 points 8 times in 10. Beyond chance it is better than 1 of 1 other arms, and \
worse than 0.'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def better(row: Row, differences: Mapping[str, Row], level: float = 0.05) -> str:
    """`row` is an arm's accuracy, `differences` those of inference.differences, as mappings."""
    said = [f"{row['arm']} is right on {_percent(row['value'])} of {row['n']} items {_interval(row)}."]
    if "sft" in differences:
        d = differences["sft"]
        finds = "no item differs" if d["detectable"] != d["detectable"] else (
            f"so many items find a difference of {100 * d['detectable']:.0f} points 8 times in 10"
        )  # fmt: skip
        said.append(
            f"Against sft that is {_points(d['value'])} points [{_points(d['low'])}, {_points(d['high'])}], p "
            f"{d['p_holm']:.2g} after Holm; {finds}."
        )
    sure = [d["value"] for d in differences.values() if d["p_holm"] <= level]
    if differences:
        said.append(
            f"Beyond chance it is better than {sum(v > 0 for v in sure)} of {len(differences)} other arms, and worse than "
            f"{sum(v < 0 for v in sure)}."
        )
    return " ".join(said)


def confused(gold: Sequence[float], scores: Sequence[float], scale: Sequence[float]) -> str:
    """How far off the wrong scores are, in steps of the scale, and to which side."""
    place = {value: i for i, value in enumerate(sorted(scale))}
    off = [place[s] - place[g] for g, s in zip(gold, scores, strict=True) if s == s]
    wrong = [step for step in off if step]
    if not wrong:
        return f"None of {len(off)} scores is wrong."
    near, above = sum(abs(step) == 1 for step in wrong), sum(step > 0 for step in wrong)
    return (
        f"Of {len(wrong)} wrong scores {_percent(near / len(wrong))} are one step off, and {_percent(above / len(wrong))} are "
        "too high."
    )


def calibrated(rows: Sequence[Row]) -> str:
    """From the rows `ece` and `ece_tempered` of one arm."""
    found = {row["metric"]: row for row in rows if row["value"] is not None}
    if "ece" not in found:
        return "The judge gives no probabilities."
    said = f"What it claims and what is so are {_points(found['ece']['value'], sign=False)} points apart"
    if "ece_tempered" in found:
        said += f", {_points(found['ece_tempered']['value'], sign=False)} after a temperature fitted on validation"
    return f"{said} (expected calibration error, {found['ece']['n']} judgments)."


def silent(rows: Sequence[Row]) -> str:
    """From the row `auroc` of one arm."""
    row = next((row for row in rows if row["metric"] == "auroc" and row["value"] is not None), None)
    if row is None:
        return "Nothing to choose by: the judge gives no confidence, or is always right or always wrong."
    said = f"A right answer of {row['arm']} is surer than a wrong one in {_percent(row['value'])} of cases {_interval(row)}"
    if row["ci_low"] is not None and row["ci_low"] <= 0.5 <= row["ci_high"]:
        return f"{said}: its confidence does not tell them apart."
    return f"{said}: keeping silent where it is unsure {'helps' if row['value'] > 0.5 else 'makes it worse'}."


def robust(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """The largest effect of the audits that is not 0 by its interval; `names` are those of the figure."""
    shifts = [r for r in rows if r["metric"] in ("shift", "slope", "position_bias") and r["value"] is not None]
    sure = [r for r in shifts if not r["ci_low"] <= 0 <= r["ci_high"]]
    if not sure:
        return f"None of {len(shifts)} effects differs from 0 by its interval."
    r = max(sure, key=lambda r: abs(r["value"]))
    name = names.get(r["split"], r["split"].removeprefix("audit_").replace("_", " "))
    return (
        f"{len(sure)} of {len(shifts)} effects differ from 0 by their intervals; the largest: {name}, {r['arm']}, "
        f"{_points(r['value'])} % of the scale {_interval(r)}."
    )


def alarmed(rows: Sequence[Row]) -> str:
    """How many of the alarms fired."""
    defined, fired = [r for r in rows if r["value"] is not None], [r for r in rows if r["fired"]]
    if not fired:
        return f"None of {len(defined)} alarms fired: every dot is left of the red line."
    return f"{len(fired)} of {len(defined)} alarms fired: {', '.join(sorted({r['alarm'] for r in fired}))}."


def cost(rows: Sequence[Row], arm: str) -> str:
    """From the rows of ledger.arms: what an arm took, against sft."""
    tokens = {r["arm"]: (r["training tokens"] or 0) + (r["drawn tokens"] or 0) for r in rows}
    if not tokens.get(arm) or not tokens.get("sft"):
        return "The base model took nothing here."
    return f"{arm} took {tokens[arm] / tokens['sft']:.1f} times the tokens of sft, drawn and trained on."


def over_seeds(differences: Sequence[Row]) -> list[str]:
    """One sentence for each row of compare.json's differences in accuracy."""
    return [
        f"{r['arm']} against {r['against']}: {_points(r['value'])} points [{_points(r['ci_low'])}, {_points(r['ci_high'])}] over "
        f"{r['n']} seeds."
        for r in differences
        if r["value"] is not None and r["ci_low"] is not None
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float, sign: bool = True) -> str:
    return f"{100 * share:{'+' if sign else ''}.1f}"


def _interval(row: Row) -> str:
    if row["ci_low"] is None:
        return ""
    return f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"


def over_splits(differences: Sequence[Row]) -> str:
    """The differences in accuracy of one arm from another on each split that compare.json has."""
    rows = [r for r in differences if r["metric"] == "accuracy" and r["value"] is not None]
    if not rows:
        return "There is no arm to hold it against."
    found = ", ".join(f"{_points(r['value'])} points on {r['split']} {_interval(r)}" for r in rows)
    return f"{rows[0]['arm']} against {rows[0]['against']}, over {rows[0]['n']} seeds: {found}."


def means(rows: Sequence[Row], arm: str | None, metric: str, split: str, what: str) -> str:
    """The mean over seeds of an arm beside sft's: `"The error of sre_2 on test: 0.11; of sft: 0.17 (means ..."`"""
    rows = [r for r in rows if (r["metric"], r["split"]) == (metric, split) and r["n"]]
    found = {r["arm"]: r["value"] for r in rows}
    if arm not in found or "sft" not in found:
        return f"{what} of sft and a later judge are not both there."
    number = "{:,.0f}" if max(found[arm], found["sft"]) >= 10 else "{:.2f}"
    return f"{what} of {arm} on {split}: {number.format(found[arm])}; of sft: {number.format(found['sft'])} (means over seeds)."
