"""Judgments through vLLM in this process, where it is installed. Not measured: it needs a GPU that vLLM supports.

vLLM keeps the keys and values of what it has read (prefix caching), so N draws of a prompt are N requests with seeds of
their own, and the prompt is computed once. A judge's directory that holds a LoRA adapter is served as its base model
with the adapter passed on.

    engine = load("runs/h100/judges/sft")
    rows = judgments(engine, examples, n=10, temperature=1.0, out=Path("judgments.jsonl"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib import draws, models, prompts, store
from srlib.schema import Example, Judgment

PROMPTS = 256  # prompts handed over together; each lot is on disk before the next
LIKELY = 20  # vLLM's own limit


@dataclass
class Engine:
    """A model in vLLM, its tokenizer, the adapter that goes with every request (or None), and its context in tokens."""

    llm: Any
    tokenizer: Any
    lora: Any
    context: int


def load(judge: str | Path, quantization: str = "none") -> Engine:
    """A judge's directory or a hub id; 4bit is left to vLLM's bitsandbytes loader. Raises ModelError without vLLM."""
    if not str(judge):
        raise models.ModelError("vllm needs a judge: say which with model (--model)")
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise models.ModelError(
            f"vLLM is not installed here ({error}); install it on a machine with a GPU, or serve the judge elsewhere and "
            "give the server's URL"
        ) from error
    adapter, base, settings = Path(judge) / "adapter_config.json", str(judge), {}
    if adapter.is_file():
        config = store.read_json(adapter)
        base = config["base_model_name_or_path"]
        rank = max(8, 1 << (int(config["r"]) - 1).bit_length())  # vLLM knows powers of two
        settings = dict(enable_lora=True, max_lora_rank=rank, tokenizer=str(judge))
    if quantization == "4bit":
        settings["quantization"] = "bitsandbytes"
    llm = LLM(model=base, enable_prefix_caching=True, trust_remote_code=False, **settings)
    lora = LoRARequest("judge", 1, str(Path(judge).resolve())) if adapter.is_file() else None
    return Engine(llm, llm.get_tokenizer(), lora, llm.llm_engine.model_config.max_model_len)


def judgments(
    engine: Engine,
    examples: Sequence[Example],
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
    """As sample.judgments, through vLLM; `batch_size` counts the prompts of a lot. Repeats to the bit only as far as
    vLLM's kernels do."""
    from vllm import SamplingParams

    def place(work: draws.Work) -> Iterator[list[Judgment]]:
        todo = [(example, i) for example, missing in work for i in missing]
        step = (batch_size or PROMPTS) * n
        for start in range(0, len(todo), step):
            rows, asked = [], []
            for example, i in todo[start : start + step]:
                ids = prompts.prompt_ids(engine.tokenizer, example, template)
                if len(ids) + max_new_tokens > engine.context:
                    rows.append(draws.too_long(example, i, len(ids)))
                else:
                    asked.append((example, i, ids))
            params = [
                SamplingParams(
                    n=1, temperature=temperature, top_p=top_p, top_k=-1, max_tokens=max_new_tokens,
                    seed=draws.seed_of(seed, example.id, i), logprobs=LIKELY if distributions else 0,
                )
                for example, i, _ in asked
            ]  # fmt: skip
            given = [{"prompt_token_ids": ids} for *_, ids in asked]
            answers = engine.llm.generate(given, params, lora_request=engine.lora, use_tqdm=False) if given else []
            rows += [
                _judgment(example, i, ids, answer.outputs[0], distributions)
                for (example, i, ids), answer in zip(asked, answers, strict=True)
            ]
            yield rows

    return draws.collect(place, examples, n=n, temperature=temperature, out=out, desc=desc)


def _judgment(example: Example, index: int, ids: list[int], output: Any, distributions: bool) -> Judgment:
    steps = zip(output.token_ids, output.logprobs or [], strict=False)
    likely = [
        (at[token].decoded_token or "", at[token].logprob, {p.decoded_token or "": p.logprob for p in at.values()})
        for token, at in steps
    ]
    return draws.judgment(
        example, index, output.text, output.finish_reason == "stop", likely, distributions,
        tokens=len(output.token_ids), prompt_tokens=len(ids),
    )  # fmt: skip
