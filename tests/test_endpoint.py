"""Judgments from a server that does what it can to lose them, and from `transformers serve`."""

import datetime
import email.utils
import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
from servers import Scripted, free_port, transformers_serve

from srlib import files as store
from srlib import judge, prompts
from srlib.sample import client, draws, endpoint
from srlib.schema import Example, Judgment, Rubric

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
ITEMS = [Example(id=f"e{i}", instruction=f"Greet {i}.", response="Hi.", rubric=POLITE) for i in range(6)]
QUICK = client.Patience(timeout=5, attempts=3, first_wait=0.01, longest_wait=0.05)
KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in (*client.KEYS, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve():
    started = []

    def start(*args, **settings):
        started.append(Scripted(*args, **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


def ask(server, examples=ITEMS, *, n=3, patience=QUICK, model="judge", api="chat", place=None, **settings):
    """(judgments, the endpoint) of one pass."""
    place = place or endpoint.Endpoint(getattr(server, "url", server), model, api, 4, patience=patience)
    how = {"temperature": 1.0, "max_new_tokens": 50, "distributions": False} | settings
    return endpoint.judgments(place, examples, n=n, **how), place


def ids(found):
    return [(j.example_id, j.index) for j in found]


ALL = [(e.id, i) for e in ITEMS for i in range(3)]


# ---------------------------------------------------------------- a server that behaves


def test_every_draw_once_and_in_order(serve, tmp_path):
    server = serve()
    found, place = ask(server, out=tmp_path / "j.jsonl")
    assert ids(found) == ALL
    assert len({j.text for j in found}) == len(ALL)
    assert {(j.score, j.tokens, j.prompt_tokens) for j in found} == {(3.0, 9, 20)}
    assert store.read_rows(tmp_path / "j.jsonl", Judgment) == found
    assert len(server.bodies) == len(ITEMS), "one request a prompt"
    assert {b["n"] for b in server.bodies} == {3}
    assert all(b["messages"][0]["content"] in map(prompts.request, ITEMS) for b in server.bodies)
    assert "6 to /chat/completions, 0 of them again" in place.told()
    assert "120 read, 162 written" in place.told()


def test_seeds_depend_on_seed_example_and_draw(serve):
    def seeds(**settings):
        server = serve(lambda body, _: server.well(body, choices=1))
        ask(server, ITEMS[:2], **settings)
        return [b["seed"] for b in server.real()]

    first = seeds(seed=1)
    assert len(set(first)) == 6
    assert first == seeds(seed=1)
    assert not set(first) & set(seeds(seed=2))
    assert all(0 <= seed < 2**31 for seed in first)


def test_no_more_at_once_than_was_said(serve):
    def slow(body, number):
        time.sleep(0.05)

    server = serve(slow)
    ask(server, ITEMS * 1, n=1)
    assert 2 <= server.most_at_once <= 4


def test_what_the_server_draws_by_default_is_switched_off(serve):
    server = serve()
    ask(server)
    assert all(
        (b["top_k"], b["min_p"], b["repetition_penalty"], b["top_p"]) == (-1, 0.0, 1.0, 1.0) for b in server.bodies
    )
    server = serve()
    ask(server, n=1, temperature=0.0)
    assert all(b["temperature"] == 0.0 and "seed" not in b and "n" not in b for b in server.bodies)


# ---------------------------------------------------------------- n


@pytest.mark.parametrize("given", [1, 2])
def test_fewer_choices_than_n_are_noticed_once_and_made_up_for(serve, given):
    server = serve(lambda body, _: server.well(body, choices=min(given, body.get("n", 1))))
    found, place = ask(server)
    assert ids(found) == ALL
    assert len({j.text for j in found}) == len(ALL), "no draw twice"
    assert sum(b.get("n", 1) > 1 for b in server.bodies) == 1, "it is not asked for n again"
    assert "one call a draw" in place.told()


def test_more_choices_than_n_are_not_taken(serve):
    server = serve(lambda body, _: server.well(body, choices=body.get("n", 1) + 2))
    assert ids(ask(server)[0]) == ALL


def test_an_n_that_is_refused(serve):
    def one(body, _):
        return (400, {"error": {"message": "'n' must be 1"}}) if body.get("n", 1) > 1 else None

    server = serve(one)
    found, place = ask(server)
    assert ids(found) == ALL
    assert place.unsupported == {"n"}


# ---------------------------------------------------------------- fields that a server does not know


def test_fields_refused_by_name_are_left_out_from_then_on(serve):
    known = {"model", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "generation_config"}

    def strict(body, _):
        unknown = set(body) - known
        return (422, {"detail": f"Unexpected fields in the request: {unknown}"}) if unknown else None

    server = serve(strict)
    found, place = ask(server, distributions=True)
    assert ids(found) == ALL
    assert place.unsupported == {"top_k", "min_p", "repetition_penalty", "logprobs", "top_logprobs"}
    assert len(server.bodies) == len(ITEMS) + 1
    own = json.loads(server.bodies[-1]["generation_config"])
    assert own == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def test_fields_refused_without_a_name(serve):
    server = serve(lambda body, _: (400, "bad request") if "top_k" in body or "generation_config" in body else None)
    found, place = ask(server)
    assert ids(found) == ALL
    assert {"top_k", "seed", "n"} <= place.unsupported


def test_a_prompt_that_is_refused_does_not_cost_the_fields(serve):
    server = serve(lambda body, _: (400, "no") if "Greet 2." in body["messages"][0]["content"] else None)
    with pytest.raises(client.EndpointError, match=r"1 of 6 prompts.*'e2' \(HTTP 400: 'no'\)"):
        ask(server)
    assert all("seed" in b for b in server.bodies)


# ---------------------------------------------------------------- chat or completions


def test_chat_is_taken_where_the_server_answers_it(serve):
    server = serve()
    found, place = ask(server, api="auto")
    assert ids(found) == ALL
    assert place.api == "chat"
    assert [b["max_tokens"] for b in server.bodies[:2]] == [1, 50]


@pytest.mark.parametrize("status", [400, 500])
def test_without_a_chat_template_our_own_prompt_is_sent(serve, status):
    def base(body, _):
        return (status, "no chat template") if "messages" in body else None

    server = serve(base)
    found, place = ask(server, api="auto")
    assert ids(found) == ALL
    assert place.api == "completions"
    assert server.real()[0]["prompt"] == prompts.request(ITEMS[0]) + "\n"


def test_a_server_that_is_only_busy_is_still_asked_by_chat(serve):
    server = serve(lambda body, number: (503, "loading") if number < 3 else None)
    assert ask(server, api="auto")[1].api == "chat"


def test_an_error_that_passes_while_completions_answers_is_no_reason_to_take_it(serve):
    server = serve(lambda body, number: (500, "oops") if number <= QUICK.attempts else None)
    assert ask(server, api="auto")[1].api == "chat"
    assert "prompt" in server.bodies[QUICK.attempts], "completions was tried, and chat once more"


def test_a_url_without_the_api(serve):
    server = serve(paths=())
    with pytest.raises(client.EndpointError, match=r"neither /chat/completions nor /completions.*/v1\?"):
        ask(server, api="auto")


# ---------------------------------------------------------------- failures that pass


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "half')
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


def hang_up(handler):
    handler.connection.close()
    handler.close_connection = True


def half_a_stream(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'c\r\n{"choices": \r\n')
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


BAD = {
    "http_500": (500, "oops"),
    "http_502": (502, {"error": {"message": "bad gateway"}}),
    "http_429": (429, {"message": "slow down"}, {"Retry-After": "0"}),
    "bad_json": (200, '{"choices": [{"te'),
    "bad_answer": {"choices": []},
    "closed": hang_up,
}
MORE = {
    "an error with 200": ("bad_answer", {"error": {"message": "out of memory"}}),
    "no object": ("bad_answer", (200, "[]")),
    "text is no text": ("bad_answer", {"choices": [{"text": 7, "finish_reason": "stop"}]}),
    "given up": ("bad_answer", {"choices": [{"text": "Fine", "finish_reason": "abort"}]}),
    "half a surrogate": ("bad_json", (200, '{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}')),
    "a body cut short": ("closed", cut),
    "half a stream": ("closed", half_a_stream),
    "endless": ("bad_answer", {"choices": [{"text": "x" * 100_001, "finish_reason": "stop"}]}),
}


@pytest.mark.parametrize("name", [*BAD, *MORE])
def test_what_passes_is_repeated_and_counted(serve, tmp_path, name):
    wanted, bad = MORE.get(name, (name, BAD.get(name)))
    server = serve(lambda body, number: bad if number in (1, 4) else None)
    found, place = ask(server, out=tmp_path / "j.jsonl")
    assert ids(found) == ALL
    assert len({j.text for j in found}) == len(ALL)
    assert len(server.bodies) == len(ITEMS) + 2
    assert f"failed tries: {wanted} 2" in place.told()
    assert ids(store.read_rows(tmp_path / "j.jsonl", Judgment)) == ALL


def test_silence_ends_at_the_timeout(serve):
    done = threading.Event()
    server = serve(lambda body, number: (lambda handler: done.wait(20)) if number == 2 else None)
    started = time.monotonic()
    found, place = ask(server, patience=client.Patience(timeout=0.4, attempts=2, first_wait=0.01))
    done.set()
    assert ids(found) == ALL
    assert "failed tries: timeout 1" in place.told()
    assert time.monotonic() - started < 5


def test_an_answer_that_drips_ends_at_the_timeout_too(serve):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    server = serve(lambda body, number: drip if number == 1 else None)
    found, place = ask(server, ITEMS[:1], patience=client.Patience(timeout=0.3, attempts=2, first_wait=0.01))
    assert len(found) == 3
    assert "timeout 1" in place.told()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_everybody(serve, form):
    wait = 1.0 if form == "seconds" else 2.2
    when = email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=wait), usegmt=True
    )
    header = {"Retry-After": "1" if form == "seconds" else when}
    server = serve(lambda body, number: (429, "slow down", header) if number == 2 else None)
    found, _ = ask(server, ITEMS[:3])
    assert len(found) == 9
    told_at = server.at[1]
    # A date has whole seconds, so up to one is lost. Requests that had left before are answered as usual.
    assert server.at[-1] - told_at >= (0.95 if form == "seconds" else 1.0)


def test_a_server_that_asks_for_an_hour_ends_the_pass(serve, tmp_path):
    server = serve(lambda body, number: (429, "quota", {"Retry-After": "3600"}) if number > 2 else None)
    with pytest.raises(client.EndpointError, match=r"come back in 3600 s.*same command"):
        ask(server, out=tmp_path / "j.jsonl")
    assert len(store.read_rows(tmp_path / "j.jsonl", Judgment)) == 6


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None),
        ("", None),
        ("-3", None),
        ("nan", None),
    ],
)
def test_retry_after_as_it_may_be_written(header, seconds):
    assert client._retry_after(header) == seconds


