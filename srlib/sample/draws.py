"""N judgments of each item, from a model or a server: parsed, in order, on disk at once, resumed.

A source gets [(item, indices of its missing draws), ...] and yields lists of judgments, each on disk before the next. Where
`cfg.gpus` processes execute a stage together, each computes every so many-th batch and writes a file of its own."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlib import config, files, prompts
from srlib.schema import Item, Judgment, SrlibError
from srlib.stats.intervals import Interval, mean

Work = list[tuple[Item, list[int]]]  # all items, each with the indices of its missing draws
Source = Callable[[Work, int, int], Iterator[list[Judgment]]]  # (work, k, n) -> batches k, k + n, k + 2n, ...


class DrawsError(SrlibError):
    """Judgments that could not be drawn. Those drawn before are kept; the message says what to do."""

    exit_status = 1


@dataclass(frozen=True)
class Sampling:
    """How judgments are drawn: greedily at temperature 0, and then n is 1."""

    template: str = "brief"  # empty: the instruction alone, for a free text
    shots: tuple[Item, ...] = ()  # items whose gold judgments stand before every prompt
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    distributions: bool = True  # add the distribution of the verdict after each rationale
    batch_size: int = 0  # prompts decoded side by side; 0: as many as make 512 rows, at most 128

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n != 1:
            raise ValueError(f"n={self.n} judgments at temperature 0 are n times the same; set a temperature")


def collect(source: Source, items: Sequence[Item], n: int, out: Path | None = None, desc: str = "") -> list[Judgment]:
    """The N judgments of each item, ordered by item, then index, without those that the source left out. Judgments in the
    JSONL file `out` are not drawn again. Once it is complete, the file is put in the same order, other judgments last.
    Processes that execute a stage together draw a part each and return all. SrlibError if two items have one id."""
    if twice := [name for name, times in Counter(item.id for item in items).items() if times > 1]:
        raise SrlibError(f"several items have id {files.shorten(twice[0])} ({len(twice)} ids in all); make ids unique")
    wanted = dict.fromkeys((item.id, i) for item in items for i in range(n))
    have, (k, together) = _read(out), config.together()
    if out is None or wanted.keys() <= have.keys():
        k, together = 0, 1  # there is nothing to share; the other processes may have ended
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "")  # a process of an earlier launch, thought dead, may still write
    target = out if together == 1 else out.with_name(f".{out.name}.{launch}.{k}-of-{together}")
    for path in parts(out):
        if path == target or f".{launch}." not in path.name or together == 1:  # skip what others are writing now
            have |= _read(path)
    work = [(item, [i for i in range(n) if (item.id, i) not in have]) for item in items]
    missing = sum(len(indices) for _, indices in work)
    with files.progress(total=len(items) * n, desc=desc) as bar:
        bar.update(len(items) * n - missing)
        for rows in source(work, k, together) if missing else ():
            new = {(row.example_id, row.index): row for row in rows if (row.example_id, row.index) not in have}
            if target is not None and new:
                files.append_rows(target, list(new.values()))
            have |= new
            bar.update(len(new) * together)

    def put_together() -> None:
        written = parts(out)
        for path in written:
            have.update(_read(path))
        whole = {key: have[key] for key in wanted if key in have} | have
        if written or (out is not None and wanted.keys() <= have.keys() and list(whole) != list(have)):
            files.write_rows(out, whole.values())
        for path in written:
            path.unlink(missing_ok=True)  # another process may have been faster

    files.meet(out or Path(), k, together, put_together)
    have |= _read(out) if k else {}
    return [have[key] for key in wanted if key in have]


def _read(path: Path | None) -> dict[tuple[str, int], Judgment]:
    rows = files.read_rows(path, Judgment, drop_torn_tail=True) if path is not None and path.exists() else []
    return {(row.example_id, row.index): row for row in rows}


def parts(out: Path | None) -> list[Path]:
    """The part files beside `out`, one for each process of any launch."""
    beside = out.parent.iterdir() if out is not None and out.parent.is_dir() else ()
    return [path for path in beside if re.fullmatch(rf"\.{re.escape(out.name)}\.(.+\.)?\d+-of-\d+", path.name)]


def tokens_of(*made: Sequence[Judgment]) -> dict[str, int | None]:
    """Tokens of some passes of judgments, as a stage records them: `{"prompt_tokens": 90, "drawn_tokens": 50}`. A pass reads each
    prompt once; None if a server did not count."""
    read = sum(sum({j.example_id: j.prompt_tokens for j in several}.values()) for several in made)
    written = sum(j.tokens for several in made for j in several)
    return {"prompt_tokens": read if read or not any(made) else None, "drawn_tokens": written}


def judgment(item: Item, index: int, text: str, finished: bool, **fields: Any) -> Judgment:
    """Parse generated text into a judgment; `fields` are its other fields (tokens, logprob, ...)."""
    parsed = prompts.parse(text.strip(), item, finished)
    kind = "preference" if isinstance(parsed.verdict, str) else "score"
    fields |= {kind: parsed.verdict, "failure": parsed.failure}
    return Judgment(example_id=item.id, index=index, text=text.strip(), rationale=parsed.rationale, **fields)


def too_long(item: Item, index: int, prompt_tokens: int = 0) -> Judgment:
    """The judgment of a prompt that leaves no room for one in the model's context."""
    return Judgment(example_id=item.id, index=index, text="", failure="too_long", prompt_tokens=prompt_tokens)


