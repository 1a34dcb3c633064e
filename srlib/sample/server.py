"""Judgments from an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`, a hosted API.

The `openai` client sends requests, repeats those that fail, and waits as Retry-After says. Servers differ in what they take: a
field that is refused by name is not sent again, and a server that returns fewer choices than `n` gets one request a draw.
Defaults that would change the draws (top-k, penalties) are switched off. The key comes from SRLIB_API_KEY or OPENAI_API_KEY,
proxies and certificates from the usual variables of the environment; a server on this machine needs none of these."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool  # its threads are daemons: Ctrl-C does not wait for answers under way
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np

from srlib import config, files, prompts
from srlib.sample.decoding import verdict_fields
from srlib.sample.draws import DrawsError, Sampling, Work, collect, judgment, too_long
from srlib.schema import Failure, Item, Judgment

KEYS = ("SRLIB_API_KEY", "OPENAI_API_KEY")
HINT = f"check server, URL, model name, {KEYS[0]} and api (chat needs a chat template), then the same command resumes"
SAID = {"chat_template_kwargs": "chat_template(?:_kwargs)?", "top_logprobs": "top_(?:logprobs|n_tokens)"}  # in refusals
PATHS = {"chat": "/chat/completions", "completions": "/completions"}
UNSEEN = 0.01  # most probability that verdicts outside the list of likely tokens may have together
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d+){3}|0\.0\.0\.0|::1")
REASONS: dict[Failure, str] = {  # in the answer to a request that is refused
    "too_long": r"context.{0,20}(length|size|window)|too long|max_(model_len|total_tokens)|inputs. tokens",
    "refused": r"content.?(filter|management|policy)|moderation",
}
ENDS: dict[Failure, str] = {  # finish_reason; any other end is that of the judgment
    "cut_off": "length|max.*tokens", "tool_call": "tool|function",
    "refused": "filter|refus|safety|prohibited|blocklist|recitation",
}  # fmt: skip
_SPENT = re.compile(r"insufficient.{0,20}(quota|credit|balance|fund)|billing_hard_limit", re.I)
_THINK = r"\s*+[<\[]think(?:ing)?[>\]]"  # the chat template may have written the first one
_THOUGHT = re.compile(rf"\A(?:(?:{_THINK})?+(?:(?![<\[]think).)*?[<\[]/think(?:ing)?[>\]])+", re.I | re.S)
Token = tuple[str, float, dict[str, float]]  # text, log-probability, the same of likely tokens in its place


def address(url: str) -> str:
    """The URL as requests take it, `"http://gpu:8000/" -> "http://gpu:8000/v1"`; DrawsError on one with a password or key."""
    match = config.SERVER.fullmatch(url)
    if match is None:
        raise DrawsError(f"the server's address: {config.URL}")
    return match[1] + (match[2] or "/v1")


class Server:
    """A server, the judge that it serves under the name `model`, and what is known of both so far. With `api` "chat"
    the server applies the judge's chat template; "completions" is for a judge without one. `left_out` is the share of
    prompts that may stay without judgments if the server fails on them; `client` goes to `openai.OpenAI`."""

    def __init__(
        self, url: str, model: str, api: str = "chat", concurrency: int = 8, left_out: float = 0.0, **client: Any
    ) -> None:
        import openai

        name = next((name for name in KEYS if os.environ.get(name, "").strip()), KEYS[0])
        self.url, self._key = address(url), os.environ.get(name, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # the HTTP library would print it with its complaint
            raise DrawsError(f"{name} holds characters that no key has; set it again")
        self._http, variable = _http_client(self.url)
        self._name = f"{self.url}, model {model!r}" + (f", through the proxy of {variable}" if variable else "")
        client = dict(timeout=httpx.Timeout(300, connect=30), max_retries=5, http_client=self._http) | client
        self._client = openai.OpenAI(base_url=self.url, api_key=self._key or "none", **client)
        self.model, self.api, self.concurrency, self.left_out = model, api, concurrency, left_out
        self.answered = self.one_by_one = False  # it has answered; it returns fewer choices than n
        self.refused: set[str] = set()  # fields that it does not take
        self.names: set[str] = set()  # other names under which the model has answered
        self.unfinished: dict[str, str] = {}  # prompts of the last pass without all their judgments, and why

    def summary(self) -> str:
        """What the server does otherwise, and the prompts of the last pass without all their judgments, with reasons."""
        facts = {"fields not taken": sorted(self.refused), "n ignored": self.one_by_one}
        facts |= {f"{self.model} answers as": sorted(self.names), "failed": self.unfinished}
        return "; ".join(f"{name}: {files.shorten(fact, 1000)}" for name, fact in facts.items() if fact)

    def draw(self, work: Work, s: Sampling, unfinished: dict[str, str]) -> Iterator[list[Judgment]]:
        """The missing judgments, a list for each prompt, as they come: the first prompt alone, then `concurrency` of them.
        `unfinished` gets the prompts that failed. Raises DrawsError if there is no point in going on."""
        todo, failures = [pair for pair in work if pair[1]], 0
        if not self.answered:
            self._reach()
        with ThreadPool(self.concurrency) as pool:
            for part in (todo[:1], todo[1:]):
                for item, rows, error in pool.imap_unordered(lambda pair: self._draw(*pair, s), part):
                    yield rows
                    failures = failures + 1 if error else 0
                    if error:
                        why = self._redacted(f"{type(error).__name__}: {error.__cause__ or error}")[:300]
                        unfinished[item.id] = why
                        gone = isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout))
                        useless = gone or getattr(error, "status_code", 0) in (401, 402, 403, 404, 429)
                        if useless or failures >= (10 if self.answered else 3):
                            raise DrawsError(f"{self._name}: {files.shorten(why, 300)}; {HINT}")

    def _reach(self) -> None:
        """Connect once, since a request would be tried six times before it fails."""
        try:
            self._http.get(f"{self.url}/models", timeout=30)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as why:
            advice = "set SSL_CERT_FILE to the certificate of its authority; " if "CERTIFICATE" in str(why) else ""
            raise DrawsError(f"{self._name}: cannot be reached ({why}); {advice}{HINT}") from None
        except httpx.HTTPError:
            pass  # any answer will do

    def _draw(self, item: Item, missing: list[int], s: Sampling) -> tuple[Item, list[Judgment], Exception | None]:
        """The missing judgments of one item, and the error that ended them early."""
        import openai

        rows: list[Judgment] = []
        try:
            while left := missing[len(rows) :]:
                n = 1 if self.one_by_one or "n" in self.refused else len(left)
                some = self._request(item, left[:n], s)
                self.one_by_one |= len(some) < n
                rows += some
        except (openai.APIError, ValueError) as error:
            if (failure := _failure(error)) is None:
                return item, rows, error
            rows += [too_long(item, i).model_copy(update={"failure": failure}) for i in left]
        return item, rows, None

    def _request(self, item: Item, indices: list[int], s: Sampling) -> list[Judgment]:
        """The judgments of one request, fewer if the server ignores n. Leaves out the optional fields that it refuses by
        name, or all if it names none and never answered. ValueError on a bad answer, DrawsError if none can be good."""
        import openai

        refused, response = self.refused.copy(), None
        while response is None:
            body, optional = self._body(item, indices, s, refused)
            try:
                response = self._client.post(PATHS[self.api], cast_to=httpx.Response, body=body | optional)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                named = {n for n in body | optional if re.search(rf"(?<![\\\w]){SAID.get(n, n)}\b", str(error))}
                needed = [f"{name}={body[name]:g}" for name in ("temperature", "top_p") if name in named & body.keys()]
                unwanted = named & optional.keys() or (set() if self.answered or needed else set(optional))
                if _failure(error) or (not unwanted and (self.answered or not needed)):
                    raise
                if not unwanted:
                    why = f"refuses {', '.join(needed)} ({self._redacted(str(error))})"
                    advice = "set it to 1 (in Python: score_many(items, temperature=1)), or choose another model"
                    raise DrawsError(f"{self._name}: {why}; {advice}") from None
                refused |= unwanted - {"temperature"} or unwanted  # often refused only beside top_p
        text = self._redacted(response.text)
        if text.lstrip().startswith("<") and not self.answered:
            page = f"answers with a page, {files.shorten(text)}, instead of JSON"
            raise DrawsError(f"{self._name}: {page}; give the URL of its API (.../v1)")
        try:
            answer = json.loads(text)
            rows = _judgments(answer, item, indices, s)
        except UNREADABLE as error:
            raise ValueError(f"no judgments in the answer {files.shorten(text, 200)} ({error})") from None
        self.answered = True
        self.refused |= refused
        self.names |= {str(answer.get("model") or "(no name)")} - {self.model}
        return rows

    def _body(self, item: Item, indices: list[int], s: Sampling, refused: set[str]) -> tuple[dict, dict]:
        """What a request has to say, and what it also says to servers that take it."""
        text, chat = prompts.defused(prompts.request(item, s.template)), self.api == "chat"
        if s.shots:
            raise DrawsError("examples before a prompt are read by a model in this process only, not by a server")
        body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": f"{text}\n"}
        body["model"] = self.model
        optional = {"max_tokens": s.max_new_tokens, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        (optional if s.temperature == 1 else body)["temperature"] = s.temperature  # 1 is every server's default
        (optional if s.top_p == 1 else body)["top_p"] = s.top_p
        optional |= {"logprobs": True, "top_logprobs": 20 if s.distributions else 0} if chat else {}
        optional |= {"chat_template_kwargs": {"enable_thinking": False}} if chat else {}  # as prompts.rendered
        optional |= {"n": len(indices)} if len(indices) > 1 else {}
        if s.temperature > 0:
            key = hashlib.blake2b(f"{s.seed}\0{item.id}\0{indices[0]}".encode(), digest_size=4).digest()
            optional["seed"] = int.from_bytes(key) >> 1  # 31 bits, the size that every server takes
            if "top_k" in refused:  # `transformers serve`, which is greedy at any temperature without this
                config = dict(do_sample=True, temperature=s.temperature, top_p=s.top_p, top_k=0)
                optional["generation_config"] = json.dumps(config)
        if "max_tokens" in refused:
            body["max_completion_tokens"] = s.max_new_tokens
        return body, {name: value for name, value in optional.items() if name not in refused}

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) > 7 else text  # a shorter one may be a word


def server_judgments(
    server: Server, items: Sequence[Item], *, out: Path | None = None, desc: str = "judge", **sampling: Any
) -> list[Judgment]:
    """The same as `judgments`, from a server; `batch_size` is its own business. Prompts without all their judgments are
    left out, and `server.unfinished` says why. Raises DrawsError if they are more than `server.left_out` allows, or if
    the server is gone: `out` keeps what was drawn, so the same command resumes."""
    s, unfinished = Sampling(**sampling), {}
    rows = collect(lambda work, *_: server.draw(work, s, unfinished), items, s.n, out, desc)
    server.unfinished = unfinished
    if len(unfinished) > server.left_out * len(items):
        count = f"{len(unfinished)} of {len(items)} prompts"
        raise DrawsError(f"{count} lack judgments; the same command asks for these alone ({server.summary()})")
    complete = [row for row in rows if row.example_id not in unfinished]
    if unfinished and out is not None:
        files.write_rows(out, complete)
    return complete


def _judgments(answer: dict[str, Any], item: Item, indices: list[int], s: Sampling) -> list[Judgment]:
    """The choices of an answer as judgments; raises one of UNREADABLE if it has none."""
    rows, choices, usage = [], answer["choices"], answer.get("usage") or {}
    for i, choice in zip(indices, [choices[0], *choices[1:]], strict=False):
        message, end = choice.get("message") or {}, str(choice.get("finish_reason")).lower()
        text = (message.get("content") if message else choice["text"]) or ""
        if end in ("abort", "error"):
            raise ValueError(f"finish_reason {end}")
        if isinstance(text, list):  # parts of a message
            text = "".join(part["text"] for part in text if part.get("type", "text") in ("text", "output_text"))
        end += " refusal" if message.get("refusal") else " tool" if message.get("tool_calls") and not text else ""
        text = _THOUGHT.sub("", text)
        failure = next((name for name, kind in ENDS.items() if re.search(kind, end)), None)
        finished = failure != "cut_off" and not re.match(_THINK, text, re.I)  # else it was still thinking
        tokens = _tokens(choice.get("logprobs"))
        mean = sum(logprob for _, logprob, _ in tokens) / max(1, len(tokens))
        facts = {"logprob": round(mean, 6) if tokens and math.isfinite(mean) else None}
        facts["tokens"] = len(tokens) or (usage.get("completion_tokens") or 0) // len(choices)
        row = judgment(item, i, text, finished, prompt_tokens=usage.get("prompt_tokens") or 0, **facts)
        if failure in ("refused", "tool_call"):
            row = row.model_copy(update={"score": None, "preference": None, "failure": failure})
        rows.append(row.model_copy(update=_distribution(tokens, item, row) if s.distributions else {}))
    return rows


def _tokens(logprobs: Any) -> list[Token]:
    """The tokens of a choice, [] if the server lists none."""
    try:
        likely = [{o["token"]: float(o["logprob"]) for o in t.get("top_logprobs") or []} for t in logprobs["content"]]
        return [(t["token"], float(t["logprob"]), o) for t, o in zip(logprobs["content"], likely, strict=True)]
    except UNREADABLE:
        return []


def _distribution(tokens: list[Token], item: Item, row: Judgment) -> dict[str, Any]:
    """Fields of a judgment from the likely tokens in the place of its verdict; {} if they do not tell: a verdict of several
    tokens, a likely token that begins another one (1 and 10), verdicts that are not listed and might have over UNSEEN."""
    verdicts, text, likely = [prompts.spelled(verdict) for verdict in item.verdicts], "", {}
    verdict = None if row.verdict is None else prompts.spelled(row.verdict)
    for token, logprob, others in tokens:
        if token.strip() == verdict and text.rstrip(" \t\r\n*_`").endswith(prompts.MARKER):
            likely = {**others, token: logprob}
        text += token
    p = {token: math.exp(logprob) for token, logprob in likely.items() if logprob <= 0}
    mass = [sum(q for token, q in p.items() if token.strip() == verdict) for verdict in verdicts]
    starts = {*verdicts, *(token.strip() for token, q in p.items() if q > UNSEEN)} - {""}
    begins = any(a != b and b.startswith(a) for a in starts for b in verdicts)
    if not any(mass) or begins or (not all(mass) and 1 - sum(p.values()) > UNSEEN):
        return {}
    with np.errstate(divide="ignore"):
        return verdict_fields(item, np.log(mass))


def _failure(error: Exception) -> Failure | None:
    """The failure to record if the prompt itself is why its request was refused, else None."""
    refused = getattr(error, "status_code", None) in (400, 403, 413, 422)
    return next((name for name, words in REASONS.items() if refused and re.search(words, str(error), re.I)), None)


def _http_client(url: str) -> tuple[Any, str]:
    """The client for a server, and the variable that names the proxy to it, "" if there is none."""
    import openai

    proxies, scheme, host = getproxies(), url.partition(":")[0], urlsplit(url).hostname or ""
    direct = LOOPBACK.fullmatch(host) or proxy_bypass(host)
    name = "" if direct else next((name for name in (scheme, "all") if proxies.get(name)), "")
    given = next((v for v in (f"{name}_proxy", f"{name.upper()}_PROXY") if os.environ.get(v)), "the system")
    variable, proxy = (given, proxies[name]) if name else ("", None)
    proxy = f"http://{proxy}" if proxy and "://" not in proxy else proxy
    try:
        certificates = httpx.create_ssl_context(trust_env=scheme == "https")
    except OSError as error:
        raise DrawsError(f"SSL_CERT_FILE: no certificates ({error.strerror or error}); correct or unset it") from None
    hooks = {"response": [_mark_spent]}
    try:
        return openai.DefaultHttpxClient(verify=certificates, trust_env=False, proxy=proxy, event_hooks=hooks), variable
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # the value may hold a password, and so the message
        advice = f"write http://host:port, unset it, or add {host} to NO_PROXY"
        raise DrawsError(f"{variable}: this proxy cannot be used ({type(error).__name__}); {advice}") from None


def _mark_spent(response: Any) -> None:
    """Keep the client from waiting for a quota that is used up: no later request will succeed."""
    if response.status_code == 429 and _SPENT.search(response.read().decode(errors="replace")):
        response.headers["x-should-retry"] = "false"
