"""N judgments a prompt, the prompt computed once.

A judge's prompt is several times longer than its judgment, and self-rationalization draws N judgments of each. So the
prompt is read once and its keys and values are kept once; the N rows that continue it attend to that one copy and to
their own tokens (srlib.prefix). Rows that have ended leave, and on a GPU the rows of the next prompt enter. Any architecture with
plain full attention works so (Llama, Qwen, Mistral, ...); the others get a copy of the prompt's keys and values a row,
with the same draws.

Draws are counter-based: the uniform number of a step depends on (seed, example, index, step) alone, so the judgments
are the same whatever the batch size, and wherever a run was interrupted.

    rows = judgments(model, tokenizer, examples, n=10, temperature=1.0, out=Path("judgments.jsonl"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlib import prompts
from srlib.sample import prefix
from srlib.sample.draws import Work, collect
from srlib.schema import Comparison, Item, Judgment

ROWS = 512  # rows that are decoded side by side; prompts in a batch = ROWS / n, and at most PROMPTS
PROMPTS = 128  # more only wait longer for memory: a tiny judge on a CPU judged a quarter faster so
PROMPT_TOKENS = 2**16  # and at most so many tokens of prompts, whose keys and values are kept
# Batches that are decoded in one go, so that prompts enter as others end. A GPU's step costs nearly the same however full
# it is; a processor's costs by the row, and rows of unequal age cost more there (see docs/LOG.md).
POOL = {"cpu": 1, "cuda": 4}
COMPACT = 0.8  # finished rows leave as soon as fewer than this share of the rows is still at work, or one is full


# ---------------------------------------------------------------- decoding


@dataclass
class Draw:
    """One generated row."""

    token_ids: list[int]  # with the end-of-sequence token, where it was reached
    finished: bool
    logprob: float  # mean over the tokens, in nats, of the untempered distribution
    watched: np.ndarray  # (tokens, K) log-probabilities of the watched token ids, before each token was chosen


def uniforms(seed: int, name: str, index: int, n: int) -> np.ndarray:
    """(n,) uniform numbers of one draw, from a counter-based generator keyed by what the draw is called."""
    key = hashlib.blake2b(f"{seed}\0{name}\0{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(n)


def decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    owner: Sequence[int],
    *,
    max_new_tokens: int,
    eos: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    draws: np.ndarray | None = None,
    watch: Sequence[int] = (),
    ends: Sequence[int] = (),
    at_once: int = 0,
) -> list[Draw]:
    """Continue P prompts (lists of token ids) by R rows; `owner` (R,) ascending says which prompt each row continues.

    A row ends with `eos`, or with one of `ends`, which is written down as `eos`. Greedy at temperature 0; else `draws`
    (R, max_new_tokens) holds the uniform numbers. `at_once` prompts are continued side by side (0: all of them): when the
    rows of one have ended, the next one's enter. Returns R draws in row order.
    """
    import torch

    device, n_prompts, at_once = model.device, len(rows), at_once or len(rows)
    owner = np.asarray(owner)
    begins = np.searchsorted(owner, np.arange(n_prompts + 1))  # row begins[p] is the first of prompt p
    u = None if draws is None else torch.as_tensor(draws, dtype=torch.float32, device=device)
    last = torch.tensor([row[-1] for row in rows], device=device)[torch.as_tensor(owner, device=device)]
    start = torch.tensor([len(row) - 1 for row in rows], device=device)[torch.as_tensor(owner, device=device)]
    watched_ids, ending = (torch.tensor(ids, dtype=torch.long, device=device) for ids in (list(watch), [eos, *ends]))
    # The column behind the last is for rows that are full and wait until they leave.
    out = torch.full((len(owner), max_new_tokens + 1), eos, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(owner), max_new_tokens + 1, device=device)
    watched = torch.zeros(len(owner), max_new_tokens + 1, len(watch), device=device)

    def entering(room: int) -> tuple[Sequence[Sequence[int]], np.ndarray, Any]:
        """The next prompts, whose each of their rows is, and the numbers of these rows."""
        nonlocal entered
        first, entered = entered, min(entered + room, n_prompts)
        own = slice(begins[first], begins[entered])
        return rows[first:entered], owner[own] - first, torch.arange(own.start, own.stop, device=device)

    entered, longest = 0, max(map(len, rows)) + max_new_tokens
    with torch.inference_mode():
        while entered < n_prompts:
            first_prompts, whose, line = entering(at_once)
            with prefix.reading(model, first_prompts, whose, longest) as past:
                token, step = last[line], torch.zeros_like(line)  # `line`: the row that each line of the batch is
                done = torch.zeros_like(line, dtype=torch.bool)
                while len(line):
                    logits = past.read(token[:, None], (start[line] + step)[:, None])[:, -1].float()
                    token = _choose(logits, temperature, top_p, None if u is None else u[line, step])
                    ended = torch.isin(token, ending)
                    at = torch.where(done, max_new_tokens, step)
                    out[line, at] = torch.where(ended, eos, token)
                    total = logits.logsumexp(-1, keepdim=True)
                    logprobs[line, at] = (logits.gather(1, token[:, None]) - total)[:, 0]
                    if len(watch):
                        watched[line, at] = logits[:, watched_ids] - total
                    done |= ended | (step == max_new_tokens - 1)
                    step = (step + 1).clamp(max=max_new_tokens - 1)
                    n_left = len(done) - int(done.sum())
                    full = (
                        past.takes_more and past.width >= max_new_tokens
                    )  # then tables would outgrow the longest judgment
                    if n_left >= (len(done) if full else COMPACT * len(done)):
                        continue
                    stay = (~done).nonzero()[:, 0]
                    line, token, step = line[stay], token[stay], step[stay]
                    if n_left:
                        past.keep(stay)
                        if past.takes_more and entered < n_prompts and past.n_prompts < at_once:
                            more, whose, new = entering(at_once - past.n_prompts)
                            past.enter(more, whose)
                            line, token = torch.cat([line, new]), torch.cat([token, last[new]])
                            step = torch.cat([step, torch.zeros_like(new)])
                    done = torch.zeros_like(line, dtype=torch.bool)
    return _collect(*(part[:, :max_new_tokens].cpu().numpy() for part in (out, logprobs, watched)), eos)


def _choose(logits: Any, temperature: float, top_p: float, u: Any) -> Any:
    """Greedy, or inverse-CDF sampling with one uniform number a row: (R, V), (R,) -> (R,)."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    p = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    cdf = p.cumsum(-1)
    u = u.clamp(max=1 - 2**-24)  # in fp32 a number next to 1 became 1, which lies behind every token
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=p.shape[-1] - 1)


