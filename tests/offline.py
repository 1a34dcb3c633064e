"""What an offline wandb run holds, read from its file: a LevelDB log of protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def ended(path: Path) -> list[Any]:
    """The records of a run once its end is among them: wandb's own process may write a moment after `finish`."""
    for _ in range(200):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    return found


def tracked(folder: Path) -> list[dict[str, Any]]:
    """Each run below a `wandb` folder: group, job_type, config, `history` (one dict a step), `summary`, `tables` by file name."""
    runs = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        run: dict[str, Any] = {"history": [], "summary": {}}
        for record in ended(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"group": record.run.run_group, "job_type": record.run.job_type}
                run["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if kind == "history":
                run["history"].append(
                    {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                )
            if kind == "summary":
                updates = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
                run["summary"] |= updates
        tables = path.parent.glob("files/media/table/**/*.table.json")
        run["tables"] = {
            str(t.relative_to(path.parent / "files/media/table")).rsplit("_", 2)[0]: json.loads(t.read_text())
            for t in tables
        }
        runs.append(run)
    return runs
