"""Servers for the tests: one that misbehaves on request, and the real `transformers serve`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted:
    """An OpenAI-compatible server on loopback. `answer(body, number)` decides on a request: a dict is the JSON answer,
    (status, dict or text, headers) another one, a function gets the raw socket handler, None answers as `well`."""

    def __init__(self, answer=lambda body, number: None):
        self.answer, self.bodies, self.headers, self.paths, self.at = answer, [], [], [], []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.at.append(time.monotonic())
                    number = len(outer.bodies)
                answer = outer.answer(body, number)
                if callable(answer):
                    return answer(self)
                whole = answer if isinstance(answer, tuple) else (200, answer or outer.well(body))
                status, content, headers = (*whole, {})[:3]
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def well(self, body, n=None, **changes):
        """A proper answer: every draw says its seed and its number, so that a doubled one would show."""
        n = n or body.get("n", 1)
        texts = [f"Draw {body.get('seed', 0)}.{k}: pass. [RESULT] 3" for k in range(n)]
        choices = [{"text": text, "message": {"content": text}, "finish_reason": "stop"} | changes for text in texts]
        return {"model": body["model"], "choices": choices, "usage": {"prompt_tokens": 20, "completion_tokens": 9 * n}}

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def transformers_serve(home):
    """`transformers serve` on a CPU, offline, with an empty hub cache; it loads a model's directory on request, in fp32: in the
    bf16 of the weights, sums over other shapes tie or not, and another token is the likeliest on some processors."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)
