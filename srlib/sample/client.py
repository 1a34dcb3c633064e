"""HTTP with patience: a request is repeated until it is answered, waits as long as it is told to, and keeps its key.

What another try may mend is tried again, with waits that double, and jitter: a lost connection, silence, HTTP 408, 429
and 5xx, an answer that is cut or is not what it should be. Retry-After, seconds or a date, is waited for by all requests.
What no other try will mend is Refused at once.

    client = Client("http://localhost:8000/v1")
    client.post("/completions", {"prompt": "..."}) -> {"choices": [...], ...}

The key comes from the environment alone (SRLIB_API_KEY, else OPENAI_API_KEY). It is in no parameter and no message, and
where a server sends it back it reads [key].
"""

from __future__ import annotations

import datetime
import email.utils
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity
from pydantic_core import from_json

from srlib import files as store
from srlib.sample.draws import DrawsError

KEYS = ("SRLIB_API_KEY", "OPENAI_API_KEY")
MAX_ANSWER = 64 * 2**20  # bytes; no answer that we ask for is longer
AGAIN = (408, 425, 429)  # and 5xx but 501: another try may mend it


class EndpointError(DrawsError):
    """The server cannot be used, so the pass stops. The message says why and what to do."""


class Refused(DrawsError):
    """An answer that another try will not change: HTTP `status`, and what the server says of it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {store.shorten(detail, 300)}")
        self.status, self.detail, self.name = status, detail, f"http_{status}"


class Failed(DrawsError):
    """No usable answer after every try; `name` is counted: timeout, unreachable, closed, http_500, bad_json, ..."""

    def __init__(self, name: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{name}: {store.shorten(detail, 300)}")
        self.name, self.retry_after = name, retry_after


class Stopped(DrawsError):
    """The pass ended while this request was waiting."""


@dataclass(frozen=True)
class Patience:
    """How long a request waits, and how often it is repeated. Times in seconds."""

    timeout: float = 300.0  # for one answer
    connect: float = 10.0  # for a connection
    attempts: int = 6
    first_wait: float = 1.0  # before the second attempt; doubles from there, plus up to as much in jitter
    longest_wait: float = 60.0
    retry_after: float = 600.0  # a server that asks for more than this is given up for now


class Client:
    """One server. Its methods may be called from many threads; the counters are for the summary."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url, self.patience = checked_url(url), patience or Patience()
        self._key = _key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(self.patience.timeout, connect=self.patience.connect, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)
        self._lock, self._not_before = threading.Lock(), 0.0
        self.stop = threading.Event()  # set: waits end, nothing more is sent
        self.requests = self.repeated = 0
        self.failures: Counter[str] = Counter()  # of attempts, by name

    def get(self, path: str) -> Any:
        return self._send("GET", path, None)

    def post(
        self, path: str, body: dict[str, Any], read: Callable[[Any], Any] | None = None, attempts: int | None = None
    ) -> Any:
        """The JSON of the answer, or what `read` makes of it; where `read` raises Failed, the request is repeated."""

        def once() -> Any:
            self._wait_for(self._not_before - time.monotonic())
            answer = self._send("POST", path, body)
            return read(answer) if read else answer

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts or self.patience.attempts),
            retry=tenacity.retry_if_exception_type(Failed),
            wait=self._pause,
            sleep=self._wait_for,
            after=self._count,
            reraise=True,
        )
        return retrying(once)

    def _count(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception()
        with self._lock:
            self.failures[error.name] += 1
            if error.retry_after is not None:
                self._not_before = max(self._not_before, time.monotonic() + error.retry_after)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        patience, told = self.patience, state.outcome.exception().retry_after or 0.0
        with self._lock:
            self.repeated += 1
        first, longest = patience.first_wait, patience.longest_wait
        wait = tenacity.wait_exponential_jitter(multiplier=first, max=longest, jitter=first)
        return max(wait(state), told)

    def _wait_for(self, seconds: float) -> None:
        if self.stop.is_set() or (
            seconds > 0 and self.stop.wait(seconds + random.uniform(0, self.patience.first_wait))
        ):
            raise Stopped("stopped")

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        with self._lock:
            self.requests += 1
        deadline = time.monotonic() + self.patience.timeout
        data = bytearray()
        try:
            with self._http.stream(method, path, json=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER:
                        raise Failed("bad_answer", f"more than {MAX_ANSWER} bytes")
                    if time.monotonic() > deadline:  # httpx's own limit starts again with every byte
                        raise Failed("timeout", f"not complete after {self.patience.timeout:g} s")
        except httpx.TimeoutException as error:
            raise Failed("timeout", f"no answer in {self.patience.timeout:g} s ({type(error).__name__})") from None
        except httpx.ConnectError as error:
            raise Failed("unreachable", self.redacted(str(error))) from None
        except httpx.RequestError as error:
            raise Failed("closed", self.redacted(f"{type(error).__name__}: {error}")) from None
        text = self.redacted(data.decode("utf-8", "replace"), 16)  # a shorter key may be a word of a judgment
        if response.is_success:
            return self._parsed(text)
        raise self._refusal(response, self.redacted(_detail(text)))

    def _refusal(self, response: httpx.Response, detail: str) -> DrawsError:
        status = response.status_code
        if status in AGAIN or (status >= 500 and status != 501):
            told = _retry_after(response.headers.get("Retry-After", ""))
            if told is not None and told > self.patience.retry_after:
                return EndpointError(
                    f"{self.url} asks to come back in {told:.0f} s (HTTP {status}); run the same command then, it resumes"
                )
            return Failed(f"http_{status}", detail, told)
        if status in (401, 403):
            sent = "the key that was sent" if self._key else "requests without a key"
            return EndpointError(
                f"{self.url} refuses {sent} (HTTP {status}: {store.shorten(detail, 200)}); set {KEYS[0]} in the environment"
            )
        where = self.redacted(response.headers.get("Location", ""))
        return Refused(status, f"redirects to {where}; give that address" if response.is_redirect else detail)

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            answer = from_json(text)  # refuses half a surrogate, which could not be written to a file
        except ValueError as error:
            raise Failed("bad_json", f"{error}: {self.redacted(text[:80])}") from None
        if not isinstance(answer, dict):
            raise Failed("bad_answer", f"no JSON object: {self.redacted(text[:80])}")
        if answer.get("error"):
            raise Failed("bad_answer", f"an error with HTTP 200: {self.redacted(_detail(text))}")
        return answer

    def redacted(self, text: str, shortest: int = 4) -> str:
        """The text without the key, where that has at least `shortest` characters."""
        return text.replace(self._key, "[key]") if len(self._key) >= shortest else text


def checked_url(url: str) -> str:
    """The URL of an API without a slash at its end: `"http://host:8000" -> "http://host:8000/v1"`. Raises EndpointError."""
    try:
        parts = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError) as error:
        raise EndpointError(
            f"endpoint {store.shorten(url)} is not a URL ({error}); write http://host:port/v1"
        ) from None
    if parts.userinfo or parts.query or parts.fragment:  # it would stand in params.yaml and in notebooks
        raise EndpointError(
            f"endpoint {parts.scheme}://{parts.host}: leave user, password and anything behind ? out of the URL; a key "
            f"belongs into the environment variable {KEYS[0]}"
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise EndpointError(f"endpoint {store.shorten(url)} is not an http URL; write http://host:port/v1")
    path = parts.path.rstrip("/")
    return str(parts.copy_with(path=path or "/v1"))


def _key() -> str:
    name, key = next(((name, os.environ[name].strip()) for name in KEYS if os.environ.get(name, "").strip()), ("", ""))
    if not re.fullmatch(r"[!-~]*", key):  # the HTTP library would print it with its complaint
        raise EndpointError(f"{name} holds characters that no key has; set it again")
    return key


def _detail(text: str) -> str:
    """What a server says of an error, in any of the usual forms: {"error": {"message"}}, {"detail"}, {"message"}."""
    try:
        said = from_json(text)
    except ValueError:
        return text.strip()
    for name in ("error", "detail", "message"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return said if isinstance(said, str) else str(said)


def _retry_after(header: str) -> float | None:
    """Seconds from a Retry-After header: `"7" -> 7.0`, `"Wed, 21 Oct 2026 07:28:00 GMT" -> ...`; None if unreadable."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header.strip()):
        return float(header)
    try:
        when = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
