"""Other words for a rubric, and the choice among many on few labels (AutoCalibrate, arXiv 2309.13308)."""

import math
import re
from collections.abc import Mapping

from srlib.schema import Rubric

ORIGINAL = "original"
_LEVEL = re.compile(r"(?mi)^(?:score|level)[ \t]+(-?\d+(?:\.\d+)?)[ \t]*:[ \t]*(\S.*)$")


def read_draft(text: str, original: Rubric) -> Rubric | str:
    """The rubric in a writer's text, or what is wrong with it: "no levels", "a score twice", "another scale", "nothing new".

    A level is a line `Score 1: ...`, and the line above the first is the criterion, unless it ends in a colon. The scale is
    that of `original`, and so is the criterion if there is none.
    """
    plain = re.sub(r"(?m)^[ \t>#*-]+|\*+", "", text)  # Markdown
    found = [(float(score), " ".join(level.split())) for score, level in _LEVEL.findall(plain)]
    if not found:
        return "no levels"
    if len(dict(found)) < len(found):
        return "a score twice"
    if dict(found).keys() != original.levels.keys():
        return "another scale"
    above = [line.strip("[] \t") for line in plain[: _LEVEL.search(plain).start()].splitlines() if line.strip("[] \t")]
    criterion = above[-1] if above and not above[-1].endswith(":") else original.criterion
    draft = Rubric(criterion=re.sub("(?i)^criterion: *", "", criterion), levels=dict(found), step=original.step)
    return "nothing new" if draft == original else draft


def choose(selection: Mapping[str, float], held_out: Mapping[str, float], keep: int = 3) -> str:
    """The best rubric on the held-out half, among the original and the `keep` best drafts on the selection half: neither
    half both proposes and decides. The original wins a tie; a score that is NaN never wins."""
    drafts = [name for name, score in selection.items() if name != ORIGINAL and math.isfinite(score)]
    drafts = sorted(drafts, key=lambda name: -selection[name])[:keep]
    return max([ORIGINAL, *drafts], key=lambda name: -math.inf if math.isnan(held_out[name]) else held_out[name])
