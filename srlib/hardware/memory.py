"""What a step of training or a batch of sampling holds in memory, computed before anything is loaded.

Every part is a number of elements times the bytes of what stands there; fitted to docs/bench/memory.md and memory-fp32.md are
LOGITS, which counts the copies that TRL's losses make, and ALLOCATOR. Parts, with t = tokens that go through the model at once, L =
layers, h = hidden size, a = heads x head size, I = size of the MLP, V = vocabulary, c = bytes of the compute dtype:

    weights       all parameters; in 4-bit 0.516 bytes a projection's (NF4 with double quantization, arXiv 2305.14314
                  section 3); everything else stays in the dtype of the weights
    casts         frozen fp32 weights under autocast: each projection keeps its copy for the backward pass
    adapter       LoRA's A and B (arXiv 2106.09685), fp32, as PEFT makes them under autocast
    optimizer     gradient, and Adam's two moments, fp32: 12 bytes an adapter parameter (arXiv 1910.02054 section 3);
                  without an adapter (rank 0), as many in the dtype of the weights for each of them
    activations   t L (8h + inputs of LoRA + c (4a + 4I + 7 rank)): two norms in fp32; what LoRA's A reads (arXiv
                  2205.05198 counts the same layer by layer); query, key, value and output of attention (4a), which
                  itself keeps no T x T matrix (sdpa), or, in bf16 on a CPU, half of one (srlib.attention); gate, its
                  activation, up and their product. With checkpointing, t L h (residual stream) and one layer as above
    logits        SFT: 256 tokens at a time (TRL's chunked_nll); DPO: all t of them
    KV cache      2 L (kv heads x head size) a token: prompts once, and N x max_new_tokens of their continuations
    reading       the temporaries of reading the prompts, and of a decoding step
    allocator     on a CPU, what glibc keeps of freed blocks, most of them below 32 MiB

Rows that share a prompt (srlib.shared) need less; that is not subtracted here.

>>> from srlib.shapes import KNOWN
>>> held = training(KNOWN["meta-llama/Llama-3.2-1B-Instruct"], Job("sft", rows=1, tokens=1024, gpu=True, checkpointing=True))
>>> round(sum(held.values()) / 2**30, 1)
3.4
"""

from __future__ import annotations

from dataclasses import dataclass

from srlib.attention import BLOCK as QUERIES
from srlib.hardware.shapes import LINEAR, Shape
from srlib.sample.prefix import BLOCK, PREFILL

NF4 = 0.5 + 0.127 / 8  # bytes a parameter, quantization constants included (arXiv 2305.14314)
CHUNK = 256  # tokens whose logits TRL's chunked_nll holds at once (trl 1.14.2, sft_trainer)
# Bytes a logit: the matrix, its softmax, their gradients; DPO: and 2c, the matrix and its gradient as they are computed.
LOGITS = {"sft": 24.0, "dpo": 12.0, "sample": 18.0}
ALLOCATOR = {"activations": 0.65, "logits": 0.25}  # on a CPU, shares of these
PARTS = ("weights", "casts", "adapter", "optimizer", "activations", "logits", "KV cache", "reading", "allocator")


@dataclass(frozen=True)
class Job:
    """What goes through the model at once. `rows` are sequences (SFT), pairs (DPO) or prompts (sample)."""

    kind: str  # sft, dpo or sample
    rows: int
    tokens: int  # of the longest row; when sampling, of the longest prompt
    new_tokens: int = 0  # when sampling: of the longest judgment
    n: int = 1  # when sampling: judgments a prompt
    gpu: bool = False
    dtype: str = "auto"  # of the weights: fp32 on a CPU, 16 bit on a GPU
    bf16: bool = True  # fp32 weights train under autocast in 16 bit, where the CPU can and dtype is not float32
    four_bit: bool = False
    checkpointing: bool = False
    lora_rank: int = 16
    targets: tuple[str, ...] = LINEAR


def size(job: Job) -> int:
    """Bytes of one weight that is not quantized. Where all weights train, they are fp32 (srlib.train)."""
    whole = job.kind != "sample" and not job.lora_rank
    return 4 if whole or job.dtype == "float32" or (job.dtype == "auto" and not job.gpu) else 2


