"""The kernels of one run: how they start, forked from a warm process or as ordinary ones, and how they all end.

kernels = Kernels(backend="auto")
papermill.execute_notebook(..., kernel_manager_class=kernels.manager(environment, log, nice=0))
kernels.kill()                                 # whatever still runs

They are talked to over sockets in a folder of this run's own, where there are such: a TCP port is chosen before its
kernel has started, and when another process takes it meanwhile, ipykernel neither works nor ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlib import machine, warm

PATIENCE = 20.0  # seconds from the nursery's start that kernels wait for it: imports of their own would slow it down
SOCKET_PATH = 100  # characters that the path of a socket may have: 103 on macOS, 107 on Linux


class Kernels:
    """Makes kernel managers for this interpreter, without an installed kernelspec, and knows what is running.

    Threads share os.environ; a kernelspec has an environment of its own, and papermill passes the manager's class on.
    """

    def __init__(self, backend: str | None) -> None:
        self.started: list[Any] = []
        self.stopped = False
        self.guard = threading.Lock()
        self.nursery: warm.Nursery | None = None
        self.founded = 0.0  # when; by time.monotonic
        self.forks = warm.possible(backend) and not machine.gpu()
        self.sockets = tempfile.mkdtemp(prefix="srlib-")
        self.numbers = itertools.count()

    def manager(self, environment: Mapping[str, str], log: Path, nice: int = 0) -> type:
        """A class of kernel managers; what a kernel says outside of its cells goes to `log`, not across our bars. `nice` is
        how far it steps back behind the other kernels where there are fewer cores than processes."""
        from jupyter_client import AsyncKernelManager
        from jupyter_client.kernelspec import KernelSpec
        from traitlets import default

        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = KernelSpec(argv=argv, language="python", env=dict(environment))
        kernels = self
        sockets = os.path.join(self.sockets, str(next(self.numbers)))

        class KernelManager(AsyncKernelManager):
            @default("transport")
            def _transport_default(self) -> str:
                return "ipc" if os.name == "posix" and len(f"{sockets}-1") <= SOCKET_PATH else "tcp"

            @default("ip")
            def _ip_default(self) -> str:
                return sockets if self.transport == "ipc" else super()._ip_default()

            @property
            def kernel_spec(self) -> KernelSpec:
                return spec

            async def _async_launch_kernel(self, kernel_cmd: list[str], **kwargs: Any) -> None:
                with kernels.guard:
                    if kernels.stopped:
                        raise RuntimeError("the pipeline was stopped")
                    kernels.started.append(self)
                forked = kernels.fork(environment, kernel_cmd, kwargs, log, nice)
                if kernels.stopped:  # while it waited
                    if forked is not None:
                        forked.kill()
                    raise RuntimeError("the pipeline was stopped")
                if forked is not None:
                    self.provisioner.process = forked
                    self.provisioner.pid = self.provisioner.pgid = forked.pid
                    self._reconcile_connection_info(self.provisioner.connection_info)
                    return
                with open(log, "wb") as output:
                    await super()._async_launch_kernel(kernel_cmd, **kwargs, stdout=output, stderr=output)
                if kernels.stopped:  # while it started
                    self.provisioner.process.kill()
                    raise RuntimeError("the pipeline was stopped")
                if nice:
                    warm.step_back(nice, self.provisioner.pid)

        return KernelManager

    def fork(
        self, environment: Mapping[str, str], command: list[str], how: Mapping[str, Any], log: Path, nice: int
    ) -> warm.Forked | None:
        """A kernel from the nursery, which the first kernel of a run founds; None where it has to be an ordinary one."""
        if not self.forks:
            return None
        with self.guard:
            now = time.monotonic()
            if self.nursery is None:
                self.nursery, self.founded = warm.Nursery(environment), now
            patience = 0.0 if self.founded == now else max(0.0, self.founded + PATIENCE - now)
        return self.nursery.fork(command[command.index("-f") :], how["env"], how.get("cwd"), log, patience, nice)

    def kill(self) -> None:
        """End every kernel that is still there, at once: what it wrote is safe by construction."""
        with self.guard:
            self.stopped = True
        for manager in self.started:
            process = getattr(manager.provisioner, "process", None)
            if process is not None and process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        if self.nursery is not None:
            self.nursery.close()
        shutil.rmtree(self.sockets, ignore_errors=True)
