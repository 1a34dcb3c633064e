"""The machine at hand, the cards that a plan is compared with, and the peak memory of a process."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Card:
    """A GPU and its memory in bytes, or a machine's RAM."""

    name: str
    bytes: float
    gpu: bool = True


_MIB = {"T4, 16 GB": 15360, "RTX 4090, 24 GB": 24564, "H100, 80 GB": 81559, "H200, 141 GB": 143771}  # of nvidia-smi
CARDS = tuple(Card(name, mib * 2**20) for name, mib in _MIB.items())


def found() -> Card:
    """The first of the visible `gpus`, which one process uses, else this machine's RAM: `Card("Tesla T4", 16106127360.0)`."""
    if cards := gpus():
        return cards[0]
    ram = float(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):  # a container may have less than its host; "max" is no limit
        ram = min(ram, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return Card("this machine's RAM", ram, gpu=False)


def gpus() -> list[Card]:
    """The GPUs of nvidia-smi that CUDA_VISIBLE_DEVICES names, by number or UUID, in its order, or all in that of the bus."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip()
    if visible in ("", "-1"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):  # no such tool, or no GPU
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        cards = [[part.strip() for part in line.split(",")] for line in lines if line.count(",") == 3]
        names = [card[0] for card in cards] if visible == "all" else [name.strip() for name in visible.split(",")]
        named = [card for name in filter(None, names) for card in cards if name == card[0] or card[1].startswith(name)]
        seen = cards if visible.startswith("MIG") else named  # a part of a GPU has a name of its own
        return [Card(name, float(mib) * 2**20) for _, _, name, mib in seen]
    return []


def end_with_parent() -> None:
    """End this process within a second of its parent; a busy worker would otherwise finish its batch first."""

    def watch(parent: int = os.getppid()) -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):  # on Windows, its number stays
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_memory() -> int | None:
    """Most bytes of RAM that this process, or one ended child of it, ever held; None on Windows, which keeps no record."""
    try:
        import resource
    except ImportError:
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_gpu_memory() -> int | None:
    """Most bytes that torch held on any one GPU in this process; None if it has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return max(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))