def weights(shape: Shape, job: Job) -> float:
    """Bytes of the frozen model."""
    quantized = shape.linear if job.four_bit else 0
    return quantized * NF4 + (shape.parameters - quantized) * size(job)


def training(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes by part at the fullest moment of an SFT or DPO step: `{"weights": ..., "activations": ..., ...}`."""
    t = job.rows * job.tokens * (2 if job.kind == "dpo" else 1)
    wide = size(job) == 4
    c = 4 if wide and (job.dtype == "float32" or not job.bf16) else 2
    casts = 0.0
    if wide and c == 2:
        projections = 0 if job.four_bit else shape.linear // (shape.layers if job.checkpointing else 1)
        casts = 2.0 * (projections + shape.vocab * shape.hidden)
    if job.four_bit:
        casts += c * max(a * b for a, b in shape.matrices.values())  # one matrix at a time is written out
    layer = _layer(shape, job, c)
    kept = shape.layers * layer
    if job.checkpointing:
        kept = shape.layers * shape.hidden * size(job) + layer
    adapter = shape.lora(job.lora_rank, job.targets)
    a_logit = LOGITS[job.kind] + (2 * c if job.kind == "dpo" else 0)
    logits = (CHUNK if job.kind == "sft" else t) * shape.vocab * a_logit
    return {
        "weights": weights(shape, job),
        "casts": casts,
        "adapter": 4.0 * adapter,
        "optimizer": 12.0 * adapter if job.lora_rank else 3.0 * size(job) * shape.parameters,
        "activations": float(t * kept),
        "logits": logits,
        "allocator": 0.0 if job.gpu else t * kept * ALLOCATOR["activations"] + logits * ALLOCATOR["logits"],
    }


def _layer(shape: Shape, job: Job, c: int) -> float:
    """Bytes that one layer keeps of one token for the backward pass."""
    h, attention, mlp = shape.hidden, shape.heads * shape.head_dim, shape.intermediate
    reads_hidden = [
        name for name in job.targets if shape.matrices[name][0] == h and name not in ("o_proj", "down_proj")
    ]
    # Under autocast every LoRA module casts its input by itself; in fp32 they share the norm's output.
    inputs = len(reads_hidden) * c if c == 2 else min(2, len(reads_hidden)) * c
    copies = (1 if "o_proj" in job.targets else 0) * attention
    # srlib.attention keeps its weights: of a token as many as it sees, on average half of the text and half of a block.
    table = 0 if job.gpu or c == 4 else shape.heads * (job.tokens + QUERIES) / 2
    return 8 * h + inputs * h + c * (4 * attention + table + copies + 4 * mlp + len(job.targets) * job.lora_rank)


def saving(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes of RAM by part while the adapter is merged into weights that are read again, after training."""
    held = training(shape, job)
    kept = {name: 0.0 if job.gpu else held[name] for name in ("weights", "adapter", "optimizer")}
    return kept | {"casts": float(shape.parameters * size(job))}


def sampling(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes by part while N judgments each of `rows` prompts are drawn (srlib.sample, srlib.prefix)."""
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * size(job)
    drawn = job.rows * job.n
    prompts, own = job.rows * job.tokens * per_token, drawn * -(-job.new_tokens // BLOCK) * BLOCK * per_token
    attention = shape.heads * shape.head_dim
    reading = (
        min(job.rows * job.tokens, max(PREFILL, job.tokens))
        * (4 * shape.hidden + 3 * shape.intermediate + 4 * attention)
        * size(job)
    )
    scores = drawn * shape.heads * (job.tokens + job.new_tokens) * (4 + 2 * size(job))
    logits = drawn * shape.vocab * LOGITS["sample"]
    # Reading comes before decoding, but on a GPU prompts also enter later. Tables grow, and rows leave and enter, by a
    # copy, one layer after the other.
    free = 0.0 if job.gpu else own + logits
    moving = max(own, prompts) / shape.layers
    return {
        "weights": weights(shape, job),
        "KV cache": float(prompts + own),
        "logits": logits,
        "reading": float(max(reading - free, scores, moving)),
    }


def forecast(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes by part of a job of any kind: see `training` and `sampling`."""
    return sampling(shape, job) if job.kind == "sample" else training(shape, job)
