"""Stages of runs as tasks of a Ray cluster: `srlib run --cluster local|auto|ADDRESS`. The extra `cluster` installs Ray.

Ray places work, counts cores and GPUs, and reruns a task if its worker or node died. All state that matters is in the run
directories, which all nodes see at one path. A stage there is the same process as on this machine (execute.py), and
resumes in its directory; so the same command goes on with or without a cluster. Draws and judgments of arms are shared by
processes on as many nodes as have room, a part each, as `gpus` processes share them on one node."""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import srlib
from srlib import config, files
from srlib.run import pipeline
from srlib.run.stages import RunError

RETRIES = 5  # restarts of a stage if its worker or node dies
PACKAGES = ("ray", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
SHARED = "shared, with locks"
ANSWER = 120.0  # seconds in which every node has to answer


class Cluster(contextlib.AbstractContextManager):
    """A connected cluster whose nodes all see the project and the run directories, and have the same versions. Raises RunError
    that names the node and what is wrong with it, or what to install."""

    def __init__(self, address: str, run_dirs: Sequence[Path]) -> None:
        self.ray, self.refs = join(address), []
        self.runs, self.nodes = len(run_dirs), [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.most = {name: max(int(node.get(name, 0)) for node in self.nodes) for name in ("CPU", "GPU")}
        for folder in {path.absolute().parent for path in run_dirs}:
            self._check(folder)

    def __exit__(self, *_: object) -> None:
        self.ray.wait(self.refs, num_returns=len(self.refs), timeout=10) if self.refs else None  # after Ctrl-C
        self.ray.shutdown()

    def start(self, task: pipeline.Task) -> "Process":
        """Execute a stage wherever there is room: a GPU for each process, if there are any, else a core for each thread."""
        cores = task.threads * task.processes
        gpus = task.processes if self.most["GPU"] and task.notebook != "01_data" else 0
        for name, n in (("CPU", cores), ("GPU", gpus)):
            if n > self.most[name]:
                raise RunError(f"{task.notebook} needs {n} {name}s of one node, and the largest has {self.most[name]}")
        environment = task.environment | {"SRLIB_WAIT": "120"} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
        return Process(self, task._replace(environment=environment), gpus)

    def room(self, threads: int, gpus: int) -> Any:
        """A placement group of what is free now, at most the run's share, in two pieces or more; None if there is none."""
        needs, n = {name: k for name, k in (("CPU", threads), ("GPU", gpus)) if k}, 0

        def pieces(of: dict[str, float]) -> int:
            return min(int(of.get(name, 0)) // k for name, k in needs.items())

        share = sum(map(pieces, self.nodes)) // self.runs
        for _ in range(10 if share > 1 else 0):  # what a stage has just left is free in a moment
            if (n := min(share, pieces(self.ray.available_resources()))) == share:
                break
            time.sleep(0.2)
        group = self.ray.util.placement_group([needs] * n, strategy="SPREAD") if n > 1 else None
        if group is not None and not group.wait(5):  # a node has died, or another stage was faster
            self.ray.util.remove_placement_group(group)
            return None
        return group

    def _check(self, folder: Path) -> None:
        """Compare all nodes with this machine; raises RunError."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe, root = folder / f".probe-{os.getpid()}", str(config.project_root())
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in self.ray.nodes() if node["Alive"]}
        task, ours, wrong = self.ray.remote(num_cpus=0, max_retries=0)(_seen), _seen(root) | {str(folder): SHARED}, []
        try:
            files.acquire(probe)
            near = functools.partial(NodeAffinitySchedulingStrategy, soft=False)
            asked = {node: task.options(scheduling_strategy=near(node)).remote(root, probe) for node in nodes}
            self.ray.wait([*asked.values()], num_returns=len(asked), timeout=ANSWER)
            for node, ref in asked.items():
                name = f"node {nodes[node]} ({node[:8]})"
                try:
                    theirs = self.ray.get(ref, timeout=0)
                except self.ray.exceptions.RayError as error:  # no srlib there, or no answer
                    wrong.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")
                    continue
                wrong += [f"{name}: {difference}" for difference in differences(ours, theirs)]
        finally:
            files.release(probe)
            probe.unlink(missing_ok=True)
        if wrong:
            raise RunError("the cluster cannot run this. " + "\n".join(wrong))


class Process:
    """A stage on the cluster; to `pipeline.Job` what a subprocess.Popen is. If its worker or node dies, Ray starts it again; if
    one of several processes that share its draws does, all of them go on from what is drawn, as many as there is room for."""

    def __init__(self, place: Cluster, task: pipeline.Task, gpus: int) -> None:
        self.place, self.task, self.gpus, self.lives = place, task, gpus, RETRIES
        self.stdin, self.stdout, self.returncode = io.StringIO(), io.StringIO(), None
        self._start()

    def _start(self) -> None:
        task, gpus, parts = self.task, self.gpus, [self.task]
        self.group = self.place.room(task.threads, min(gpus, 1)) if task.draws else None
        if self.group is None:
            options = dict(num_cpus=task.threads * task.processes, num_gpus=gpus, max_retries=RETRIES)
        else:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Within

            options = dict(num_cpus=task.threads, num_gpus=min(gpus, 1), scheduling_strategy=Within(self.group))
            n, launch = self.group.bundle_count, uuid.uuid4().hex
            for k in range(n):
                said = {"TORCHELASTIC_RUN_ID": launch, "RANK": str(k), "WORLD_SIZE": str(n)}  # as torchrun says it
                log = task.log.with_suffix(f".{k}.txt") if k else task.log
                parts[k:] = [task._replace(environment=task.environment | said, log=log, processes=1)]
        run = self.place.ray.remote(**{"max_calls": 1, "max_retries": 0, "name": str(task.log)} | options)(_execute)
        self.refs = [run.remote(part) for part in parts]
        self.place.refs += self.refs

    def poll(self) -> int | None:
        ray = self.place.ray
        ended, running = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
        if self.returncode is not None or not ended:
            return self.returncode
        try:
            status, said = max(ray.get(ended))
        except ray.exceptions.RayError as error:
            status, said = 1, f"on the cluster: {type(error).__name__}: {str(error).strip()}"
            self.lives -= 1
            if self.group is not None and self.lives >= 0 and not isinstance(error, ray.exceptions.RayTaskError):
                self.kill()
                return self._start()
        if status or not running:
            self.kill()
            self.returncode, self.stdout = status, io.StringIO(said)
        return self.returncode

    def kill(self) -> None:
        for ref in self.refs:
            self.place.ray.cancel(ref, force=True)  # the stage's process ends with the worker
        if self.group is not None:
            self.place.ray.util.remove_placement_group(self.group)


def join(address: str) -> Any:
    """The module ray, connected to a cluster: `local` starts one on this machine, `auto` finds the one that it belongs to,
    `HOST:PORT` names another. Raises RunError if Ray is not installed or nothing answers."""
    host, _, port = address.rpartition(":")
    loopback = address == "local" or host in ("127.0.0.1", "localhost")
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token"}
    quiet |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if loopback else {}  # else Ray takes an outer address instead
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise RunError("--cluster needs Ray on every node: `uv pip install -e '.[cluster]'` in the clone") from None
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    options |= {"_node_ip_address": "127.0.0.1"} if loopback else {}
    options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20} if address == "local" else {}
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
        ray.init(address, **options)
    except Exception as error:  # Ray raises anything
        raise RunError(f"no Ray cluster answers at {address} ({error}); start one, or use --cluster local") from None
    return ray


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """What another node has otherwise: `["torch is 2.10.0 there and 2.13.0 here", "trl is missing there and ..."]`."""
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    return [f"{name} is {theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here" for name in names]


def _seen(root: str, probe: Path | None = None) -> dict[str, str]:
    """What a node has: {"python": "3.11.7", "torch": "2.13.0", ..., "code": hash, folder of the probe: what it is there}."""
    seen = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            seen[name] = importlib.metadata.version(name)
    code = [*sorted(Path(srlib.__file__).parent.rglob("*.py")), *sorted(Path(root, "notebooks").glob("*.ipynb"))]
    seen["code"] = hashlib.sha256("".join(files.sha256(path) for path in code).encode()).hexdigest()[:12]
    if probe is not None:
        seen[str(probe.parent)] = "another directory"
        with contextlib.suppress(FileNotFoundError, *files.HELD), open(probe, "r+b", buffering=0) as file:
            seen[str(probe.parent)] = SHARED
            files.try_lock(file)
            seen[str(probe.parent)] = "without the locks of other nodes"
    return seen


def _execute(task: pipeline.Task) -> tuple[int, str]:
    """In a worker: the exit status of the stage's process, and what went wrong."""
    code = Path(srlib.__file__).parent.parent  # what `_seen` has compared, wherever Ray has found it
    path = f"{code}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    process = task._replace(environment=task.environment | {"PYTHONPATH": path}).start()
    return process.wait(), process.stdout.read()
