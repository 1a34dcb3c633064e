"""Progress of a long loop: a plain bar for a person, a heartbeat file for the pipeline.

Ground floor: imports nothing of ours. In a notebook or a terminal this is a tqdm bar, in a log one line each half
minute. Where the environment variable SRLIB_PROGRESS names a file, no bar is drawn, and `{"desc": "sample 1",
"done": 40, "total": 800}` is written there at most twice a second: the pipeline draws its stages' bars from these. Where the variable is empty,
nothing is shown.

    for prompt in progress(prompts, desc="sample 1"): ...

    with progress(total=len(prompts) * 10, desc="sample 1") as bar:
        bar.update(10)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EVERY = 0.5  # seconds between two heartbeats


class Progress:
    """What `progress` returns: iterate over it, or enter it and call `update`."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, desc: str) -> None:
        self.iterable, self.desc, self.done = iterable, desc, 0
        self.total = total if total is not None or not hasattr(iterable, "__len__") else len(iterable)  # type: ignore[arg-type]
        self.file = os.environ.get("SRLIB_PROGRESS")
        self.written, self.bar = 0.0, None
        if self.file is not None:
            self._beat()
        else:
            from tqdm import tqdm  # the plain one: a widget leaves nothing in an executed notebook

            live = sys.stderr.isatty() or "ipykernel" in sys.modules
            self.bar = tqdm(total=self.total, desc=desc, mininterval=EVERY if live else 30, disable=False)

    def update(self, n: int = 1) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.written >= EVERY:
            self._beat()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        else:
            self._beat()

    def _beat(self) -> None:
        self.written = time.monotonic()
        if not self.file:
            return
        path = Path(self.file)
        if path.exists() and not path.is_file():  # root could put a file in the place of /dev/null
            return
        with contextlib.suppress(OSError):  # a full disk must not stop the work that is being shown
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(json.dumps({"desc": self.desc, "done": self.done, "total": self.total}))
            os.replace(temporary, path)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable if self.iterable is not None else range(self.total or 0):
                yield item
                self.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(iterable: Iterable[Any] | None = None, total: int | None = None, desc: str = "") -> Progress:
    """A progress display over `iterable`, or over `total` steps that are reported with `.update(n)`."""
    return Progress(iterable, total, desc)
