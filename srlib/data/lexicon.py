"""The words of the built-in world, read from lexicon.yaml: tables that `world` draws from."""

from pathlib import Path

import yaml

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_WORDS = {name: words.split() for name, words in _TABLES.pop("words").items()}
globals().update(_WORDS | _TABLES)

_NAMED = _WORDS | {"NUMBERS": _WORDS["NUMBERS"][1:]}  # nothing costs zero
ATTRIBUTES = {  # genre -> attribute -> its values
    genre: {name: _NAMED.get(values, values.split()) for name, values in attributes.items()}
    for genre, attributes in _TABLES["ATTRIBUTES"].items()
}
COMBINATIONS, COMBINATIONS_HELD_OUT = ([*map(tuple, _TABLES[f"COMBINATIONS{end}"])] for end in ("", "_HELD_OUT"))
# What the checks of a criterion are about; of the others, the points asked for
LABELS = {"order": _TABLES["POSITIONS"], "tone": _TABLES["TONE"], "format": _TABLES["FORMAT"]}
