"""The model card of an exported judge, from the files of its run; the text is in card.md."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from srlib import config, files
from srlib.run import stages

ELSEWHERE = ("run_dir", "workers", "wandb", "endpoint", "alarm_", "stop_on", "diagnose")  # of a run, not of its judge


def card(run: Path, cfg: config.Parameters, info: Mapping[str, Any], form: str, gate: Any) -> ModelCard:
    """README.md of the judge of a run, exported as `form`; `info` is its judge.json, `gate` how near the export is."""
    base, fields = str(info.get("base", cfg.model)), config.FIELDS
    local = next((path for path in (Path(base).expanduser(), config.project_root(run) / base) if path.exists()), None)
    licence, on_hub = licence_of(local or base), local is None and re.fullmatch(r"\w[\w.-]*/[\w.-]+", base)
    front = dict(license=licence or "other", library_name="peft" if form == "adapter" else "transformers")
    stage = stages.manifest(run / "judge").get("stage", "unknown")
    front |= dict(pipeline_tag="text-generation", tags=["judge"] + ["self-rationalization", "dpo"] * ("dpo" in stage))
    data = stages.manifest(run / "data").get("facts", {})
    changed = [(name, v) for name, v in cfg if v != fields[name].default and not name.startswith(ELSEWHERE)]
    return ModelCard.from_template(
        ModelCardData(base_model=base if on_hub else None, **front),
        template_str=Path(__file__).with_name("card.md").read_text("utf-8"),
        **dict(base=_cell(base), data=_cell(cfg.data or "world"), run=_cell(run.resolve().name), licence=licence),
        **dict(form=form, gate=gate, arm=stage.replace("dpo_", "sre_"), best=cfg.keep == "best"),
        counts={**data.get("rows", {}), "pairwise": data.get("pairwise", 0)},
        recipe=[(name, _cell(value), _cell(fields[name].description)) for name, value in changed],
        results=files.read_json(path) if (path := run / "results.json").is_file() else [],
    )


def licence_of(base: str | Path) -> str | None:
    """The licence that the base's own card names: README.md of a directory, or of a hub id in the local cache."""
    try:
        path = base / "README.md" if isinstance(base, Path) else try_to_load_from_cache(base, "README.md")
        data = ModelCard.load(Path(path), ignore_metadata_errors=True).data
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return None
    licence = data.get("license_name") or data.license
    return re.sub(r"[^\w.-]", "", licence)[:40] if isinstance(licence, str) else None


def shown(value: Any) -> str:
    """A parameter's value for publication: of a path of this machine only the last part, of a server nothing."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = "a server" if "://" in text else text
    return PureWindowsPath(text).name if re.match(r"[/~]|\.\.|[A-Za-z]:[\\/]", text) else text


def _cell(value: Any) -> str:
    return shown(value).replace("](", "] (").translate(str.maketrans({"|": "\\|", "\n": " ", "<": "&lt;", "`": "'"}))
