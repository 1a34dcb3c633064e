"""Which split a row goes to, samples of splits, and their gold scores in numbers.

Hashes of ids, instructions and the seed decide, so the same rows make the same splits on every machine and in any order."""

import hashlib
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from srlib.schema import Comparison, Example, Item

NAMES = ("train", "validation", "test", "ood", "train_pairwise", "pairwise")  # Comparisons in the last two
HINTS = {  # words of `split_hint`, or of a folder's split; the first that fits counts
    "ood": ("ood", "unseen question", "unseen questions"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "bench", "eval", "evaluation", "holdout", "held out", "unseen answer", "unseen answers"),
    "train": ("train", "training"),
}


def hinted(hint: Any) -> str:
    """The split that a hint names, or "": `"bench_unseen_answers" -> "test"`, `"filtered" -> ""`."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', str(hint or '').lower()))} "
    return next((split for split, known in HINTS.items() if any(f" {word} " in words for word in known)), "")


def split_of(row: Item, seen: dict[str, str]) -> str:
    """The split of a row: its hint's; else that of the hinted examples of its group; of a comparison, that of any example with
    its instruction or group; else by a hash of its group (80% train, 10% validation, 10% test), which is the instruction if
    a row names none. `seen` collects the splits of examples: no group crosses once it has seen all hints and examples."""
    keys, pair = [_hash(row.instruction), _hash(row.cluster)], isinstance(row, Comparison)
    hint = hinted(row.meta.get("split_hint"))
    follows = (f"hint {keys[1]}", f"hint {keys[0]}", *keys) if pair else (f"hint {keys[1]}",)
    split = hint or next((seen[key] for key in follows if key in seen), "")
    split = split or {0: "test", 1: "validation"}.get(int(keys[1][:8], 16) % 10, "train")
    if pair:
        return "train_pairwise" if split == "train" else "pairwise"
    places = [f"hint {key}" for key in keys] if hint else keys
    seen |= {key: split for key in places if seen.get(key, "train") == "train"}  # of two splits, the one to measure on
    return split


def sample(rows: Sequence[Any], size: float, seed: int) -> list[Any]:
    """The `size` rows with the smallest hashes of seed and id (all if there are no more), in their order."""
    if len(rows) <= size:
        return list(rows)
    chosen = sorted(range(len(rows)), key=lambda i: _hash(f"{seed} {rows[i].id}"))[:size]
    return [rows[i] for i in sorted(chosen)]


def complete(splits: dict[str, list[Any]], n_validation: int, n_test: float, seed: int) -> dict[str, int]:
    """Carve a test and a validation split out of train if absent; `{"moved to test": 12, "moved to validation": 0}`.
    Rows without any hint that leave train or test empty, as those of few prompts may, go to train first."""
    examples = [row for name in NAMES[:4] for row in splits[name]]
    incomplete = examples and not (splits["train"] and splits["test"])
    if incomplete and not any(hinted(row.meta.get("split_hint")) for row in examples):
        near = {key for e in examples for key in (e.cluster, e.instruction)}
        free = [row for row in splits["pairwise"] if not hinted(row.meta.get("split_hint"))]
        follow = {row.id: row for row in free if near & {row.cluster, row.instruction}}
        rest = [row for row in splits["pairwise"] if row.id not in follow]
        splits |= {"train": examples, "validation": [], "test": [], "pairwise": rest}
        splits["train_pairwise"] = [*splits["train_pairwise"], *follow.values()]
    counts = {}
    for name, n in (("test", n_test), ("validation", n_validation)):
        if empty := not splits[name]:
            carve(splits, min(n, len(splits["train"]) // 5), seed, name)
        counts[f"moved to {name}"] = len(splits[name]) if empty else 0
    return counts


def carve(splits: dict[str, list[Any]], n: int, seed: int, name: str) -> None:
    """Make a split of about `n` rows of train: whole prompts with their comparisons. If each prompt has more rows than that,
    validation gets single rows, and test the smallest prompt, unless it is the only one."""
    train, chosen, wanted = splits["train"], set(), n
    sizes = Counter(row.cluster for row in train)
    order = sorted(sizes, key=lambda group: _hash(f"{seed} {group}"))
    for group in order:
        if sizes[group] <= wanted:
            chosen.add(group)
            wanted -= sizes[group]
    if not chosen and name == "test" and len(order) > 1:
        chosen = {min(order, key=sizes.get)}
    ids = set() if chosen or name == "test" else {row.id for row in sample(train, n, seed)}
    texts = chosen | {row.instruction for row in train if row.cluster in chosen}  # a comparison may name no group
    for source, target in (("train", name), ("train_pairwise", "pairwise")):
        keys = texts if target == "pairwise" else chosen
        moving = [row for row in splits[source] if row.id in ids or keys & {row.cluster, row.instruction}]
        splits[target], moved = [*splits[target], *moving], {row.id for row in moving}
        splits[source] = [row for row in splits[source] if row.id not in moved]


def balanced(examples: Sequence[Example], seed: int = 0, limit: float = math.inf) -> list[Example]:
    """As many rows of each score as of the rarest one, within each source and scale, in their order: of 60 rows scored 5, 30
    scored 4 and 10 scored 1, ten of each. `limit` shrinks all classes by one factor."""
    kinds: Any = defaultdict(lambda: defaultdict(list))  # (source, scale) -> score -> its rows
    for e in examples:
        kinds[str(e.meta.get("source") or "unnamed"), e.rubric.scale][e.score].append(e)
    classes = [(min(map(len, scores.values())), *scores.values()) for scores in kinds.values()]
    share = min(1.0, limit / max(1, sum(n * len(rows) for n, *rows in classes)))
    kept = {e.id for n, *scores in classes for rows in scores for e in sample(rows, int(n * share + 1e-9), seed)}
    return [e for e in examples if e.id in kept]


def baselines(train: Sequence[Example], rows: Sequence[Example]) -> Iterator[tuple[str, list[float]]]:
    """Scores without a judge, on each row's own scale: the mean gold score of the same question (of all rows for a new
    question), relative to the scale, and the share of the reference's words that the response has."""

    def nearest(e: Example, share: float) -> float:
        low, high = e.rubric.scale[0], e.rubric.scale[-1]
        return min(e.rubric.scale, key=lambda score: abs(score - (low + share * (high - low))))

    relative: dict[str, list[float]] = defaultdict(list)
    for e in train:
        low, high = e.rubric.scale[0], e.rubric.scale[-1]
        relative[e.instruction].append((e.score - low) / (high - low))
    overall = [value for values in relative.values() for value in values]
    yield "question_mean", [nearest(e, statistics.fmean(relative.get(e.instruction, overall))) for e in rows]
    words = [[set(re.findall(r"\w+", (text or "").lower())) for text in (e.reference_answer, e.response)] for e in rows]
    yield "word_overlap", [nearest(e, len(a & b) / max(1, len(a))) for e, (a, b) in zip(rows, words, strict=True)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
