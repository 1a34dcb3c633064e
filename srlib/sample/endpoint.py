"""Judgments from any OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

Servers differ in what they take and in what they ignore silently, so that is found out from their answers: a field that
is refused by name is not sent again; a server that returns fewer choices than `n` is asked once for each draw; the first
prompt goes alone. What a server does by default (top-k, penalties from the model's generation_config) is switched off.

    server = Endpoint("http://localhost:8000/v1", model="runs/tiny/judges/sft")
    rows = judgments(server, examples, n=10, temperature=1.0, out=Path("judgments.jsonl"))
    print(server.told())

Every prompt is on disk as soon as it is finished. One that fails for good loses no other; a server that is gone stops the
pass with an error; in both cases the same command asks for the missing draws alone.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib import prompts
from srlib.sample import draws
from srlib.sample.client import Client, EndpointError, Failed, Patience, Refused, Stopped
from srlib.sample.completions import OPTIONAL, PATHS, Choice, How, body, choices, usage
from srlib.schema import Example, Judgment

GIVE_UP = 10  # prompts in a row that fail: then it is the server, not the prompts
NEVER_ANSWERED = 3  # the same, before anything was answered
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|(prompt|input).{0,40}too long|max_model_len|max_total_tokens|inputs. tokens",
    re.I,
)
_NO_CHAT = ("http_400", "http_404", "http_405", "http_422", "http_500", "http_501")  # of a model without chat template


@dataclass
class Endpoint:
    """A server, the judge it serves under the name `model`, and what was found out about it.

    `api` chat lets the server put the judge's chat template around the request; completions sends the request alone, for
    a judge without one; auto takes chat where the server answers there. `left_out` is the share of prompts that may end
    without all their draws before a pass raises.
    """

    url: str
    model: str = ""
    api: str = "auto"
    concurrency: int = 8
    left_out: float = 0.0
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        self.client = Client(self.url, self.patience)
        self.url = self.client.url
        self.answered = False  # once, to a request with everything in it
        self.honours_n: bool | None = None
        self.unsupported: set[str] = set()
        self.unfinished: dict[str, Exception] = {}  # prompts of the last pass without all their draws
        self._lock = threading.Lock()
        self.used: Counter[str] = Counter()  # tokens, as the server counts them
        self.facts: dict[str, Any] = {}  # of the last pass, for told()

    # ------------------------------------------------------------ one prompt

    def draw(self, example: Example, missing: Sequence[int], how: How) -> tuple[list[Judgment], Exception | None]:
        """The missing draws of a prompt, and what ended them early, if anything did."""
        rows: list[Judgment] = []
        left = list(missing)
        try:
            while left:
                n = 1 if self.honours_n is False or "n" in self.unsupported else len(left)
                found = self.ask(example, n, left[0], how)[:n]
                if n > 1:
                    self.honours_n = self.honours_n is not False and len(found) == n
                rows += [choice.judgment(example, i, how) for i, choice in zip(left, found, strict=False)]
                left = left[len(found) :]
        except Refused as error:
            if _too_long(error):
                return rows + [draws.too_long(example, i) for i in left], None
            return rows, error
        except draws.DrawsError as error:
            return rows, error
        return rows, None

    def ask(
        self, example: Example, n: int, index: int, how: How, api: str = "", attempts: int | None = None
    ) -> list[Choice]:
        """The choices of one request, which may be fewer than n. Fields that the server refuses by name are left out from
        then on; where it names none, all optional ones are tried without."""
        if not self.model:
            self.model = self._only_model()
        api = api or self.settle_api(example, how)
        before = None
        while True:
            text, seed = prompts.request(example, how.template), draws.seed_of(how.seed, example.id, index)
            sent = body(text, api, self.model, how, n, seed, self.unsupported)
            try:
                found = self.client.post(PATHS[api], sent, self._read, attempts)
                self.answered = True
                return found
            except Refused as refused:
                offered = {name for name in OPTIONAL if name in sent}
                named = {name for name in offered if re.search(rf"\b{name}\b", refused.detail)}
                if not named:
                    self._check_model(refused)
                about_fields = refused.status in (400, 422) and bool(offered) and not _too_long(refused)
                if before is not None or not about_fields or (self.answered and not named):
                    self.unsupported = self.unsupported if before is None else before
                    raise
                before = None if named else set(self.unsupported)
                self.unsupported = self.unsupported | (named or set(OPTIONAL))

    def _read(self, answer: dict[str, Any]) -> list[Choice]:
        found = choices(answer, self.model)
        read, written = usage(answer)
        with self._lock:
            self.used.update(read=read, written=written)
        return found

    # ------------------------------------------------------------ what the server has

    def settle_api(self, example: Example, how: How) -> str:
        """`chat` where the server answers there, `completions` where it answers only there: it has no chat, or the model
        no chat template. One-token requests find out, once."""
        if self.api == "auto":
            short = How(how.template, max_new_tokens=1)

            def answers(api: str) -> bool:
                try:  # twice, for some servers hang up behind an error
                    return bool(self.ask(example, 1, 0, short, api, attempts=2))
                except (Refused, Failed):
                    return False

            found = "chat"
            try:
                self.ask(example, 1, 0, short, "chat")
            except (Refused, Failed) as error:
                if error.name not in _NO_CHAT or _too_long(error):
                    raise
                if answers("completions"):
                    found = "chat" if answers("chat") else "completions"
                elif error.name in ("http_404", "http_405"):
                    raise EndpointError(
                        f"{self.url} has neither {PATHS['chat']} nor {PATHS['completions']} ({error}); does its URL end in /v1?"
                    ) from None
                else:
                    raise
            self.api, self.answered = found, False  # the next request is the first one with everything in it
        return self.api

    def models(self) -> list[str]:
        """The names that the server lists; empty where it lists none."""
        try:
            listed = self.client.get("/models").get("data") or []
            return [str(item["id"]) for item in listed]
        except (Refused, Failed, AttributeError, KeyError, TypeError):
            return []

    def _only_model(self) -> str:
        listed = self.models()
        if len(listed) != 1:
            told = store.shorten(", ".join(listed), 300) if listed else "nothing"
            raise EndpointError(f"{self.url} lists {told} under /models: say which is the judge with model (--model)")
        return listed[0]

    def _check_model(self, refused: Refused) -> None:
        names_it = re.search(r"model|pinned", refused.detail, re.IGNORECASE) and (
            self.model in refused.detail
            or re.search(r"not.found|not exist|unknown|invalid", refused.detail, re.IGNORECASE)
        )
        if refused.status not in (400, 404, 422) or not names_it or _too_long(refused):
            return
        listed = store.shorten(", ".join(self.models()) or "nothing", 300)
        raise EndpointError(
            f"{self.url} does not serve {store.shorten(self.model)} ({refused}); it lists {listed} under /models: give one "
            "of its names with model (--model), or serve the judge"
        )

    # ------------------------------------------------------------ the summary

    def begin(self) -> None:
        self.unfinished, self.used, self._started = {}, Counter(), time.monotonic()
        self.client.requests = self.client.repeated = 0
        self.client.failures.clear()

    def end(self, rows: Sequence[Judgment]) -> None:
        """What came of a pass that drew `rows`."""
        client, seconds = self.client, time.monotonic() - self._started
        texts: dict[str, list[str]] = {}
        for row in rows:
            texts.setdefault(row.example_id, []).append(row.text)
        several = [group for group in texts.values() if len(group) > 1]
        same = sum(len(set(group)) == 1 for group in several)
        self.facts = {
            "judgments": len(rows),
            "requests": f"{client.requests} to {PATHS.get(self.api, self.url)}, {client.repeated} of them again",
            "tokens": f"{self.used['read']} read, {self.used['written']} written in {seconds:.1f} s",
        }
        if self.honours_n is False or "n" in self.unsupported:
            self.facts["n"] = "ignored by the server, so one call a draw"
        if self.unsupported - {"n"}:
            self.facts["not taken"] = " ".join(sorted(self.unsupported - {"n"}))
        if client.failures:
            self.facts["failed tries"] = " ".join(f"{name} {n}" for name, n in sorted(client.failures.items()))
        if len(several) >= 5 and same == len(several):
            self.facts["warning"] = "all draws of every prompt are the same text: does the server use the temperature?"
        if self.unfinished:
            named = [f"{store.shorten(name)} ({error})" for name, error in list(self.unfinished.items())[:10]]
            more = f" and {len(self.unfinished) - 10} more" if len(self.unfinished) > 10 else ""
            self.facts["without all their draws"] = "; ".join(named) + more

    def told(self) -> str:
        """The last pass in words: requests, repeats, tokens, failures by name, prompts without all their draws."""
        return ", ".join(f"{name}: {value}" for name, value in self.facts.items()) or "nothing was asked"


def _too_long(error: Exception) -> bool:
    return isinstance(error, Refused) and error.status in (400, 413, 422) and bool(_TOO_LONG.search(error.detail))


def judgments(
    server: Endpoint,
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
    """As sample.judgments, from a server; `batch_size` is its own business.

    Prompts without all their draws are left out of the answer and named by `server.told()`; what was drawn of them
    stays in `out`, so another call asks for the rest alone. Raises EndpointError when they are more than
    `server.left_out` allows, or when the server is gone. A server repeats draws by their seeds as far as it can.
    """
    how = How(template, temperature, top_p, max_new_tokens, seed, distributions)
    server.begin()
    rows: list[Judgment] = []

    def place(work: draws.Work) -> Iterator[list[Judgment]]:
        for made in _pass(server, [item for item in work if item[1]], how):
            rows.extend(made)
            yield made

    try:
        found = draws.collect(place, examples, n=n, temperature=temperature, out=out, desc=desc)
    except EndpointError as error:
        server.end(rows)
        kept = f" (what was drawn is in {out})" if out else ""
        raise EndpointError(f"{error}. The same command resumes{kept}. So far: {server.told()}") from None
    server.end(rows)
    if not server.unfinished:
        return found
    if len(server.unfinished) > server.left_out * len(examples):
        raise EndpointError(
            f"{len(server.unfinished)} of {len(examples)} prompts have not all their judgments; the same command asks for "
            f"these alone. {server.told()}"
        )
    complete = [row for row in found if row.example_id not in server.unfinished]
    if out is not None:
        store.write_rows(out, complete)
    return complete


def _pass(server: Endpoint, items: draws.Work, how: How) -> Iterator[list[Judgment]]:
    """Ask for all items, `concurrency` at a time once the first was answered. Raises EndpointError where there is no point
    in going on, after what is under way has come in."""
    server.client.stop = stop = threading.Event()
    failed_in_a_row, gone = 0, None

    def work(item: tuple[Example, list[int]]) -> tuple[list[Judgment], Exception | None]:
        return server.draw(*item, how)

    try:
        while items and not gone:
            part, threads = (items, server.concurrency) if server.answered else (items[:1], 1)
            items = items[len(part) :]
            for (example, _), (rows, error) in _side_by_side(work, part, threads, stop):
                if rows:
                    yield rows
                if error is None:
                    failed_in_a_row = 0
                elif isinstance(error, EndpointError):
                    gone = gone or error
                elif not isinstance(error, Stopped):
                    server.unfinished[example.id] = error
                    failed_in_a_row += 1
                    if getattr(error, "name", "") == "unreachable":
                        gone = gone or EndpointError(f"{server.url} cannot be reached ({error}); is it running?")
                    elif failed_in_a_row >= (GIVE_UP if server.answered else NEVER_ANSWERED):
                        gone = gone or EndpointError(
                            f"{server.url} failed on {failed_in_a_row} prompts in a row, the last time with {error}"
                        )
                if gone:
                    stop.set()
        if gone:
            raise gone
    finally:
        stop.set()


def _side_by_side(work: Any, items: Sequence[Any], threads: int, stop: threading.Event) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) as they are finished. Daemon threads: Ctrl-C does not wait for answers that are under way."""
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def worker() -> None:
        try:
            while not stop.is_set():
                item = todo.get_nowait()
                done.put((item, work(item), None))
        except queue.Empty:
            pass
        except BaseException as bug:
            done.put((None, None, bug))
        finally:
            done.put(None)

    threads = min(threads, len(items))
    for _ in range(threads):
        threading.Thread(target=worker, daemon=True).start()
    while threads:
        got = done.get()
        if got is None:
            threads -= 1
        elif got[2] is not None:
            raise got[2]
        else:
            yield got[:2]
