"""What srlib.shared does, through Unsloth's own kernel on a GPU: not measured on a GPU yet, and off.

Only `srlib bench --sharing` on a GPU turns it on (train.Settings.unsloth_kernel).

Unsloth's attention on a GPU drops masks and asks for no other attention function, but takes `prefix_seg_info`: which
tokens of one long row are a prompt, and which are the completions that see it (made for GRPO, compiled flex attention).
Nothing says aloud when a model does not pass it on; then completions see one another, and the numbers are only wrong. So
the first step is checked against the standard way, each completion behind its prompt, alone.

    s = lay_out(prompts, completions, owner)      # ids, positions, wanted, groups, apart
    logits = read(model, s, head)                 # (U, T, V) behind [last prompt token, completion]
    check(model, s, logits, EXACT)                # NotShareable where they are not those of the standard way
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKED = 4  # completions of the first step
# The mean difference that the tokens' log-probabilities may have, in nats, where the model computes in fp32 and in 16 bit.
EXACT, HALF = 1e-3, 0.05


class NotShareable(ValueError):
    """This model, or these settings, would read a shared prompt wrongly; says why and what to do."""


def available() -> bool:
    """Whether the installed Unsloth has the kernel; nothing is imported."""
    found = importlib.util.find_spec("unsloth")
    places = found.submodule_search_locations if found else None
    return any((Path(place) / "utils" / "prefix_grouper_kernel.py").is_file() for place in places or ())


def lay_out(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], owner: Sequence[int]) -> dict:
    """One row of L tokens: each prompt, and behind it the U completions that `owner` gives it.

    `wanted` (U, T) says where the logits of [last prompt token, completion] stand in the row, the last prompt token again
    where a completion is shorter than the longest; `groups` lists (prompt tokens, [completion tokens, ...]); `apart` the
    places of a prompt and one completion, for CHECKED completions, those of prompts that have several first.
    """
    import torch

    members: list[list[int]] = [[] for _ in prompts]
    for u, p in enumerate(owner):
        members[p].append(u)
    row, positions, paths = [], [], [torch.empty(0)] * len(completions)
    for prompt, own in zip(prompts, members, strict=True):
        of_prompt = torch.arange(len(row), len(row) + len(prompt))
        row += prompt
        positions += range(len(prompt))
        for u in own:
            paths[u] = torch.cat([of_prompt, torch.arange(len(row), len(row) + len(completions[u]))])
            row += completions[u]
            positions += range(len(prompt), len(prompt) + len(completions[u]))
    width = 1 + max(map(len, completions))
    wanted = []
    for path, completion in zip(paths, completions, strict=True):
        behind = path[len(path) - len(completion) - 1 :]
        wanted.append(torch.cat([behind, behind[:1].expand(width - len(behind))]))
    alike = sorted(range(len(completions)), key=lambda u: len(members[owner[u]]) == 1)
    return {
        "ids": torch.tensor([row]),
        "positions": torch.tensor([positions]),
        "wanted": torch.stack(wanted),
        "groups": [(len(p), [len(completions[u]) for u in own]) for p, own in zip(prompts, members, strict=True)],
        "apart": [(u, paths[u]) for u in alike[:CHECKED]],
    }


def read(model: Any, s: dict[str, Any], head: Any) -> Any:
    """(U, T, V) logits; `head`, the model's output layer, computes those places alone (Unsloth ignores a tensor
    `logits_to_keep`)."""
    from unsloth.utils.prefix_grouper_kernel import build_seg_info_multigroup

    info, _ = build_seg_info_multigroup(s["groups"], s["ids"].device)
    wanted = s["wanted"].flatten()
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][:, wanted],))
    try:
        out = model(input_ids=s["ids"], position_ids=s["positions"], use_cache=False, prefix_seg_info=info)
    finally:
        hook.remove()
    return out.logits.view(*s["wanted"].shape, -1)


def check(model: Any, s: dict[str, Any], logits: Any, allowed: float) -> None:
    """Raises NotShareable where the shared logits are not those of a completion behind its prompt, alone.

    Which dtype the model computes in, and so what is `allowed`, the logits do not say: accelerate makes fp32 of them.
    """
    import torch

    for u, path in s["apart"]:
        ids = s["ids"][:, path.to(s["ids"].device)]
        n = int((s["wanted"][u] != s["wanted"][u, 0]).sum())  # tokens of the completion
        with torch.no_grad():
            alone = model(input_ids=ids, use_cache=False).logits[0, -n - 1 : -1].float().log_softmax(-1)
            shared = logits[u, :n].detach().float().log_softmax(-1)
            target = ids[0, -n:, None]
            apart = float((alone.gather(1, target) - shared.gather(1, target)).abs().mean())
        if not apart <= allowed:
            raise NotShareable(
                f"Unsloth's shared prompts give other log-probabilities than the standard way: {apart:.3g} nats a token, "
                f"{allowed} allowed (with lora_dropout above 0 they always do); set share_prompts to false, or backend to "
                "transformers"
            )
