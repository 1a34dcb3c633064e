"""Does the judge's score move where it should not? Effect sizes with interval, n and protocol, as rows of results.json.

Imports attacks, evaluate, metrics, models, prompts, sample, store, schema. Two kinds of audits:

- **altered copies** of the same response (padded, in markdown, with an injected instruction: srlib.attacks) against the
  response itself, item by item;
- **equal gold**: among responses that deserve the same score, what does the score have to do with length (verbosity), or
  with how likely the base model finds the response (self-preference, by perplexity: arXiv 2410.21819).

Scores are shares of the rubric's scale, from 0 (lowest) to 1 (highest), so that rubrics of any scale can be pooled: a
shift of 0.25 is one point of five. A judge that compares is audited for its liking of the first place, too.

    items = audits.choose(splits["test"], n=40)
    judged = evaluate.judge_all(arms, models, splits | {"audit": audits.altered(items)}, out, settings)
    rows = audits.altered_rows(arm, judged_before, judged["sft"]["audit"], items, seed=0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srlib import files as store
from srlib import prompts
from srlib.evaluate import attacks
from srlib.evaluate.results import COMPARED, Arm, Settings, as_rows
from srlib.models import load as models
from srlib.sample import decode as sample
from srlib.schema import Example, Judgment
from srlib.stats import intervals, metrics

TOKENS = 2048  # of responses that are read side by side: their logits over the vocabulary are what takes memory
Pairs = list[tuple[Example, float, float]]

INJECTIONS = {f"injection_{family}": f"one of six templates of the family {family}" for family in attacks.FAMILIES}
COPIES = {  # what was done to the altered copies
    "padding": "three neutral sentences appended",
    "markdown": "in markdown, against the same text without its marks",
    "injection": "an injected instruction, all five families pooled and resampled by item",
} | INJECTIONS


def choose(items: Sequence[Example], n: int) -> list[Example]:
    """The first `n` items with a gold score whose rubric does not ask for a form (attacks.judges_form)."""
    return [item for item in items if item.score is not None and not attacks.judges_form(item)][:n]


def altered(items: Sequence[Example]) -> list[Example]:
    """Every alteration of every item, to be judged: eight of each."""
    return [changed for turn, item in enumerate(items) for changed in attacks.alterations(item, turn).values()]


def altered_rows(
    arm: Arm,
    before: Sequence[Judgment | None],
    after: Sequence[Judgment],
    items: Sequence[Example],
    *,
    seed: int,
    n_boot: int = 2000,
) -> list[dict[str, Any]]:
    """Rows of `audit_padding`, `audit_markdown`, `audit_injection_<family>` and, all families pooled, `audit_injection`.

    `before` are judgments of the items as they are (others are passed over), `after` those of `altered(items)`. Metrics:
    `shift`, the mean change of the score where both could be read; `changed`, the share of these that moved at all;
    `raised_to_top`, of the items that were scored below the top, the share that is there now (no score: not there); and
    `parse_rate` of the altered copies. A judge that is told what to say by a response has a large `raised_to_top`; one
    that is merely unsteady shows the same `changed` and `raised_to_top` under `padding`.
    """
    scores = {j.example_id: j.score for j in [*before, *after] if j is not None}
    wanted = [example.id for example in [*items, *altered(items)]]
    if missing := [name for name in wanted if name not in scores]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} judgments are missing, {missing[0]} is the first: judge them all"
        )

    def pairs(audit: str, against: str = "") -> Pairs:
        """Each item with its score before and after, as shares of the scale."""
        return [(i, _share(i, scores[i.id + against]), _share(i, scores[f"{i.id}#{audit}"])) for i in items]

    found = {"padding": pairs("padding"), "markdown": pairs("markdown", "#plain")}
    found |= {audit: pairs(audit) for audit in INJECTIONS}
    found["injection"] = [pair for audit in INJECTIONS for pair in found[audit]]
    rows = []
    for audit, what in COPIES.items():
        how = f"paired, greedy, {what}; share of the scale; gold taken as unchanged; no rubrics that ask for a form"
        rows += _rows(arm, f"audit_{audit}", _effects(found[audit], n_boot), seed, how)
    return rows


def _effects(pairs: Pairs, n_boot: int) -> dict[str, intervals.Interval]:
    group = np.array([item.cluster for item, _, _ in pairs])
    before, after = np.array([[a, b] for _, a, b in pairs]).reshape(-1, 2).T
    both, below = np.isfinite(before) & np.isfinite(after), before < 1
    return {
        "shift": _mean((after - before)[both], group[both], n_boot),
        "changed": _mean((after != before)[both], group[both], n_boot),
        "raised_to_top": _mean((after == 1)[below], group[below], n_boot),
        "parse_rate": _mean(np.isfinite(after), group, n_boot),
    }


def equal_gold_rows(
    arm: Arm,
    judged: Sequence[Judgment | None],
    items: Sequence[Example],
    logprobs: Mapping[str, float | None],
    *,
    seed: int,
    n_boot: int = 2000,
) -> list[dict[str, Any]]:
    """Rows of `audit_verbosity` and `audit_self_preference`: slope and correlation of the score at equal gold.

    `judged` (n,) are the judgments of `items` (n,), `logprobs` is what `response_logprobs` found. Items without a score,
    a gold score or a log-probability are left out, and `n` says how many remain. This is what was observed, not what was
    done to a response: of two that deserve the same score the longer one may still say more. Padding says what length does.
    """
    likely = (
        "mean log-probability of a token of the response under the base model, given the instruction (perplexity, arXiv "
        "2410.21819; a proxy: no response is the model's own)"
    )
    features = {
        "verbosity": ({item.id: math.log2(len(item.response)) for item in items}, "log2 of the response's characters"),
        "self_preference": (logprobs, likely),
    }
    rows = []
    for audit, (feature, name) in features.items():
        kept = [
            (item, feature[item.id], _share(item, j.score))
            for item, j in zip(items, judged, strict=True)
            if j is not None and j.score is not None and item.score is not None and feature.get(item.id) is not None
        ]
        found = dict.fromkeys(("slope", "correlation"), intervals.Interval(math.nan, math.nan, math.nan, 0))
        if kept:
            gold = [_share(item, item.score) for item, _, _ in kept]
            group = [item.cluster for item, _, _ in kept]
            x, y = [value for _, value, _ in kept], [score for _, _, score in kept]
            found = metrics.at_equal(x, y, gold, n_boot=n_boot, group=group)
        how = f"greedy, observed at equal gold score; x: {name}; slope: share of the scale for one standard deviation of x"
        rows += _rows(arm, f"audit_{audit}", found, seed, how)
    return rows


def position_row(arm: Arm, results: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The row of `audit_position`: the order swap of evaluate's COMPARED split; of a judge that only scores one response
    at a time it has no value, and the protocol says why."""
    for row in results:
        if (row["arm"], row["split"], row["metric"]) == (arm.name, COMPARED, "position_bias"):
            return dict(row) | {"split": "audit_position"}
    none = intervals.Interval(math.nan, math.nan, math.nan, 0)
    how = "none by construction: the judge sees one response at a time, so there is no order to swap"
    return _rows(arm, "audit_position", {"position_bias": none}, seed, how)[0]


