"""N judgments of each example, wherever they are drawn: resumed, in order, parsed.

A place is a function: it gets `[(example, indices that are missing)]` for all examples, and yields judgments in lists, each of
which is on disk before the next is asked for. There are three: here (srlib.sample), any OpenAI-compatible server
(srlib.endpoint), and vLLM where it is installed (srlib.vllm). What a place cannot make it leaves out; nothing is made up.

    def place(work):
        for example, missing in work:
            yield [judgment(example, i, "Polite: pass. [RESULT] 3", finished=True) for i in missing]

    collect(place, examples, n=10, temperature=1.0, out=Path("judgments.jsonl"))
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib import prompts
from srlib.files import progress
from srlib.schema import Comparison, Item, Judgment, SrlibError, Verdict

Work = list[tuple[Item, list[int]]]  # every example or comparison, with the indices of its draws that are not there yet
Place = Callable[[Work], Iterator[list[Judgment]]]
Token = tuple[str, float, Mapping[str, float]]  # text, log-probability, {text of a likely token: its log-probability}

UNSEEN = 0.01  # most probability that scores outside a server's list of likely tokens may have together


class DrawsError(SrlibError):
    """Judgments that could not be drawn. What was drawn before is kept; the message says what to do."""


def collect(
    place: Place,
    examples: Sequence[Item],
    *,
    n: int,
    temperature: float,
    out: Path | None = None,
    desc: str = "judge",
) -> list[Judgment]:
    """The N judgments of each example, ordered by example, then index; shorter by what the place left out.

    What stands in the JSONL file `out` is not drawn again; when all is there, the file is put in order, judgments that this
    call did not ask for last. Raises ValueError on several draws at temperature 0.
    """
    if temperature == 0 and n != 1:
        raise ValueError(f"n={n} judgments at temperature 0 are n times the same; set a temperature")
    have: dict[tuple[str, int], Judgment] = {}
    if out is not None and out.exists():
        have = {(row.example_id, row.index): row for row in store.read_rows(out, Judgment, drop_torn_tail=True)}
    work = [(example, [i for i in range(n) if (example.id, i) not in have]) for example in examples]
    with progress(total=len(examples) * n, desc=desc) as bar:
        bar.update(sum(n - len(missing) for _, missing in work))
        for rows in place(work) if any(missing for _, missing in work) else ():
            rows = [row for row in rows if (row.example_id, row.index) not in have]
            if out is not None and rows:
                store.append_rows(out, rows)
            have |= {(row.example_id, row.index): row for row in rows}
            bar.update(len(rows))
    wanted = [(example.id, i) for example in examples for i in range(n)]
    ordered = [have[name] for name in wanted if name in have]
    complete, asked = len(ordered) == len(wanted), set(wanted)
    others = [row for name, row in have.items() if name not in asked]  # of a call for more draws, or other examples
    if out is not None and complete and list(have) != [(row.example_id, row.index) for row in [*ordered, *others]]:
        store.write_rows(out, [*ordered, *others])
    return ordered


def judgment(
    example: Item,
    index: int,
    text: str,
    finished: bool,
    likely: Sequence[Token] = (),
    distributions: bool = False,
    **facts: Any,
) -> Judgment:
    """What was generated, read as a judgment. `likely` are its tokens with log-probabilities, where a place has them;
    `facts` are other fields (tokens, prompt_tokens, ...)."""
    text = text.strip()
    parsed = prompts.parse(text, example, finished)
    if likely:
        facts["logprob"] = mean_logprob(likely)
    if likely and distributions:
        field = "preference_probability" if isinstance(example, Comparison) else "distribution"
        facts[field] = distribution(likely, example.verdicts, parsed.verdict)
    return Judgment(
        example_id=example.id, index=index, text=text, rationale=parsed.rationale, score=parsed.score,
        preference=parsed.preference, failure=parsed.failure, **facts,
    )  # fmt: skip


def too_long(example: Item, index: int, prompt_tokens: int = 0) -> Judgment:
    """The judgment of a prompt that leaves no room for one in the model's context."""
    return Judgment(example_id=example.id, index=index, text="", failure="too_long", prompt_tokens=prompt_tokens)


def seed_of(seed: int, name: str, index: int) -> int:
    """The 31-bit seed of one draw: it depends on (seed, example, index) alone, and every server takes its size."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}\0{index}".encode(), digest_size=4).digest()) >> 1


# ---------------------------------------------------------------- from tokens with log-probabilities


def mean_logprob(tokens: Sequence[Token]) -> float | None:
    """Mean log-probability in nats; None without tokens, or where one of them has no finite number."""
    values = [logprob for _, logprob, _ in tokens]
    return round(sum(values) / len(values), 6) if values and all(map(math.isfinite, values)) else None


def distribution(
    tokens: Sequence[Token], verdicts: Sequence[Verdict], verdict: Verdict | None
) -> dict[Verdict, float] | None:
    """Probabilities of the scores, or of the preferences, where the verdict was written, from the likely tokens there, or None.

    None where they do not tell: no score, a score that takes several tokens, one that begins another (1 and 10), or
    scores that are not on the list and might have more than 1% together.

    >>> tokens = [("[RESULT]", -0.1, {}), (" 3", -0.22, {" 3": -0.22, " 2": -1.63, " x": -9.0})]
    >>> distribution(tokens, (1.0, 2.0, 3.0), 3.0)
    {1.0: 0.0, 2.0: 0.196234, 3.0: 0.803766}
    """
    written = {prompts.spelled(v): v for v in verdicts}
    if verdict is None or any(a != b and b.startswith(a) for a in written for b in written):
        return None
    own = prompts.spelled(verdict)
    end = re.compile(rf"{re.escape(prompts.MARKER)}\s*{re.escape(own)}\s*\Z")
    texts = [text for text, _, _ in tokens]
    ends = (k for k in range(len(texts) - 1, -1, -1) if texts[k].strip() == own)
    last = next((k for k in ends if end.search("".join(texts[: k + 1]))), None)
    if last is None:
        return None
    own, logprob, others = tokens[last]
    likely = {text: math.exp(p) for text, p in ({own: logprob} | dict(others)).items() if p <= 0.01}
    found = dict.fromkeys(verdicts, 0.0)
    for text, probability in likely.items():
        if text.strip() in written:
            found[written[text.strip()]] += probability
    if not found[verdict] or (not all(found.values()) and 1 - sum(likely.values()) > UNSEEN):
        return None
    total = sum(found.values())
    return {v: round(p / total, 6) for v, p in found.items()}