def uniforms(seed: int, name: str, index: int, n: int) -> np.ndarray:
    """(n,) uniform numbers of draw `index` of item `name`, from a counter-based generator: they depend on nothing else."""
    key = hashlib.blake2b(f"{seed}\0{name}\0{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(n)


class Redrawn(NamedTuple):
    """A judgment whose rationale was kept and whose verdict was drawn again k times."""

    id: str
    example_id: str
    entropy: float  # of the verdict, in nats: 0 if the rationale leaves no doubt, log(K) if it says nothing
    flip_rate: float  # exact probability that a redraw ends in another verdict
    flips: bool  # more than half of the k redraws do


def redraw(judgments: Sequence[Judgment], k: int, seed: int) -> list[Redrawn]:
    """Draw each verdict k times more after the same rationale: does it follow from that? (Asked by reviewers of arXiv
    2410.05495.) Draws depend on (seed, judgment) alone. Judgments without a verdict are left out, others need a distribution."""
    redrawn = []
    for j in [j for j in judgments if j.verdict is not None]:
        if not (distribution := j.distribution or j.preference_probability):
            raise ValueError(f"judgment {j.id} holds no distribution of its verdict; call sample.filled first")
        p, written = np.array(list(distribution.values())), list(distribution).index(j.verdict)
        drawn = np.searchsorted(p.cumsum(), uniforms(seed, f"redraw {j.id}", 0, k) * p.sum(), side="right")
        entropy = float(-(p[p > 0] * np.log(p[p > 0])).sum())
        redrawn.append(Redrawn(j.id, j.example_id, entropy, 1 - p[written], bool((drawn != written).mean() > 0.5)))
    return redrawn


def flip_summary(redrawn: Sequence[Redrawn], n_boot: int = 2000, group: Any = None) -> dict[str, Interval]:
    """Mean `entropy`, `flip_rate` and `flips`, each with a bootstrap interval over examples: an example counts once, by the
    mean of its judgments. `group` maps an example's id to its cluster."""
    of_example: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for r in redrawn:
        of_example[r.example_id].append((r.entropy, r.flip_rate, r.flips))
    columns = np.array([np.mean(several, axis=0) for several in of_example.values()]).T
    clusters = [group[name] for name in of_example] if group else None
    return {name: mean(columns[i], n_boot, group=clusters) for i, name in enumerate(("entropy", "flip_rate", "flips"))}
