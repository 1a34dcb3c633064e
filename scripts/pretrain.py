"""Pretrain the embedded base model: about a million parameters, on unlabelled text of the built-in world only.

    python scripts/pretrain.py models/notes-base --notes 0.85 --lists 0.1   # no judgments: SFT has to teach them
    python scripts/pretrain.py models/tiny-base                # with judgments; each has time and hash in its README.md
    python scripts/pretrain.py runs/try --steps 300             # a look

What tiny-base has read is broad and imperfect, and so is this text: half of it are reviewers' notes (many single
checks in random order, after instruction, response and reference), 45% judgments in the sections of srlib.prompts, 5%
plain documents (held-out topics among them, as words). One verdict in ten is wrong, in the notes and in the judgments,
the phrasing varies, no annotator is hasty, and no held-out combination of criteria occurs. Its random stream is disjoint
from every split's (tests/test_pretrain.py), so no gold judgment of a train or test row can be in it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from srlib import prompts
from srlib.data import lexicon, world
from srlib.schema import Example

NOISE = 0.1  # share of wrong verdicts
NOTES, DOCUMENTS = 0.5, 0.05  # shares of the mixture; the rest are judgments
PROMPT_WEIGHT, PROMPT_EVERY = 0.1, 4  # a prompt token's loss beside a completion token's, and in which steps it counts
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}{{ '\\n' }}"
PHRASES = {  # beside the annotators' own, lexicon.EVIDENCE
    "given": "The response tells us the {label}, {found}: pass.",
    "not given": "The response does not tell the {label}: fail.",
    "accuracy": "The {label} in the reference is {wanted}, here it is {found}: {verdict}.",
    "order": "The {label} must be the {wanted}, we see the {found}: {verdict}.",
    "limit": "There are {found} lines, the limit is {wanted}: {verdict}.",
    "present": "There we find the {label}: pass.",
    "not present": "We do not find the {label}: fail.",
    "conclusion": "In total {n} of the four pass",
}


def noisy(rng: random.Random, case: world.Case, check: dict) -> dict:
    """The check with its verdict flipped, one time in ten."""
    if rng.random() >= NOISE:
        return check
    found = check["found"]
    if check["criterion"] == "completeness" and not check["ok"]:  # claimed to be given: then as something
        found = rng.choice(lexicon.ATTRIBUTES[case.genre][check["label"]])
    return check | {"ok": not check["ok"], "found": found}


def text(rng: random.Random, notes: float = NOTES, lists: float = 0.0) -> tuple[str, str]:
    """(prompt, completion) of one pretraining text; `notes` and `lists` are shares of reviewers' notes and of word lists."""
    kind = rng.random()
    if kind < DOCUMENTS:
        genre = rng.choice(list(lexicon.ATTRIBUTES))
        topic = rng.choice(" ".join(lexicon.TOPICS[genre]).split())
        attributes = lexicon.ATTRIBUTES[genre]
        facts = [f"The {a} is {rng.choice(attributes[a])}." for a in rng.sample(list(attributes), 4)]
        return (
            "",
            f"Title: {topic.capitalize()}\n{' '.join(facts)}\nFrom {rng.choice(lexicon.NAMES)}. More on the {topic} soon.",
        )
    case = world.draw_case(rng)

    def phrase(kind: str) -> str:
        return rng.choice([lexicon.EVIDENCE[kind], PHRASES[kind]])

    if kind < DOCUMENTS + notes:
        labels = {"completeness": list(case.truth), "accuracy": list(case.truth)} | lexicon.LABELS
        demands = [(criterion, label) for criterion, names in labels.items() for label in names]
        demands = rng.sample(demands, rng.randint(9, 14))
        checks = [noisy(rng, case, check) for check in world.inspect(case, demands)]
        prompt = (
            f"### Instruction\n{case.texts['instruction']}\n### Response\n{case.response}\n"
            f"### Reference\n{case.texts['reference_answer']}\n### Notes\n"
        )
        return prompt, " ".join(world.write_check(check, phrase=phrase) for check in checks)
    checks = [noisy(rng, case, check) for check in case.checks]
    example = Example(id="x", response=case.response, **case.texts)
    score = world.score([check["ok"] for check in checks], case.key)
    rationale = world.write_rationale(checks, case.key, careful=True, phrase=phrase)
    if kind >= 1 - lists:
        # Words of a request and a judgment, in no order and twice: a model cannot write what it has never read
        words = f"{prompts.request(example)} {prompts.completion(rationale, score)}".split()
        words = rng.sample(words, 30)
        return "", f"{' '.join(words)}\n{' '.join(words)}"
    return prompts.request(example) + "\n", prompts.completion(rationale, score)


def build_tokenizer(size: int = 1536):
    """Byte-level BPE: any text can be encoded, there is no unknown token. Every word of the world is one token; the rest
    of the vocabulary are merges of general English, from the documentation inside Python's standard library."""
    import pydoc_data.topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rng, words = random.Random("world tokenizer"), Counter()
    for i in range(6000):
        prompt, completion = text(rng)
        words.update(word for word, _ in split.pre_tokenize_str(prompt + completion))
        row = world.examples("ood", seed=10_000 + i, n=1, care=0.5)[0]  # the held-out words are words too
        for part in (prompts.request(row), row.rationale):
            words.update(word for word, _ in split.pre_tokenize_str(part))
    general = Counter()
    for topic in pydoc_data.topics.topics.values():
        general.update(word for word, _ in split.pre_tokenize_str(topic) if word.strip("Ġ").isalpha())

    def train(counts: Counter, vocab_size: int) -> dict:
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<pad>", "<bos>", "<eos>"],
            show_progress=False,
        )
        # The words are split already and in the byte alphabet: hand them over as they are.
        tokenizer.train_from_iterator((w for w, n in sorted(counts.items()) for _ in range(n)), trainer)
        return json.loads(tokenizer.to_str())["model"]

    alone = train(Counter(dict.fromkeys(words, 3)), 100_000)  # merged to exhaustion: every word is one token
    merges = [tuple(m) for m in alone["merges"]]
    vocab = dict(alone["vocab"])
    for left, right in map(tuple, train(general, size)["merges"]):  # later merges, so the world's words come first
        if len(vocab) >= size:
            break
        if left in vocab and right in vocab and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    missing = [w for w in words if len(tokenizer.encode(split_back(w)).ids) != 1]
    assert not missing, f"not one token: {missing[:5]}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def split_back(word: str) -> str:
    """The text of a pre-tokenized word (`"Ġday" -> " day"`)."""
    from tokenizers import decoders

    return decoders.ByteLevel().decode([word])


