"""N judgments of each prompt from a model in this process, the prompt computed once, and the distribution of each verdict.

A prompt is several times longer than a judgment: the N rows that continue it attend to a single copy of its keys and values
(prefix.py). Draws are counter-based: the uniform number of a step depends on (seed, item, index, step) alone, so the
judgments are the same for any batch size and after any interruption."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from srlib import prompts
from srlib.sample.draws import Sampling, Work, collect, judgment, too_long, uniforms
from srlib.sample.prefix import Prompts
from srlib.sample.ways import reading
from srlib.schema import Comparison, Item, Judgment

ROWS = 512  # rows decoded side by side: ROWS / n prompts, at most PROMPTS
PROMPTS = 128  # more are slower: the tiny judge on a CPU by a quarter
PROMPT_TOKENS = 2**16  # most prompt tokens of a batch, padding included: their keys and values are kept
COMPACT = 0.8  # rows that have ended leave once fewer than this share of the batch is unfinished
VERDICT = 32  # tokens that a verdict alone takes at most
BATCH = 32  # most rationales whose verdicts are scored side by side
CANDIDATES = 256  # most verdicts scored side by side, because each has its own logits: a scale from 0 to 100 has 101


class Draw(NamedTuple):
    """One generated row."""

    token_ids: list[int]  # with the end-of-sequence token if it was reached
    finished: bool
    logprob: float  # mean over the tokens, in nats, at temperature 1
    watched: np.ndarray  # (tokens, K) log-probabilities of the watched token ids, before each token was chosen


@torch.inference_mode()
def decode(
    model: Any,
    prompt_ids: Prompts,
    owner: Sequence[int],
    *,
    max_new_tokens: int,
    eos: int,
    ends: Sequence[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    draws: np.ndarray | None = None,
    watch: Sequence[int] = (),
) -> list[Draw]:
    """Continue P prompts (token ids) by R rows; `owner` (R,), ascending, names the prompt that each row continues. A row ends
    with `eos`, or with one of `ends`, which is recorded as `eos`. Greedy at temperature 0; otherwise `draws`
    (R, max_new_tokens) holds the uniform numbers. Returns R draws in row order."""
    device, n_rows = model.device, len(owner)
    rows = torch.as_tensor(owner, device=device)
    start = torch.tensor([len(ids) - 1 for ids in prompt_ids], device=device)[rows]
    token = torch.tensor([ids[-1] for ids in prompt_ids], device=device)[rows]
    uniform = None if draws is None else torch.as_tensor(draws, dtype=torch.float32, device=device)
    ending, watch = (torch.tensor(ids, dtype=torch.long, device=device) for ids in ([eos, *ends], list(watch)))
    out = torch.full((n_rows, max_new_tokens), eos, device=device)
    logprobs = torch.zeros(n_rows, max_new_tokens, device=device)
    watched = torch.zeros(n_rows, max_new_tokens, len(watch), device=device)
    line, done = torch.arange(n_rows, device=device), torch.zeros(n_rows, dtype=torch.bool, device=device)
    with reading(model, prompt_ids, owner, max(map(len, prompt_ids)) + max_new_tokens) as past:
        for step in range(max_new_tokens):
            logp = past.read(token[:, None], (start[line] + step)[:, None])[:, -1].float().log_softmax(-1)
            token = _choose(logp, temperature, top_p, None if uniform is None else uniform[line, step])
            ended = torch.isin(token, ending)
            out[line, step] = torch.where(ended, eos, token)
            logprobs[line, step] = logp.gather(1, token[:, None])[:, 0]
            watched[line, step] = logp[:, watch]
            done |= ended
            unfinished = len(done) - int(done.sum())
            if unfinished == 0:
                break
            if unfinished < COMPACT * len(done):
                stay = (~done).nonzero()[:, 0]
                line, token, done = line[stay], token[stay], done[stay]
                past.keep(stay)
    out, logprobs, watched = (table.cpu().numpy() for table in (out, logprobs, watched))
    lengths = np.where((out == eos).any(1), (out == eos).argmax(1) + 1, max_new_tokens)
    tables = zip(lengths, out, logprobs, watched, strict=True)
    return [Draw(ids[:n].tolist(), bool(ids[n - 1] == eos), float(p[:n].mean()), w[:n]) for n, ids, p, w in tables]


def _choose(logp: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor | None) -> torch.Tensor:
    """Greedy, or the inverse of the cumulative distribution at one uniform number a row: (R, V), (R,) -> (R,)."""
    if temperature == 0:
        return logp.argmax(-1)
    p = logp.exp() if temperature == 1 else torch.softmax(logp / temperature, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    cdf = p.cumsum(-1)
    uniform = uniform.clamp(max=1 - 2**-24)  # a number next to 1 became 1 in fp32, which lies behind every token
    return torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=p.shape[-1] - 1)


def judgments(
    model: Any, tokenizer: Any, items: Sequence[Item], *, out: Path | None = None, desc: str = "judge", **sampling: Any
) -> list[Judgment]:
    """N judgments of each example or comparison, ordered by item, then index (arXiv 2410.05495).
    `sampling` are the fields of `Sampling`: template, shots, n, temperature, top_p, max_new_tokens, seed,
    distributions, batch_size. Every batch is appended to the JSONL file `out` at once, and what it holds is not
    computed again. A prompt that leaves no room for a judgment gets judgments that failed as `too_long`."""
    s = Sampling(**sampling)
    model.eval()

    def source(work: Work, k: int, together: int) -> Iterator[list[Judgment]]:
        # Cut batches from all items, similar lengths together, and compute them as a whole, even if some of it is on disk:
        # sums over a batch of another shape differ in their last bits, and now and then that draws another token.
        todo = [(item, prompts.prompt_ids(tokenizer, item, s.template, s.shots)) for item, _ in work]
        todo.sort(key=lambda pair: len(pair[1]), reverse=True)  # if memory is short, that shows at once
        missing, number = {item.id for item, indices in work if indices}, 0
        while todo:
            size = s.batch_size or max(1, min(ROWS // s.n, PROMPTS))
            size = min(size, max(1, PROMPT_TOKENS // len(todo[0][1])))
            batch, todo, number = todo[:size], todo[size:], number + 1
            if number % together == k and any(item.id in missing for item, _ in batch):
                yield _judge(model, tokenizer, batch, s)

    return collect(source, items, s.n, out, desc)


def _judge(model: Any, tokenizer: Any, batch: list[tuple[Item, list[int]]], s: Sampling) -> list[Judgment]:
    """All judgments of some items, given with the token ids of their prompts."""
    room = longest_text(model) - s.max_new_tokens
    rows = [too_long(item, i, len(ids)) for item, ids in batch if len(ids) > room for i in range(s.n)]
    batch = [(item, ids) for item, ids in batch if len(ids) <= room]
    if not batch:
        return rows
    wanted = [(p, item, i) for p, (item, _) in enumerate(batch) for i in range(s.n)]
    draws = np.stack([uniforms(s.seed, item.id, i, s.max_new_tokens) for _, item, i in wanted])
    verdicts = [candidates(tokenizer, item, ids)[1] if s.distributions else [] for item, ids in batch]
    single = [[ids[0] for ids in rest] if all(len(ids) == 1 for ids in rest) else [] for rest in verdicts]
    watch = sorted({token for tokens in single for token in tokens})
    ends = [token for token in np.ravel(model.generation_config.eos_token_id) if token is not None]  # often several
    settings = dict(eos=tokenizer.eos_token_id, ends=ends, max_new_tokens=s.max_new_tokens, watch=watch, draws=draws)
    settings |= dict(temperature=s.temperature, top_p=s.top_p)
    drawn = decode(model, [ids for _, ids in batch], [p for p, _, _ in wanted], **settings)
    for (p, item, i), draw in zip(wanted, drawn, strict=True):
        text, n = tokenizer.decode(draw.token_ids, skip_special_tokens=True), len(draw.token_ids)
        facts = dict(tokens=n, prompt_tokens=len(batch[p][1]), logprob=round(draw.logprob, 6))
        row = judgment(item, i, text, draw.finished, **facts)
        # Not after "4.0" or a 10 of two tokens, whose last token looks like the score 0
        plain = row.verdict is not None and row.text.endswith(f" {prompts.spelled(row.verdict)}") and single[p]
        if plain and draw.token_ids[n - 2] == single[p][item.verdicts.index(row.verdict)]:  # before the end of sequence
            logprobs = [draw.watched[n - 2, watch.index(token)] for token in single[p]]
            row = row.model_copy(update=verdict_fields(item, logprobs))
        rows.append(row)
    items = {item.id: item for item, _ in batch}
    return filled(model, tokenizer, items, rows, s.template, s.shots) if s.distributions else rows


def longest_text(model: Any) -> float:
    """Tokens that a model reads at most; a model that names no limit attends by distance, at any length."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or math.inf


