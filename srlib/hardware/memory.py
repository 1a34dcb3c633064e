"""Memory of a training step or a batch of sampling, computed before anything is loaded.

LOGITS and ALLOCATOR were fitted to measured peaks (docs/bench/memory.md and memory-fp32.md on a CPU, gpu.md on a GPU). With
shared prompts, DPO is taken to hold one pair a prompt. With t = tokens in a forward pass, L layers, h = hidden size, a = heads
x head size, I = MLP size, c = bytes of the compute dtype:

weights      all parameters; in 4 bit 0.516 bytes each of the projections' (arXiv 2305.14314, section 3)
casts        16-bit copies of fp32 projections under autocast; of 4-bit ones, one matrix at a time
adapter      LoRA's A and B in fp32 (arXiv 2106.09685); optimizer: gradient, two moments, 12 bytes a parameter
activations  t L (8h + c (LoRA's inputs + 4a + 4I + 7 rank)), or, with checkpointing, t L h and one layer as above
logits       SFT: 256 tokens at a time (TRL's chunked_nll); DPO: of all t tokens, with shared prompts of the completions
KV cache     2 L (kv heads x head size) a token: of prompts once, of N x max_new_tokens continuations; reading: prefill"""

from dataclasses import dataclass

from srlib.hardware.shapes import LINEAR, Shape

NF4, CHUNK = 0.5 + 0.127 / 8, 256
LOGITS = {"sft": (24.0, 12.0), "dpo": (12.0, 8.0), "sample": (18.0, 18.0)}  # bytes a logit: on a CPU, on a GPU
ALLOCATOR = 0.65  # share of activations and logits that glibc keeps of freed blocks, on a CPU
# How srlib.sample decodes: rows and prompts side by side, prompt tokens in a batch and in one forward pass, cache growth.
ROWS, PROMPTS, PROMPT_TOKENS, PREFILL, BLOCK = 512, 128, 2**16, 2048, 32


@dataclass(frozen=True)
class Job:
    """A forward pass. `rows` are sequences (SFT), pairs (DPO) or prompts (sample)."""

    kind: str  # sft, dpo or sample
    rows: int
    tokens: int  # of the longest row; when sampling, of the longest prompt
    new_tokens: int = 0  # of the longest judgment, when sampling, and in DPO if it shares prompts
    n: int = 1  # when sampling: judgments per prompt
    gpu: bool = False
    dtype: str = "auto"  # of the weights: fp32 on a CPU, 16 bit on a GPU
    bf16: bool = True  # fp32 weights train under autocast, if the CPU has bf16 and dtype is not float32
    four_bit: bool = False
    checkpointing: bool = False
    lora_rank: int = 16  # 0: all weights train, in fp32
    targets: tuple[str, ...] = LINEAR

    @property
    def bytes(self) -> int:  # of a weight that is not quantized
        full = self.kind != "sample" and not self.lora_rank
        return 4 if full or self.dtype == "float32" or (self.dtype == "auto" and not self.gpu) else 2


def forecast(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes by part at the fullest moment of a job: `{"weights": 1.6e10, "logits": 2.3e9, ...}`."""
    quantized = shape.linear if job.four_bit else 0
    weights = quantized * NF4 + (shape.parameters - quantized) * job.bytes
    return {"weights": weights} | (_sampling if job.kind == "sample" else _training)(shape, job)


def _training(shape: Shape, job: Job) -> dict[str, float]:
    t = job.rows * job.tokens * (2 if job.kind == "dpo" else 1)
    predicted = t  # tokens that need logits
    if job.new_tokens:
        t, predicted = job.rows * (job.tokens + job.new_tokens), 2 * job.rows * (job.new_tokens + 1)
    c = 4 if job.bytes == 4 and (job.dtype == "float32" or not job.bf16) else 2
    casts = c * max(a * b for a, b in shape.matrices.values()) if job.four_bit else 0.0
    if job.bytes > c:
        projections = 0 if job.four_bit else shape.linear // (shape.layers if job.checkpointing else 1)
        casts += 2.0 * (projections + shape.vocab * shape.hidden)
    attention = shape.heads * shape.head_dim
    readers = len({*job.targets} - {"o_proj", "down_proj"})
    readers = min(2, readers) if c == 4 else readers  # in fp32, adapters behind one norm share its output
    inputs = readers * shape.hidden + ("o_proj" in job.targets) * attention
    layer = 8 * shape.hidden + c * (inputs + 4 * attention + 4 * shape.intermediate + len(job.targets) * job.lora_rank)
    kept = shape.layers * shape.hidden * job.bytes + layer if job.checkpointing else shape.layers * layer
    adapter = shape.lora(job.lora_rank, job.targets)
    each = LOGITS[job.kind][job.gpu]
    logits = shape.vocab * (predicted * (each + 2 * c) if job.kind == "dpo" else CHUNK * each)
    parts = {"casts": casts, "adapter": 4.0 * adapter, "optimizer": 12.0 * (adapter or shape.parameters)}
    allocator = 0.0 if job.gpu else ALLOCATOR * (t * kept + logits)
    return parts | {"activations": t * kept, "logits": logits, "allocator": allocator}


def _sampling(shape: Shape, job: Job) -> dict[str, float]:
    per_token, drawn = 2 * shape.layers * shape.kv_heads * shape.head_dim * job.bytes, job.rows * job.n
    cached = job.rows * job.tokens + drawn * (job.new_tokens + BLOCK)
    widths = 4 * shape.hidden + 3 * shape.intermediate + 4 * shape.heads * shape.head_dim
    reading = min(job.rows * job.tokens, max(PREFILL, job.tokens)) * widths * job.bytes
    logits = drawn * shape.vocab * LOGITS["sample"][job.gpu]
    return {"KV cache": cached * per_token, "logits": logits, "reading": reading}
