"""Run a sweep alone and on a cluster of two nodes: are all files the same, and how long does each take?

    python bench/cluster_sweep.py --out docs/bench/cluster-sweep.json     # extras train, notebooks and cluster; a quiet machine
    python bench/cluster_sweep.py --size medium --out docs/bench/cluster-two.json
    python bench/cluster_sweep.py --size one --out docs/bench/cluster-one.json

Four seeds and two learning rates with small numbers; two seeds with stages of half a minute to two minutes; or one such run,
whose draws and judgments both nodes share. The real notebooks, stages of one thread. Alone, one stage runs after another; on the
cluster (a head without cores and two nodes of one core, all on this machine) there is room for two. The time that the cluster
needs to start is told apart. Files of data, judges, judgments, pairs and evaluation have to be the same, byte for byte; manifests
and `*.done` hold times, and `results.json` is compared without what was measured in seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, machine

FOLDERS = ("data", "judges", "judgments", "pairs", "eval")
SMALL = "iterations=1 n_train=24 n_validation=5 n_test=8 n_ood=5 n_pairwise=4 sft_steps=6 sft_batch_size=4"
SMALL += " n_samples=6 margin=1 max_new_tokens=48 dpo_batch_size=4 eval_samples=2 n_boot=100 workers=1 sft_learning_rate=0.001,0.002"
MEDIUM = "iterations=1 n_train=300 n_validation=20 n_test=100 n_ood=50 n_pairwise=20 sft_steps=80 workers=1"
SIZES = {"small": ("0,1,2,3", SMALL), "medium": ("0,1", MEDIUM), "one": ("0", MEDIUM)}  # seeds, parameters


def sweep(name: str, size: str, arms: str, *options: str) -> tuple[float, list[Path]]:
    """Seconds of the command, and the directories of its runs."""
    seeds, settings = SIZES[size]
    command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml", "--seeds", seeds]
    command += [part for setting in [f"arms={arms}", *settings.split()] for part in ("-p", setting)]
    started = time.monotonic()
    subprocess.run([*command, "--run-dir", f"runs/{name}", *options], cwd=ROOT, check=True)
    return round(time.monotonic() - started, 1), sorted((ROOT / "runs").glob(f"{name}-*/"))


def files_of(run: Path) -> dict[str, bytes]:
    """What a run has made, by path; the results without their seconds."""
    found = [path for folder in FOLDERS for path in (run / folder).rglob("*") if path.is_file()]
    found = [path for path in found if path.suffix != ".done" and path.name not in ("manifest.json", "results.json")]
    made = {str(path.relative_to(run)): path.read_bytes() for path in found}
    rows = [row for row in json.loads((run / "results.json").read_text()) if row["metric"] != "seconds"]
    return made | {"results.json": json.dumps(rows).encode()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument(
        "--size", choices=SIZES, default="small", help="eight runs with small numbers, two larger ones, or one"
    )
    arguments.add_argument("--arms", default="base,sft,sre_1", help="base,sft leaves out draws, pairs and DPO")
    a = arguments.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    alone, runs = sweep("alone", a.size, a.arms, "--workers", "1")
    started = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        start = round(time.monotonic() - started, 1)
        there, others = sweep("there", a.size, a.arms, "--cluster", cluster.address)
    finally:
        cluster.shutdown()
    pairs = [(files_of(one), files_of(two)) for one, two in zip(runs, others, strict=True)]
    differ = []
    for run, (one, two) in zip(runs, pairs, strict=True):
        differ += [f"{run.name}/{path}" for path in sorted({*one, *two}) if one.get(path) != two.get(path)]
    result = {"command": f"python bench/cluster_sweep.py --size {a.size} --arms {a.arms}", "runs": len(runs)}
    result |= {"files compared": sum(len(one) for one, _ in pairs), "files that differ": differ}
    result |= {"seconds alone": alone, "seconds until the cluster was there": start, "seconds on the cluster": there}
    result |= {"ratio": round(there / alone, 2)} | machine()
    print(json.dumps(result, indent=1))
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
