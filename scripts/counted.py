"""How often a judge of the built-in world counts its own verdicts right: of the items whose rubric has no key check, the share
whose score is 1 + the number of verdicts "pass" in the judgment's own rationale, whatever the truth. In percent, with the 95%
t interval over runs, and run by run.

    python scripts/counted.py runs/notes-0 runs/notes-1 runs/notes-2 --arms sft,sft_continued,sre_1,sre_2
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from srlib import files
from srlib.schema import Example, Judgment
from srlib.stats import intervals


def counted(run: Path, arm: str, split: str) -> float:
    plain = {e.id for e in files.read_rows(run / "data" / f"{split}.jsonl", Example) if e.meta["key"] is None}
    right = []
    for j in files.read_rows(run / "eval" / arm / f"{split}.jsonl", Judgment):
        if j.example_id in plain:
            verdicts = re.findall(r": (pass|fail)\.", j.rationale or "")
            right.append(len(verdicts) == 4 and j.score == 1 + verdicts.count("pass"))
    return 100 * float(np.mean(right))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--arms", default="sft,sft_continued,sre_1")
    arguments.add_argument("--split", default="test")
    a = arguments.parse_args()
    for arm in a.arms.split(","):
        shares = [counted(run, arm, a.split) for run in a.runs]
        mean = intervals.seeds(shares)
        half = f" ± {(mean.high - mean.low) / 2:.1f}" if len(shares) > 1 else ""
        print(f"| `{arm}` | {mean.value:.1f}{half} | {', '.join(f'{s:.1f}' for s in shares)} |")


if __name__ == "__main__":
    main()
