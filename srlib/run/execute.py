"""Execute one notebook in a kernel of its own, as a process of the pipeline: execute.py NOTEBOOK OUT '{"beta": 0.3}'.

Prints what went wrong. When the pipeline ends, however it ends, its pipe to stdin closes: then this process ends, and the
kernel within a second. Imports nothing of srlib."""

import json
import logging
import os
import sys
import tempfile
import threading
import time

sys.modules |= dict.fromkeys(["rfc3987_syntax", "isoduration", "pyarrow"])  # optional, slow, and not needed here
import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402

ROOM = ". Free memory (--workers 1) or space; the same command then resumes"
# What Python, the system, its library loader and a dying kernel say; the last is safetensors on a full disk
NO_MEMORY = "MemoryError", "allocate memory", "map segment", "CellExecutionError: ", "(os error 28)"


class Kernel(AsyncKernelManager):
    """A kernel of this interpreter, reached over Unix sockets where there are some: others may take a TCP port first."""

    kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    def __init__(self, **options: object) -> None:
        path = f"{tempfile.gettempdir()}/srlib-{os.getpid()}"  # of a socket, of which a system allows some 100 bytes
        socket = {"transport": "ipc", "ip": path} if os.name != "nt" and len(os.fsencode(path)) < 90 else {}
        super().__init__(**options | socket)


if __name__ == "__main__":
    threading.Thread(target=lambda: sys.stdin.read() or os._exit(1), daemon=True).start()
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of names in no parameters cell
    notebook, out = (path.replace("{", "{{").replace("}", "}}") for path in sys.argv[1:3])  # papermill fills in {names}
    options = dict(kernel_name="python3", language="python", progress_bar=False, kernel_manager_class=Kernel)
    options |= dict(parameters=json.loads(sys.argv[3]), start_timeout=180, iopub_timeout=120)
    rank = int(os.environ.get("RANK", 0))  # of several processes that execute a stage together
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(rank + 1)))).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank % len(visible)]  # transformers would use all; "" stays
    if "LOCAL_RANK" in os.environ and any(visible):
        os.environ["LOCAL_RANK"] = "0"  # the number of the GPU among those that the process sees
    if rank:
        out, os.environ["SRLIB_PROGRESS"] = None, ""
    answer, problem = os.dup(1), ""
    os.dup2(2, 1)  # what the kernel prints outside of its cells goes to the log
    try:
        papermill.execute_notebook(notebook, out, **options)
    except papermill.PapermillExecutionError as error:
        if error.ename != "NotFirst":  # which ends all but the first of these processes
            problem = f"in cell {error.exec_count}: {error.ename}: {error.evalue}"
            problem += ROOM if any(sign in problem for sign in NO_MEMORY) else ""
    except (RuntimeError, OSError) as error:  # a kernel that died, mostly for lack of memory, or a full disk
        problem = f"({error}){ROOM}"
    time.sleep(5 * bool(rank and problem))  # the first one may say it
    os.write(answer, (problem[:8000] + " ..." * (len(problem) > 8000)).encode(errors="backslashreplace"))
    os._exit(bool(problem))