# ---------------------------------------------------------------- failures that stay


def poison(body, _):
    return (500, "oops") if "Greet 4." in body["messages"][0]["content"] else None


def test_one_prompt_that_fails_for_good_loses_no_other(serve, tmp_path):
    path = tmp_path / "j.jsonl"
    server = serve(poison)
    with pytest.raises(client.EndpointError, match=r"1 of 6 prompts .*same command.*'e4' \(http_500: 'oops'\)"):
        ask(server, out=path)
    assert {j.example_id for j in store.read_rows(path, Judgment)} == {"e0", "e1", "e2", "e3", "e5"}
    mended = serve()
    found, _ = ask(mended, out=path)
    assert ids(found) == ALL
    assert len(mended.bodies) == 1, "only the missing prompt is asked for"
    assert ids(store.read_rows(path, Judgment)) == ALL


def test_prompts_may_be_left_out_where_that_was_said(serve, tmp_path):
    path = tmp_path / "j.jsonl"
    server = serve(poison)
    place = endpoint.Endpoint(server.url, "judge", "chat", left_out=0.2, patience=QUICK)
    found, _ = ask(server, place=place, out=path)
    assert ids(found) == [name for name in ALL if name[0] != "e4"]
    assert store.read_rows(path, Judgment) == found
    assert "without all their draws: 'e4'" in place.told()