def candidates(tokenizer: Any, item: Item, ids: list[int], rationale: str = "") -> tuple[list[int], list[list[int]]]:
    """Token ids of the item's verdicts as written after the prompt `ids` and a rationale: those that all begin with, and the
    rest of each, as in `([... marker ids], [[id of 1], [id of 2], ...])`; scores in steps of .25 take several tokens each."""
    end = tokenizer.decode(ids[-1:])  # of the prompt: sentencepiece writes a text otherwise where nothing precedes it
    texts = [prompts.defused(prompts.completion(rationale, verdict), tokenizer) for verdict in item.verdicts]
    before, *written = (tokenizer(end + text, add_special_tokens=False)["input_ids"] for text in ["", *texts])
    written, shared = [ids[len(before) :] for ids in written], 0
    while all(len(ids) > shared + 1 for ids in written) and len({ids[shared] for ids in written}) == 1:
        shared += 1
    return written[0][:shared], [ids[shared:] for ids in written]


def verdict_fields(item: Item, logprobs: Sequence[float]) -> dict[str, Any]:
    """Log-probabilities of the item's verdicts as fields of a judgment: `{"distribution": {1.0: 0.2, ...}, "on_scale": 0.98}`."""
    weights = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    rounded = [round(p, 6) for p in (weights / weights.sum()).tolist()]  # as they will be read back from a file
    distribution = dict(zip(item.verdicts, rounded, strict=True))
    if isinstance(item, Comparison):
        return {"preference_probability": distribution}
    return {"distribution": distribution, "on_scale": round(min(float(np.exp(logprobs).sum()), 1.0), 6)}


