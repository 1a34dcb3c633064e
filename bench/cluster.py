"""Simulate the scheduler of `srlib run --cluster`: how long a sweep takes, and what waits for what.

    python bench/cluster.py params/h100.yaml --runs 1000 --gpus 64

Stages and tokens are those of `srlib plan`; the speeds below turn tokens into seconds, and nothing is loaded. A stage starts
once its inputs are made, the driver has looked at it, and a GPU is free; first come, first served, as Ray does. The driver
looks at one stage after another (`--driver` seconds each: it hashes code, parameters and manifests). `--start` is what a stage
costs beside its tokens: a process, imports, loading the model.
"""

import argparse
import heapq

from srlib import config
from srlib.run import plan, stages

# Tokens a second of one GPU at 8 B parameters in 16 bit: assumptions, to be replaced by what a stage was measured to take
SPEED = {"02_sft": 6_000, "03_sample": 4_000, "05_dpo": 6_000, "06_eval": 4_000, "07_diagnose": 4_000}


def simulate(
    seconds: dict[str, float], needs: dict[str, tuple[str, ...]], runs: int, gpus: int, driver: float
) -> dict[str, float]:
    """Makespan (s), busy share of the GPUs and of the driver, for runs of stages of so many `seconds` (0: no GPU); `needs`
    names the stages behind each."""
    left = {(r, name): len(needs[name]) for r in range(runs) for name in needs}
    readers = {name: [other for other in needs if name in needs[other]] for name in needs}
    ready = [(0.0, r, name) for r in range(runs) for name in needs if not needs[name]]  # time at which inputs are made
    heapq.heapify(ready)
    free, ends, looked, busy = [0.0] * gpus, [], 0.0, 0.0
    while ready or ends:
        if ready and (not ends or ready[0][0] <= ends[0][0]):
            since, r, name = heapq.heappop(ready)
            looked = max(looked, since) + driver
            start = max(looked, heapq.heappop(free)) if seconds[name] else looked
            if seconds[name]:
                heapq.heappush(free, start + seconds[name])
            busy += seconds[name]
            heapq.heappush(ends, (start + seconds[name], r, name))
            continue
        end, r, name = heapq.heappop(ends)
        for other in readers[name]:
            left[r, other] -= 1
            if not left[r, other]:
                heapq.heappush(ready, (end, r, other))
    makespan = max(end, looked)
    return {"seconds": makespan, "gpus": busy / (gpus * makespan), "driver": len(left) * driver / makespan}


def of_run(cfg: config.Parameters, start: float, speed: float = 1.0) -> tuple[dict, dict]:
    """Seconds and inputs of the stages of one run."""
    steps = stages.of(cfg)
    made = {stage.output: stage.name for stage in steps}
    needs = {stage.name: tuple(made[name] for name in stage.inputs if name in made) for stage in steps}
    seconds = {
        s.name: start + plan.tokens_of(s, cfg) / SPEED[s.notebook] / speed if s.notebook in SPEED else 0 for s in steps
    }
    return seconds, needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yaml")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--driver", type=float, default=0.3, help="seconds in which the driver looks at a stage")
    parser.add_argument("--start", type=float, default=60.0, help="seconds of a stage beside its tokens")
    parser.add_argument("--speed", type=float, default=1.0, help="times the speeds above")
    given = parser.parse_args()
    seconds, needs = of_run(config.load(given.yaml, given.p), given.start, given.speed)
    one = simulate(seconds, needs, 1, len(seconds), given.driver)["seconds"]
    done = simulate(seconds, needs, given.runs, given.gpus, given.driver)
    print(f"{given.runs} runs of {len(seconds)} stages on {given.gpus} GPUs: {done['seconds'] / 3600:.1f} h; GPUs busy "
          f"{done['gpus']:.0%}, driver busy {done['driver']:.0%}; {sum(seconds.values()) / 3600:.2f} GPU hours a run, "
          f"{one / 3600:.2f} h along its longest path")  # fmt: skip


if __name__ == "__main__":
    main()