def test_draws_that_came_before_a_prompt_failed_are_kept(serve, tmp_path):
    path = tmp_path / "j.jsonl"
    served = []

    def third_time_unlucky(body, _):
        served.append(body)
        return (500, "oops") if len(served) > 2 else server.well(body, choices=1)

    server = serve(third_time_unlucky)
    with pytest.raises(client.EndpointError, match="1 of 1 prompts"):
        ask(server, ITEMS[:1], out=path)
    assert ids(store.read_rows(path, Judgment)) == [("e0", 0), ("e0", 1)]
    again = serve()
    assert ids(ask(again, ITEMS[:1], out=path)[0]) == ALL[:3]
    assert again.bodies[0]["seed"] == draws.seed_of(0, "e0", 2)


def test_a_server_that_is_gone_stops_the_pass(serve, tmp_path):
    path = tmp_path / "j.jsonl"

    def goes(handler):
        server.close()
        hang_up(handler)

    server = serve(lambda body, number: goes if number == 3 else None)
    with pytest.raises(client.EndpointError, match=r"cannot be reached.*same command resumes.*j\.jsonl"):
        ask(server, ITEMS * 1, out=path, n=1, place=endpoint.Endpoint(server.url, "judge", "chat", 1, patience=QUICK))
    kept = ids(store.read_rows(path, Judgment))
    assert kept == [("e0", 0), ("e1", 0)]
    assert len(ask(serve(), out=path, n=1)[0]) == 6


