"""Other words for a rubric, and the choice among many on few labels (AutoCalibrate, arXiv 2309.13308)."""

import math
import re
from collections.abc import Mapping

from srlib.schema import Rubric

ORIGINAL = "original"
_LEVEL = re.compile(r"(?mi)^(?:score|level)[ \t]+(-?\d+(?:\.\d+)?)[ \t]*:[ \t]*(\S.*)$")


def read_draft(text: str, original: Rubric) -> Rubric | str:
    """The original with the levels of a writer's text, lines such as `Score 1: ...`, or what is wrong with them: "no levels",
    "a score twice", "another scale", "nothing new". The criterion and the scale stay."""
    plain = re.sub(r"(?m)^[ \t>#*-]+|\*+", "", text)  # Markdown
    found = [(float(score), " ".join(level.split())) for score, level in _LEVEL.findall(plain)]
    if not found:
        return "no levels"
    if len(dict(found)) < len(found):
        return "a score twice"
    if dict(found).keys() != original.levels.keys():
        return "another scale"
    return "nothing new" if dict(found) == original.levels else original.model_copy(update={"levels": dict(found)})


def choose(selection: Mapping[str, float], held_out: Mapping[str, float], keep: int = 3) -> str:
    """The best rubric on the held-out half, among the original and the `keep` best drafts on the selection half: neither
    half both proposes and decides. The original wins a tie; a score that is NaN never wins."""
    drafts = [name for name, score in selection.items() if name != ORIGINAL and math.isfinite(score)]
    drafts = sorted(drafts, key=lambda name: -selection[name])[:keep]
    return max([ORIGINAL, *drafts], key=lambda name: -math.inf if math.isnan(held_out[name]) else held_out[name])
