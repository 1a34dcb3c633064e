"""What is sent to an OpenAI-compatible server and what comes back: both APIs, and no network.

`chat` sends a message, which the server puts into the judge's own chat template; `completions` sends the text alone, for a
judge without one. Only model, prompt, max_tokens, temperature and top_p are sent to every server; the fields in OPTIONAL
are for those that take them.

    body(request, "chat", "judge", How(...), n=10, seed=3) -> {"model": "judge", "messages": [...], "n": 10, ...}
    choices(answer, "judge") -> [Choice("Polite: pass. [RESULT] 3", finished=True, tokens=6, ...)]
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from srlib import files as store
from srlib.sample import draws
from srlib.sample.client import EndpointError, Failed
from srlib.schema import MAX_CHARACTERS, Example, Judgment

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
OPTIONAL = ("n", "seed", "top_k", "min_p", "repetition_penalty", "generation_config", "logprobs", "top_logprobs")
LIKELY = {"chat": 20, "completions": 5}  # as many likely tokens as OpenAI's own limits allow
FINISHED = ("stop", "eos", "eos_token", "stop_sequence")  # with any other reason the judgment was cut off


@dataclass(frozen=True)
class How:
    """How judgments are drawn; the names are those of sample.judgments."""

    template: str = "brief"
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    distributions: bool = False


@dataclass(frozen=True)
class Choice:
    """One generated text. Where a server does not say how many tokens each choice has, they share its number for all."""

    text: str
    finished: bool
    tokens: int = 0
    prompt_tokens: int = 0
    likely: list[draws.Token] = field(default_factory=list)

    def judgment(self, example: Example, index: int, how: How) -> Judgment:
        return draws.judgment(
            example, index, self.text, self.finished, self.likely, how.distributions,
            tokens=self.tokens, prompt_tokens=self.prompt_tokens,
        )  # fmt: skip


def body(text: str, api: str, model: str, how: How, n: int, seed: int, without: Collection[str] = ()) -> dict[str, Any]:
    """One request for `n` draws; `without` names optional fields that this server does not take.

    What a server draws by default is switched off where it can be: top-k and penalties that it has from the model's
    generation_config, and greedy decoding at any temperature, which is what `transformers serve` does.
    """
    made: dict[str, Any] = {"model": model, "max_tokens": how.max_new_tokens, "temperature": how.temperature}
    made |= {"messages": [{"role": "user", "content": text}]} if api == "chat" else {"prompt": f"{text}\n"}
    made["top_p"] = how.top_p
    extra: dict[str, Any] = {"n": n} if n > 1 else {}
    if how.temperature > 0:
        extra |= {"seed": seed, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        if "top_k" in without:
            own = dict(do_sample=True, temperature=how.temperature, top_p=how.top_p, top_k=0)
            extra["generation_config"] = json.dumps(own)
    likely = LIKELY[api] if how.distributions else 0
    if api == "chat":
        extra |= {"logprobs": True} | ({"top_logprobs": likely} if likely else {})
    else:
        extra["logprobs"] = likely or 1
    return made | {name: value for name, value in extra.items() if name not in without}


def usage(answer: dict[str, Any]) -> tuple[int, int]:
    """(tokens read, tokens written) as the server counts them; 0 where it does not."""
    said = answer.get("usage")
    return tuple(
        _count(said.get(name)) if isinstance(said, dict) else 0 for name in ("prompt_tokens", "completion_tokens")
    )  # type: ignore[return-value]


def choices(answer: dict[str, Any], model: str) -> list[Choice]:
    """The choices of an answer, at least one.

    Raises Failed on what is no answer, which another try may mend, and EndpointError where another model answers.
    """
    said = answer.get("model")
    own = isinstance(said, str) and (
        said in (model, f"{model}@main") or said.startswith(f"{model}-")
    )  # a dated version
    if isinstance(said, str) and not own:
        raise EndpointError(
            f"the server answers as {store.shorten(said)}, not as {store.shorten(model)}: serve the judge, or give the name "
            "that the server has for it"
        )
    given = answer.get("choices")
    if not isinstance(given, list) or not given:
        raise Failed("bad_answer", "no choices")
    read, written = usage(answer)
    found = []
    for k, choice in enumerate(given):
        text = _text(choice)
        if text is None or len(text) > MAX_CHARACTERS or choice.get("finish_reason") in ("abort", "error"):
            raise Failed("bad_answer", f"choice {k} has no text, too much of it, or was given up")
        likely = _tokens(choice.get("logprobs"))
        tokens = len(likely) or written // len(given) + (k < written % len(given))
        found.append(Choice(text, choice.get("finish_reason") in FINISHED, tokens, read, likely))
    return found


def _text(choice: Any) -> str | None:
    """The text of a choice, of either API; "" where a chat message has none."""
    if not isinstance(choice, dict):
        return None
    message = choice.get("message")
    text = (message.get("content") or "") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _tokens(logprobs: Any) -> list[draws.Token]:
    """The tokens of a choice with their log-probabilities, from the form of either API; [] where they cannot be read."""
    try:
        if logprobs.get("content"):
            return [
                (
                    t["token"],
                    float(t["logprob"]),
                    {o["token"]: float(o["logprob"]) for o in t.get("top_logprobs") or []},
                )
                for t in logprobs["content"]
            ]
        likely = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
        whole = zip(logprobs["tokens"], logprobs["token_logprobs"], likely, strict=True)
        return [(token, float(p), {t: float(q) for t, q in (others or {}).items()}) for token, p, others in whole]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