def test_nobody_there():
    with pytest.raises(client.EndpointError, match=r"127\.0\.0\.1.*cannot be reached.*is it running"):
        ask(f"http://127.0.0.1:{free_port()}/v1", api="auto")


def test_a_server_that_fails_at_everything_is_given_up(serve):
    many = [e.model_copy(update={"id": f"m{i}"}) for i, e in enumerate(ITEMS * 10)]
    server = serve(lambda body, number: (500, "oops") if number > 1 else None)
    with pytest.raises(client.EndpointError, match="failed on 10 prompts in a row, the last time with http_500"):
        ask(server, many, patience=client.Patience(attempts=1))
    assert len(server.bodies) < 20


def test_a_prompt_that_is_too_long_is_a_judgment_of_that_name(serve):
    full = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (n = 3)."
    server = serve(lambda body, _: (400, {"error": {"message": full}}) if "Greet 1." in str(body) else None)
    found, _ = ask(server)
    assert ids(found) == ALL
    assert [j.failure for j in found if j.example_id == "e1"] == ["too_long"] * 3
    assert all("n" in b for b in server.bodies), "a message about length refuses no field"


def test_a_judgment_that_was_cut_off_has_no_score(serve):
    def ended(body, _):
        answer = server.well(body)
        for choice, reason in zip(answer["choices"], ("length", None, "stop"), strict=True):
            choice["finish_reason"] = reason
        return answer

    server = serve(ended)
    found, _ = ask(server, ITEMS[:1])
    assert [(j.failure, j.score) for j in found] == [("cut_off", None), ("cut_off", None), (None, 3.0)]


def test_draws_that_are_all_the_same_are_warned_of(serve):
    def greedy(body, _):
        answer = server.well(body)
        for choice in answer["choices"]:
            choice["message"]["content"] = "Always. [RESULT] 2"
        return answer

    server = serve(greedy)
    assert "does the server use the temperature?" in ask(server)[1].told()


# ---------------------------------------------------------------- the model's name


def test_a_model_that_is_not_served_is_named_with_those_that_are(serve):
    server = serve(lambda body, _: (404, {"message": "The model `nope` does not exist."}), models=("judge", "other"))
    with pytest.raises(client.EndpointError, match=r"does not serve 'nope'.*lists 'judge, other'"):
        ask(server, model="nope", api="auto")