def _collect(ids: np.ndarray, logprobs: np.ndarray, watched: np.ndarray, eos: int) -> list[Draw]:
    ended = ids == eos
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, ids.shape[1])
    return [
        Draw(ids[i, :n].tolist(), bool(ids[i, n - 1] == eos), float(logprobs[i, :n].mean()), watched[i, :n])
        for i, n in enumerate(lengths)
    ]


# ---------------------------------------------------------------- the score's distribution


def candidates(tokenizer: Any, item: Item, rationale: str = "") -> tuple[list[int], list[list[int]]]:
    """How the verdicts that an item can get are written after a rationale: the ids that all share, and the rest of each.

    A five-point scale: `([... marker ids], [[id of 1], [id of 2], ...])`; steps of .25 take several tokens each.
    """
    texts = [prompts.completion(rationale, verdict) for verdict in item.verdicts]
    written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    shared = 0
    while all(len(ids) > shared + 1 for ids in written) and len({ids[shared] for ids in written}) == 1:
        shared += 1
    return written[0][:shared], [ids[shared:] for ids in written]


def _distribution(item: Item, logprobs: Sequence[float]) -> dict[str, Any]:
    """The fields of a judgment that its verdicts' log-probabilities make: of each verdict, and of all together."""
    weights = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    rounded = [round(p, 6) for p in (weights / weights.sum()).tolist()]  # as it will be read back from a file
    of_verdict = dict(zip(item.verdicts, rounded, strict=True))
    if isinstance(item, Comparison):
        return {"preference_probability": of_verdict}
    return {"distribution": of_verdict, "on_scale": round(min(float(np.exp(logprobs).sum()), 1.0), 6)}