def score_candidates(model: Any, contexts: Prompts, continuations: Sequence[Prompts]) -> list[list[float]]:
    """Log-probability (nats) of each continuation of each context, all as token ids; each context is computed once."""
    owner = [i for i, options in enumerate(continuations) for _ in options]
    rows = [[contexts[i][-1], *option] for i, options in enumerate(continuations) for option in options]
    width = max(map(len, rows)) - 1
    ids = torch.tensor([row[:-1] + [0] * (width + 1 - len(row)) for row in rows], device=model.device)
    start = torch.tensor([len(contexts[i]) - 1 for i in owner], device=model.device)
    with torch.inference_mode(), reading(model, contexts, owner, max(map(len, contexts)) + width) as past:
        logits = past.read(ids, start[:, None] + torch.arange(width, device=model.device))
        logprobs = torch.log_softmax(logits.float(), -1)
    scores: list[list[float]] = [[] for _ in contexts]
    for i, row, of_row in zip(owner, rows, logprobs, strict=True):
        scores[i].append(float(of_row[range(len(row) - 1), row[1:]].sum()))
    return scores


def score_distributions(model: Any, tokenizer: Any, asked: Sequence[tuple[Item, list[int], str]]) -> list[dict]:
    """Probability of each verdict after an item's prompt (token ids) and a rationale, as fields of a judgment
    (arXiv 2312.09300): `[(example, ids, "Polite: pass.")] -> [{"distribution": {1.0: 0.1, 2.0: 0.9}, "on_scale": 1.0}]`."""
    fields, starts, verdicts = [], [], 0
    for i, (item, _, _) in enumerate(asked):
        verdicts += len(item.verdicts)
        if not starts or i - starts[-1] == BATCH or verdicts > CANDIDATES:
            starts, verdicts = [*starts, i], len(item.verdicts)
    for batch in (asked[start:end] for start, end in itertools.pairwise([*starts, len(asked)])):
        written = [candidates(tokenizer, *given) for given in batch]
        contexts = [[*ids, *shared] for (_, ids, _), (shared, _) in zip(batch, written, strict=True)]
        ended = [[[*ids, tokenizer.eos_token_id] for ids in rest] for _, rest in written]  # or 2 would begin 2.25
        logprobs = score_candidates(model, contexts, ended)
        fields += [verdict_fields(item, values) for (item, _, _), values in zip(batch, logprobs, strict=True)]
    return fields


def verdicts(
    model: Any, tokenizer: Any, items: Sequence[Item], template: str, out: Path | None = None, desc: str = "judge"
) -> list[Judgment]:
    """The likeliest verdict of each item, as a judgment without a rationale: the prompt asks for none, and nothing is generated."""
    model.eval()

    def source(work: Work, k: int, together: int) -> Iterator[list[Judgment]]:
        for batch in (work[i : i + BATCH] for i in range(k * BATCH, len(work), together * BATCH)):
            missing = [item for item, indices in batch if indices]
            asked = [(item, prompts.prompt_ids(tokenizer, item, f"{template}-verdict"), "") for item in missing]
            fits = [len(ids) <= longest_text(model) - VERDICT for _, ids, _ in asked]
            yield [too_long(item, 0, len(ids)) for (item, ids, _), fit in zip(asked, fits, strict=True) if not fit]
            asked = list(itertools.compress(asked, fits))
            for (item, ids, _), fields in zip(asked, score_distributions(model, tokenizer, asked), strict=True):
                p = fields.get("distribution") or fields["preference_probability"]
                text = prompts.completion(None, max(p, key=p.get))
                yield [judgment(item, 0, text, True, prompt_tokens=len(ids), **fields)]

    return collect(source, items, 1, out, desc)


def filled(
    model: Any, tokenizer: Any, items: Mapping, judgments: Sequence[Judgment], template: str, shots: Sequence[Item] = ()
) -> list[Judgment]:
    """The judgments, with a distribution added to each that has a verdict; `items` maps ids to what was judged."""
    model.eval()
    missing = [j for j in judgments if j.verdict is not None and not (j.distribution or j.preference_probability)]
    ids = [prompts.prompt_ids(tokenizer, items[j.example_id], template, shots) for j in missing]
    asked = [(items[j.example_id], prompt, j.rationale) for j, prompt in zip(missing, ids, strict=True)]
    new = dict(zip([j.id for j in missing], score_distributions(model, tokenizer, asked), strict=True))
    return [j.model_copy(update=new.get(j.id, {})) for j in judgments]