def test_another_model_that_answers_is_refused(serve):
    server = serve(lambda body, _: server.well(body, model="something-else"))
    with pytest.raises(client.EndpointError, match="answers as 'something-else', not as 'judge'"):
        ask(server)
    assert len(server.bodies) == 1
    dated = serve(lambda body, _: dated.well(body, model="judge-2026-11-01"))
    assert len(ask(dated)[0]) == 18


def test_the_only_model_needs_no_name(serve):
    server = serve()
    ask(server, model="")
    assert server.bodies[0]["model"] == "judge"
    with pytest.raises(client.EndpointError, match="say which is the judge"):
        ask(serve(models=("a", "b")), model="")


# ---------------------------------------------------------------- the key


def test_the_key_is_sent_and_never_told(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SRLIB_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-0123456789abcdef")

    def echoes(body, number):
        if "Greet 1." in str(body):
            return 400, {"error": {"message": f"no, {KEY}"}}
        answer = server.well(body)
        answer["choices"][0]["message"]["content"] = f"Your key is {KEY}. [RESULT] 3"
        return answer

    server = serve(echoes)
    with pytest.raises(client.EndpointError) as caught:
        ask(server, out=tmp_path / "j.jsonl")
    assert all(h["Authorization"] == f"Bearer {KEY}" for h in server.headers)
    assert "[key]" in str(caught.value)
    written = (tmp_path / "j.jsonl").read_text()
    assert "Your key is [key]." in written
    for text in (str(caught.value), repr(caught.value), written, caplog.text):
        assert KEY not in text


def test_a_key_that_is_refused_stops_the_pass(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda body, _: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with pytest.raises(
        client.EndpointError, match=r"refuses the key that was sent.*\[key\].*set SRLIB_API_KEY"
    ) as caught:
        ask(server, api="auto")
    assert KEY not in str(caught.value)
    assert len(server.bodies) == 1
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(client.EndpointError, match="refuses requests without a key"):
        ask(server)


@pytest.mark.parametrize("key", ["sk-bad\nkey", "sk-ключ"])
def test_a_key_that_cannot_be_one_is_not_shown(key, monkeypatch):
    monkeypatch.setenv("SRLIB_API_KEY", key)
    with pytest.raises(client.EndpointError, match="SRLIB_API_KEY holds characters") as caught:
        client.Client("http://localhost:1")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:secret@host/v1", "leave user, password"),
        ("http://host/v1?key=secret", "belongs into the environment"),
        ("ftp://host/v1", "is not an http URL"),
        ("http://", "is not an http URL"),
        ("http://[::1", "is not a URL"),
    ],
)
def test_urls_that_are_refused(url, words):
    with pytest.raises(client.EndpointError, match=words) as caught:
        client.checked_url(url)
    assert "secret" not in str(caught.value)


def test_an_api_is_looked_for_under_v1():
    assert (
        client.checked_url("http://host:8000") == client.checked_url(" http://host:8000/v1/ ") == "http://host:8000/v1"
    )


# ---------------------------------------------------------------- log-probabilities


def likely(*tokens):
    return {"content": [{"token": t, "logprob": p, "top_logprobs": [{"token": a, "logprob": q} for a, q in top.items()]} for t, p, top in tokens]}  # fmt: skip