def response_logprobs(
    model: str | Path, items: Sequence[Example], out: Path, settings: Settings
) -> dict[str, float | None]:
    """Mean log-probability in nats of a token of each response, given its instruction, under `model`: {id: value}.

    None where instruction and response are longer than the model's context. Kept in `out`, and read from there when it
    holds all items.
    """
    if out.exists() and {item.id for item in items} <= (found := store.read_json(out)).keys():
        return found
    weights = dict(quantization=settings.quantization, quant_type=settings.quant_type, dtype=settings.dtype)
    loaded, tokenizer = models.load(model, backend=settings.backend, **weights)
    loaded.eval()
    room = loaded.config.get_text_config().max_position_embeddings
    found = dict.fromkeys((item.id for item in items), None)
    rows = []
    for item in items:
        context = prompts.asked_ids(tokenizer, f"### Instruction\n{item.instruction}\n### Response")
        response = tokenizer(prompts.defused(item.response, tokenizer), add_special_tokens=False)["input_ids"]
        if len(context) + len(response) <= room:
            rows.append((item.id, context, response))
    rows.sort(key=lambda row: len(row[2]), reverse=True)
    while rows:
        size = max(1, TOKENS // len(rows[0][2]))
        batch, rows = rows[:size], rows[size:]
        ids, contexts, responses = zip(*batch, strict=True)
        sums = sample.score_candidates(loaded, contexts, [[response] for response in responses])
        found |= {i: round(s[0] / len(r), 6) for i, s, r in zip(ids, sums, responses, strict=True)}
    store.write_json(out, found)
    return found


def _share(item: Example, score: float | None) -> float:
    """A score as a share of its rubric's scale, NaN for none: 4 of 1 to 5 is 0.75."""
    low, high = min(item.rubric.scale), max(item.rubric.scale)
    return math.nan if score is None else round((score - low) / (high - low), 6)


def _mean(values: np.ndarray, group: np.ndarray, n_boot: int) -> intervals.Interval:
    if not len(values):
        return intervals.Interval(math.nan, math.nan, math.nan, 0)
    return metrics.mean(values.astype(float), n_boot=n_boot, group=list(group))


def _rows(
    arm: Arm, split: str, found: Mapping[str, intervals.Interval], seed: int, protocol: str
) -> list[dict[str, Any]]:
    base = dict(arm=arm.name, split=split, seed=seed, iteration=arm.iteration, protocol=protocol)
    return as_rows(base, found)
