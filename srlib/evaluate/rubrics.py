"""Other words for a rubric, as a writer drafts them (AutoCalibrate, arXiv 2309.13308; notebook 14)."""

import re

from srlib.schema import Rubric

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
