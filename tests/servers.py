"""Servers for the tests: one that misbehaves as it is told, and the real `transformers serve`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Scripted:
    """An OpenAI-compatible server on loopback. `answer(body, number)` says what happens to a request: a dict is its JSON
    answer, (status, dict or text, headers) another one, and a function gets the raw socket handler. None: as `well`."""

    def __init__(self, answer=lambda body, number: None, models=("judge",), paths=("chat", "completions")):
        self.answer, self.listed, self.paths = answer, models, paths
        self.bodies, self.headers, self.at = [], [], []
        self.busy = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.reply(200, {"data": [{"id": name} for name in outer.listed]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.at.append(time.monotonic())
                    number = len(outer.bodies)
                    outer.busy += 1
                    outer.most_at_once = max(outer.most_at_once, outer.busy)
                try:
                    if not any(
                        self.path.endswith({"chat": "/chat/completions"}.get(p, "/v1/completions")) for p in outer.paths
                    ):
                        return self.reply(404, {"detail": "Not Found"})
                    said = outer.answer(body, number)
                    if callable(said):
                        return said(self)
                    status, made, *headers = said if isinstance(said, tuple) else (200, said or outer.well(body))
                    self.reply(status, made, *headers)
                finally:
                    with outer.lock:
                        outer.busy -= 1

            def reply(self, status, made, headers=()):
                data = (made if isinstance(made, str) else json.dumps(made)).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def well(self, body, choices=None, **changes):
        """A proper answer: every draw says which seed and which draw it is, so that a doubled one would show."""
        n = choices or body.get("n", 1)
        texts = [f"Draw {body.get('seed', 0)}.{k}: pass. [RESULT] 3" for k in range(n)]
        made = [
            {"index": k, "text": t, "message": {"content": t}, "finish_reason": "stop"} for k, t in enumerate(texts)
        ]
        used = {"prompt_tokens": 20, "completion_tokens": 9 * n}
        return {"model": body["model"], "choices": made, "usage": used} | changes

    def real(self):
        """The requests that asked for judgments, not what found out about the server."""
        return [body for body in self.bodies if body["max_tokens"] > 1]

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def transformers_serve(home: Path):
    """`transformers serve` on a CPU, offline, with an empty hub cache; it loads a model's directory when it is asked for it.

    In fp32: in the bf16 of the weights, sums over other shapes tie or not, and another token is the likeliest on some processors.
    """
    import httpx

    port = free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    with open(home / "serve.txt", "w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            assert server.poll() is None, (home / "serve.txt").read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)