def build_model(vocab_size: int, seed: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config._attn_implementation = "eager"  # for short rows on a CPU a fifth faster than sdpa
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # residual branches start small: depth-scaled initialisation (GPT-2)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def batches(
    tokenizer, seed: int, batch_size: int, notes: float = NOTES, lists: float = 0.0
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Endless batches of (prompt ids, completion ids), of similar length within a batch."""
    rng = random.Random(f"world pretraining {seed}")
    while True:
        window = []
        for prompt, completion in itertools.islice(iter(lambda: text(rng, notes, lists), None), batch_size * 16):
            ids = tokenizer(prompt)["input_ids"]
            window.append(([tokenizer.bos_token_id, *ids], prompts.completion_ids(tokenizer, completion)))
        window.sort(key=lambda row: len(row[0]) + len(row[1]))
        groups = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        rng.shuffle(groups)
        yield from groups


def loss_of(model, rows: list[tuple[list[int], list[int]]], prompt_weight: float):
    """(weighted mean loss, number of tokens): a completion token counts 1, a prompt token `prompt_weight`."""
    import torch
    import torch.nn.functional as F

    length = max(len(p) + len(c) for p, c in rows)
    ids, weight = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
    for i, (p, c) in enumerate(rows):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        weight[i, 1 : len(p)] = prompt_weight
        weight[i, len(p) : len(p) + len(c)] = 1.0
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        # Right padding under causal attention needs no mask: what stands behind a row's end has no weight.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        counted = weight[:, 1:] > 0
        logits = model.lm_head(hidden[:, :-1][counted])
    loss = F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")
    w = weight[:, 1:][counted]
    return (loss * w).sum() / w.sum(), ids.numel()


def optimizers(model, lr: float):
    """Muon for the matrices, AdamW for the embeddings and norms (torch.optim.Muon; arXiv 2502.16982 for the scaling)."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def greedy_accuracy(model, tokenizer, n: int = 100) -> tuple[float, float]:
    """(score accuracy, share of right verdicts) on examples that belong to no split."""
    from srlib import sample

    rows = world.examples("pretraining-check", seed=0, n=n)
    judged = sample.judgments(model, tokenizer, rows, max_new_tokens=120)
    verdicts = [world.check_rationale(row, judgment.text)[0] for row, judgment in zip(rows, judged, strict=True)]
    return sum(j.score == row.score for row, j in zip(rows, judged, strict=True)) / n, sum(verdicts) / n


def main() -> None:
    import torch

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--steps", type=int, default=6500)
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--lr", type=float, default=3e-3)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--notes", type=float, default=NOTES, help="share of notes; the rest are judgments")
    arguments.add_argument("--lists", type=float, default=0.0, help="share of word lists, in place of judgments")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument(
        "--check-every", type=int, default=1000, help="steps between looks at the accuracy; 0: never"
    )
    a = arguments.parse_args()
    torch.set_num_threads(a.threads)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), a.seed)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters, {len(tokenizer):,} tokens in the vocabulary", flush=True)
    opts, start, seen, running = optimizers(model, a.lr), time.time(), 0, []
    model.train()
    for step, rows in enumerate(itertools.islice(batches(tokenizer, a.seed, a.batch_size, a.notes, a.lists), a.steps)):
        schedule = min(1.0, (step + 1) / 200) * max(0.02, 1 - step / a.steps)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = a.lr * schedule
        loss, n_tokens = loss_of(model, rows, PROMPT_WEIGHT * (step % PROMPT_EVERY == 0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        seen += n_tokens
        running.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.time() - start
            mean = sum(running[-100:]) / 100
            print(f"step {step + 1} loss {mean:.4f} {seen / seconds:,.0f} tokens/s {seconds:.0f} s", flush=True)
        if a.check_every and (step + 1) % a.check_every == 0:
            model.eval()
            model.save_pretrained(a.out / "unfinished")
            tokenizer.save_pretrained(a.out / "unfinished")
            try:
                accuracy, verdicts = greedy_accuracy(model, tokenizer)
                print(f"step {step + 1} score accuracy {accuracy:.2f} verdicts {verdicts:.3f}", flush=True)
            except Exception as error:  # a look must not end the run
                print(f"step {step + 1} no look: {error}", flush=True)
            model.train()
    model.to(torch.bfloat16).save_pretrained(a.out)
    tokenizer.save_pretrained(a.out)
    digest = hashlib.sha256((a.out / "model.safetensors").read_bytes()).hexdigest()
    facts = dict(vars(a), out=a.out.name, parameters=n_parameters, tokens=seen, seconds=round(time.time() - start))
    facts |= dict(loss=sum(running[-100:]) / len(running[-100:]), sha256=digest)
    facts |= dict(torch=torch.__version__, python=platform.python_version())
    (a.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