def test_logprobs_of_both_apis(serve):
    top = {" 3": math.log(0.6), " 2": math.log(0.3), "1": math.log(0.1)}
    content = likely(("Fine. [RESULT]", -0.5, {}), (" 3", math.log(0.6), top), ("", -0.1, {}))
    legacy = {
        "tokens": ["Fine. [RESULT]", " 3"],
        "token_logprobs": [-0.5, math.log(0.6)],
        "top_logprobs": [{}, top],
    }
    for api, given in (("chat", content), ("completions", legacy)):

        def says(body, _, given=given):
            choice = {"text": "Fine. [RESULT] 3", "message": {"content": "Fine. [RESULT] 3"}, "finish_reason": "stop"}
            return {"model": "judge", "choices": [choice | {"logprobs": given}]}

        server = serve(says)
        (found,), _ = ask(server, ITEMS[:1], n=1, api=api, distributions=True)
        assert server.bodies[0].get("top_logprobs") == (20 if api == "chat" else None)
        assert server.bodies[0]["logprobs"] is (True if api == "chat" else 5) or server.bodies[0]["logprobs"] == 5
        assert found.distribution == pytest.approx({1: 0.1, 2: 0.3, 3: 0.6}, abs=1e-5)
        assert found.expected_score == pytest.approx(2.5, abs=1e-4)
        assert found.tokens == (3 if api == "chat" else 2)
        assert found.logprob == pytest.approx(
            (-0.5 + math.log(0.6) - (0.1 if api == "chat" else 0)) / found.tokens, abs=1e-5
        )


@pytest.mark.parametrize("given", [None, {}, {"content": None}, {"content": [{"token": 1}]}, {"tokens": ["a"], "token_logprobs": [None]}, "x"])  # fmt: skip
def test_logprobs_that_cannot_be_read_are_none(serve, given):
    server = serve(lambda body, _: server.well(body, choices=None) | {"choices": [{"text": "", "message": {"content": "Fine. [RESULT] 3"}, "finish_reason": "stop", "logprobs": given}]})  # fmt: skip
    (found,), _ = ask(server, ITEMS[:1], n=1, distributions=True)
    assert (found.logprob, found.distribution, found.score, found.tokens) == (None, None, 3.0, 9)


# ---------------------------------------------------------------- killed and stopped

KILLED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background passes on that it is ignored
from pathlib import Path
from srlib.sample import endpoint
from srlib import files as store
from srlib.schema import Example
place = endpoint.Endpoint({url!r}, "judge", "chat", 2)
endpoint.judgments(place, store.read_rows({rows!r}, Example), n=3, temperature=1.0, out=Path({out!r}))
"""


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_before_the_end_is_not_asked_for_again(serve, tmp_path, with_signal):
    path, hold = tmp_path / "j.jsonl", threading.Event()
    slow = serve(lambda body, number: hold.wait(30) and None if number > 3 else None)
    store.write_rows(tmp_path / "rows.jsonl", ITEMS)
    code = KILLED.format(rows=str(tmp_path / "rows.jsonl"), url=slow.url, out=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if path.exists() and path.read_bytes().count(b"\n") == 9:
            break
        time.sleep(0.05)
    process.send_signal(with_signal)
    assert process.wait(5) != 0, "it does not wait for what is under way"
    hold.set()
    whole = serve()
    found, _ = ask(whole, out=path)
    assert ids(found) == ALL
    assert len(whole.bodies) == 3
    assert len({j.text for j in found}) == len(ALL)


# ---------------------------------------------------------------- Judge and the command


def test_a_judge_on_a_server_is_used_like_any(serve, tmp_path):
    server = serve(models=("served",))
    own = judge.Judge.load(server.url)
    found = own.score(instruction="Greet.", response="Hi.", rubric=POLITE)
    assert (found.score, found.rationale) == (3.0, "Draw 0.0: pass.")
    many = own.score_many(ITEMS, n=2, temperature=1.0, top_p=0.9, max_new_tokens=7, desc="x")
    assert ids(many) == [(e.id, i) for e in ITEMS for i in range(2)]
    assert (server.bodies[-1]["max_tokens"], server.bodies[-1]["top_p"]) == (7, 0.9)


def test_the_command_judges_a_file_through_a_server(serve, tmp_path):
    from typer.testing import CliRunner

    from srlib import cli

    server = serve(poison)
    rows = tmp_path / "rows.jsonl"
    flat = {
        "rubric": "[Is it polite?]\nScore 1: rude\nScore 2: neutral\nScore 3: kind",
        "response": "Hi.",
        "score": None,
    }
    rows.write_text("".join(json.dumps({"id": e.id, "instruction": e.instruction} | flat) + "\n" for e in ITEMS))
    out = tmp_path / "judged.jsonl"
    arguments = ["judge", server.url, str(rows), "-o", str(out), "--model", "judge"]
    server.answer = lambda body, _: (400, "no") if "Greet 4." in str(body) else None
    stopped = CliRunner().invoke(cli.app, arguments)
    assert stopped.exit_code == 1, stopped.output
    assert "the same command asks for these alone" in " ".join(stopped.output.split())
    assert "Traceback" not in stopped.output
    assert not out.exists()
    server.answer = lambda body, _: None
    server.bodies.clear()
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "6 rows, 6 with a score" in done.output
    assert "requests: " in done.output
    assert len(server.real()) == 1
    assert [json.loads(line)["example_id"] for line in out.read_text().splitlines()] == [e.id for e in ITEMS]


def test_a_server_may_move_while_its_judgments_are_drawn():
    """Another address makes no other judgments; another model's name does."""
    from pathlib import Path

    from srlib import config as params
    from srlib.run import stages

    values = params.load(None)
    (stage,) = (s for s in stages.of(values) if s.name == "sample_1")
    key = stages.key(stages.parts(stage, values, Path("nowhere")))
    moved = {"endpoint": "http://other:8000/v1", "endpoint_concurrency": 3, "endpoint_left_out": 0.5}
    assert stages.key(stages.parts(stage, values | moved, Path("nowhere"))) == key
    assert stages.key(stages.parts(stage, values | {"endpoint_model": "other"}, Path("nowhere"))) != key


