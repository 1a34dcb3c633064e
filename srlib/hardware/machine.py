"""The machine this runs on, what a process takes of it, and the GPUs that a plan is compared with. Ground floor: imports
nothing of ours, nor torch.

found() -> Card("NVIDIA H100 80GB HBM3", 85520809984.0), or Card("this machine's RAM", ..., gpu=False)
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Card:
    """A GPU, or a machine's RAM where there is none. `flops`: dense 16-bit peak of the datasheet, in TFLOP/s."""

    name: str
    bytes: float
    flops: float = 0.0
    gpu: bool = True


# Memory as nvidia-smi names it; TFLOP/s from NVIDIA's datasheets (T4, Ada whitepaper, H100 SXM, H200 SXM), no sparsity.
CARDS = (
    Card("T4, 16 GB", 15360 * 2**20, 65),
    Card("RTX 4090, 24 GB", 24564 * 2**20, 165),
    Card("H100, 80 GB", 81559 * 2**20, 989),
    Card("H200, 141 GB", 143771 * 2**20, 989),
)


def found() -> Card:
    """The largest GPU that nvidia-smi names (unless CUDA_VISIBLE_DEVICES hides it), else this machine's RAM."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if not hidden and (smi := shutil.which("nvidia-smi")):
        query = [smi, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):  # then there is a tool and no GPU
            lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
            cards = [line.rsplit(",", 1) for line in lines if "," in line]
            return max((Card(name.strip(), float(mib) * 2**20) for name, mib in cards), key=lambda card: card.bytes)
    ram = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # a container may have less than its host; "max" is no limit
        ram = min(ram, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return Card("this machine's RAM", ram, gpu=False)


def gpu() -> bool:
    """Whether there is a GPU to be seen; torch is not asked."""
    found = os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd") or shutil.which("nvidia-smi") is not None
    return found and os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() not in ("", "-1")


def facts() -> dict[str, Any]:
    """What a figure needs beside it: device, cores, load. No host name and no path."""
    card = found()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": card.name if card.gpu else cpu(),
        "gpu": card.gpu,
        "cpu": cpu(),
        "cores": cores,
        "memory_gib": round(card.bytes / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
    }


def cpu() -> str:
    """The processor's name: `"AMD EPYC"`."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(threads: int | str | None = None) -> dict[str, str]:
    """Variables for a process that computes: `threads` of torch's (None: its own choice), none of which burns a core while it
    waits. Without a GPU, what it frees stays with it, in large pages: glibc gave 15,000 pages a step of
    SFT back and asked for them again where srlib.lowrank computes (docs/LOG.md); other systems ignore that, and a value of the user's own stays."""
    found = {"GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    if not gpu() and "GLIBC_TUNABLES" not in os.environ:
        keep = ("hugetlb=1", "mmap_max=0", "trim_threshold=100000000000")
        found["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{setting}" for setting in keep)
    return found


def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16, as torch asks it (avx512_bf16): then training runs under autocast."""
    with contextlib.suppress(OSError):
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    return False


def peak_memory() -> int | None:
    """Most bytes of RAM that this process, or one child of it that has ended, ever held; None where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_gpu_memory() -> int | None:
    """Most bytes that torch held on any one GPU in this process; None without a GPU, or where torch was not needed."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return max(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))


def energy() -> float | None:
    """Joules that the GPUs have used since their driver was loaded: of two looks, the difference counts. All processes
    on them are in it. None without an NVIDIA GPU or the package nvidia-ml-py, and on GPUs that do not count (before Volta).
    """
    try:
        import pynvml
    except ImportError:
        return None
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "all").split(",")]
    if shown in ([""], ["-1"]):
        return None
    try:
        pynvml.nvmlInit()
        every = range(pynvml.nvmlDeviceGetCount())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in every if shown == ["all"] or str(i) in shown]
        counted = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles]  # in mJ
    except pynvml.NVMLError:
        return None
    return sum(counted) / 1000 if counted else None