def score_candidates(
    model: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-probability of each continuation of each context, the context computed once: K_i numbers for context i."""
    import torch

    owner = [i for i, options in enumerate(continuations) for _ in options]
    flat = [list(option) for options in continuations for option in options]
    width = max(map(len, flat))
    with torch.inference_mode(), prefix.reading(model, contexts, owner, max(map(len, contexts)) + width) as past:
        # The input is the context's last token and all but the last of the continuation.
        ids = torch.zeros(len(flat), width, dtype=torch.long, device=model.device)
        for i, option in enumerate(flat):
            ids[i, : len(option)] = torch.tensor([contexts[owner[i]][-1], *option[:-1]])
        start = torch.tensor([len(contexts[i]) - 1 for i in owner], device=model.device)
        positions = start[:, None] + torch.arange(width, device=model.device)
        logprobs = torch.log_softmax(past.read(ids, positions).float(), -1)
    found: list[list[float]] = [[] for _ in contexts]
    for i, option in enumerate(flat):
        picked = logprobs[i, range(len(option)), option]
        found[owner[i]].append(float(picked.sum()))
    return found


def score_distributions(
    model: Any, tokenizer: Any, asked: Sequence[tuple[Item, Sequence[int], str]]
) -> list[dict[str, Any]]:
    """Probability of each verdict that an item can get, after its prompt (token ids) and a rationale, at temperature 1, as
    fields of a judgment.

        [(example, prompt_ids, "Polite: pass.")] -> [{"distribution": {1.0: 0.1, 2.0: 0.9}, "on_scale": 1.0}]
    """
    found: list[dict[str, Any]] = []
    for start in range(0, len(asked), 32):
        part = asked[start : start + 32]
        written = [candidates(tokenizer, item, rationale) for item, _, rationale in part]
        contexts = [[*ids, *shared] for (_, ids, _), (shared, _) in zip(part, written, strict=True)]
        ended = [[[*option, tokenizer.eos_token_id] for option in rest] for _, rest in written]  # or 2 would begin 2.25
        logprobs = score_candidates(model, contexts, ended)
        found += [_distribution(item, own) for (item, _, _), own in zip(part, logprobs, strict=True)]
    return found


# ---------------------------------------------------------------- judgments


class Pool(NamedTuple):
    """Prompts that are decoded in one go, `at_once` of them side by side, and how."""

    prompts: list[tuple[Item, list[int], range]]  # with their token ids, and which of their draws
    at_once: int
    seed: int
    distributions: bool
    settings: dict[str, Any]


def judgments(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Item],
    *,
    template: str = "brief",
    n: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 0,
    distributions: bool = True,
    out: Path | None = None,
    desc: str = "judge",
) -> list[Judgment]:
    """N judgments of each example or comparison, ordered by it, then index; greedy at temperature 0 (then n is 1).

    With `out`, every batch is appended to that JSONL file at once and what stands there
    already is not computed again; when all is there, the file is put in order. `batch_size` counts prompts (0: ROWS / n).
    `distributions` adds the probability of each score of the rubric's scale after the rationale (arXiv 2312.09300). A prompt
    that leaves no room for a judgment in the model's context gets judgments that failed as `too_long`.
    """
    model.eval()
    batches = POOL.get(model.device.type, 1)
    settings = dict(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, eos=tokenizer.eos_token_id)

    def place(work: Work) -> Iterator[list[Judgment]]:
        # Pools are cut from all examples and computed as a whole, what is there already included: sums over another
        # batch differ in their last bits, and now and then that draws another token.
        todo = [(example, prompts.prompt_ids(tokenizer, example, template), range(n)) for example, _ in work]
        missing = {(example.id, i) for example, indices in work for i in indices}
        pools = [
            Pool(pool, at_once, seed, distributions, settings)
            for pool, at_once in _pools(todo, batch_size or max(1, min(ROWS // n, PROMPTS)), batches)
            if any((example.id, i) in missing for example, _, indices in pool for i in indices)
        ]
        yield from (list(_judge_pool(model, tokenizer, pool)) for pool in pools)

    return collect(place, examples, n=n, temperature=temperature, out=out, desc=desc)


def _pools(todo: list, batch_size: int, batches: int) -> Iterator[tuple[list, int]]:
    """Prompts to be decoded in one go, and how many of them side by side, a `batches`th. Similar lengths stand together, the
    longest first: if memory is short, that shows at once."""
    todo = sorted(todo, key=lambda item: len(item[1]), reverse=True)
    while todo:
        at_once = min(batch_size, max(1, PROMPT_TOKENS // len(todo[0][1])))  # all are padded to the first
        yield todo[: batches * at_once], at_once
        todo = todo[batches * at_once :]


def _ends(model: Any) -> list[int]:
    """What ends a text by the model's own settings: one token or several, beside the end of a turn."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _judge_pool(model: Any, tokenizer: Any, given: Pool) -> Iterator[Judgment]:
    pool, at_once, seed, distributions, settings = given
    settings = settings | {"at_once": at_once, "ends": _ends(model)}
    room = model.config.get_text_config().max_position_embeddings - settings["max_new_tokens"]
    for example, ids, missing in pool:
        if len(ids) > room:
            for i in missing:
                yield Judgment(example_id=example.id, index=i, text="", failure="too_long", prompt_tokens=len(ids))
    pool = [item for item in pool if len(item[1]) <= room]
    if not pool:
        return
    owner = [p for p, (_, _, missing) in enumerate(pool) for _ in missing]
    wanted = [(example, ids, i) for example, ids, missing in pool for i in missing]
    draws = None
    if settings["temperature"] > 0:
        draws = np.stack([uniforms(seed, example.id, i, settings["max_new_tokens"]) for example, _, i in wanted])
    options = [candidates(tokenizer, example) for example, _, _ in pool] if distributions else []
    watch = sorted({ids[0] for _, rest in options for ids in rest if all(len(r) == 1 for r in rest)})
    found = decode(model, [ids for _, ids, _ in pool], owner, draws=draws, watch=watch, **settings)

    rows, unscored = [], []
    for p, (example, ids, i), draw in zip(owner, wanted, found, strict=True):
        text = tokenizer.decode(draw.token_ids, skip_special_tokens=True).strip()
        parsed = prompts.parse(text, example, draw.finished)
        row = dict(example_id=example.id, index=i, text=text, tokens=len(draw.token_ids), prompt_tokens=len(ids))
        row |= dict(rationale=parsed.rationale, score=parsed.score, preference=parsed.preference)
        row |= dict(failure=parsed.failure, logprob=round(draw.logprob, 6))
        if distributions and parsed.verdict is not None:
            rest = [option[0] for option in options[p][1]] if all(len(o) == 1 for o in options[p][1]) else []
            verdict = len(draw.token_ids) - 2  # the token before the end-of-sequence token
            if rest and draw.token_ids[verdict] in rest:
                row |= _distribution(example, [draw.watched[verdict, watch.index(token)] for token in rest])
            else:
                unscored.append((len(rows), p))
        rows.append(row)
    asked = [(pool[p][0], pool[p][1], rows[k]["rationale"]) for k, p in unscored]
    for (k, _), fields in zip(unscored, score_distributions(model, tokenizer, asked), strict=True):
        rows[k] |= fields
    for row in rows:
        yield Judgment(**row)