# ---------------------------------------------------------------- transformers serve


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with transformers_serve(tmp_path_factory.mktemp("serve")) as url:
        yield url


@pytest.mark.torch
def test_transformers_serve_draws_what_the_model_writes(real, base_dir, rows, tmp_path, one_thread):
    """It ignores n, takes no top_k, and is greedy at any temperature unless it is told otherwise: all found out."""
    from srlib.models import load as models
    from srlib.sample import decode as sample

    place = judge.Judge.load(real, directory=base_dir, concurrency=2)
    few = rows[:2]
    drawn = place.score_many(few, n=2, temperature=1.0, max_new_tokens=24, out=tmp_path / "j.jsonl")
    assert ids(drawn) == [(e.id, i) for e in few for i in range(2)]
    assert len({j.text for j in drawn}) > 2, "draws of one prompt should differ"
    assert {(j.failure, j.tokens) for j in drawn} == {("cut_off", 24)}
    assert "one call a draw" in place.told()
    assert "not taken: min_p repetition_penalty top_k" in place.told()

    here, tokenizer = models.load(base_dir)
    served = place.score_many(few)
    ours = sample.judgments(here, tokenizer, few, distributions=False)
    assert any(j.score is not None for j in served)
    for a, b in zip(served, ours, strict=True):
        assert (a.text, a.score, a.failure, a.tokens, a.prompt_tokens) == (
            b.text,
            b.score,
            b.failure,
            b.tokens,
            b.prompt_tokens,
        )


@pytest.mark.torch
def test_transformers_serve_of_a_judge_without_a_chat_template(real, base_dir, rows, tmp_path):
    import shutil

    plain = shutil.copytree(base_dir, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template*"))
    known = judge.Judge.load(real, model=str(plain))
    assert known.score_many(rows[:1], max_new_tokens=8)[0].tokens == 8
    assert "1 to /completions, 0 of them again" in known.told(), "the directory says that it has no chat template"
    found_out = endpoint.Endpoint(real, str(plain), patience=QUICK)
    ((served,), _) = ask(real, rows[:1], n=1, temperature=0.0, place=found_out, max_new_tokens=8)
    assert found_out.api == "completions"
    assert (served.tokens, served.failure) == (8, "cut_off")


@pytest.mark.torch
def test_transformers_serve_without_that_model(real, tmp_path):
    with pytest.raises(client.EndpointError, match="http_500"):
        ask(real, ITEMS[:3], place=endpoint.Endpoint(real, str(tmp_path / "nothing"), patience=QUICK))
