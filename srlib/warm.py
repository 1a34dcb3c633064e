"""A kernel that has its imports behind it.

torch, transformers, peft and trl take six seconds to import, in each notebook anew. Here one process imports them, and
every kernel of a run is a fork of it. Linux without a GPU only (CUDA does not survive a fork); elsewhere, and before the
imports are done, `fork` gives None and the caller starts an ordinary kernel.

    nursery = Nursery(environment)
    kernel = nursery.fork(["...", "-f", "connection.json"], env, cwd, log)    # like a subprocess.Popen, or None
    nursery.close()                                                          # and with it every kernel of it

Nothing of ours is imported in there: code that is edited during a run must not meet its older self.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What training notebooks import. Not matplotlib: it ties itself to the notebook it is first imported in.
MODULES = ("ipykernel.kernelapp", "torch", "transformers", "datasets", "peft", "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer")  # fmt: skip


def possible(backend: str | None) -> bool:
    """Whether a fork can be a kernel here: on Linux, for notebooks that train, and not with Unsloth, which has to be
    imported before all the others."""
    import importlib.util

    if sys.platform != "linux" or backend is None:
        return False
    return backend == "transformers" or (backend == "auto" and importlib.util.find_spec("unsloth") is None)


class Nursery:
    """The process that has imported; it ends with the one that made it, and its kernels end with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.guard = threading.Lock()
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.answers = self.channel.makefile("r")
        self.ready = False

    def fork(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        log: Path,
        patience: float = 0,
        nice: int = 0,
    ) -> Forked | None:
        """A kernel for `argv`, whose last words go to `log`; None where there is none to be had within `patience` seconds,
        or ever."""
        with self.guard, contextlib.suppress(OSError, ValueError):
            if not self.ready:
                if not select.select([self.channel], [], [], patience)[0]:
                    return None
                self.ready = self.answers.readline() == "ready\n"
            if self.ready:
                asked = {"argv": list(argv), "env": dict(env), "cwd": cwd or os.getcwd(), "log": str(log), "nice": nice}
                self.channel.sendall((json.dumps(asked) + "\n").encode())
                return Forked(int(self.answers.readline()))
        return None

    def close(self) -> None:
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Forked:
    """What jupyter_client wants of a subprocess.Popen; its parent is the nursery, so only its pid is known here."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = -1  # the nursery does not keep how it ended
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        started = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired("kernel", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def step_back(nice: int, pid: int = 0) -> None:
    """Let a process (0: this one) and its session have the cores after all that is less nice, where that can be had."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such thing
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.nice(0) + nice))
    with contextlib.suppress(OSError):  # Linux may share its cores among sessions (autogroup), not among processes
        Path(f"/proc/{pid or os.getpid()}/autogroup").write_text(str(nice))


# ---------------------------------------------------------------- in the nursery


def _serve(channel: socket.socket) -> None:
    import gc
    import importlib

    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared stays shared: collecting would write to it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a kernel ended
    channel.sendall(b"ready\n")
    for line in channel.makefile("r"):
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become_kernel(json.loads(line))
        channel.sendall(f"{pid}\n".encode())


def _become_kernel(asked: dict[str, Any]) -> None:
    os.setsid()  # killed as a group of its own, like any kernel
    if asked["nice"]:
        step_back(asked["nice"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # A kernel ends when its parent is gone; who that is was read from the environment when ipykernel was imported.
    sys.argv = ["ipykernel_launcher", *asked["argv"], f"--IPKernelApp.parent_handle={os.getppid()}"]
    from ipykernel import kernelapp

    try:
        kernelapp.launch_new_instance()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the ordinary way out waits for all threads, and one of a half made kernel never ends
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
