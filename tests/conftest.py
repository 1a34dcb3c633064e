"""Fixtures of several test files. Nothing here imports torch before a test needs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import: a test that would ask a hub fails at once instead
import srlib

ROOT = Path(srlib.__file__).resolve().parent.parent

# The whole method in its smallest form: every stage has something to do, and starting its process takes longest.
SHRUNKEN = {
    "n_train": 48, "n_validation": 10, "n_test": 24, "n_ood": 10, "n_pairwise": 6, "sft_steps": 6, "n_samples": 4,
    "eval_samples": 2, "n_boot": 200, "iterations": 2, "margin": 1, "backend": "transformers", "wandb_mode": "disabled",
    "audit_items": 3, "workers": 1, "model": "models/tiny-base",
}  # fmt: skip

# The same examples in every run, so that a red test means a change; `--hypothesis-profile default` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Files with torch tests first: files are handed out in order, and a long one at the end leaves a worker idle."""
    slow = {item.path for item in items if item.get_closest_marker("torch")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _same_folder(monkeypatch):
    monkeypatch.chdir(Path.cwd())  # opening a stage goes to its project; come back afterwards


@pytest.fixture(scope="session")
def one_thread():
    """Tests run side by side, one thread each; it also makes sums, and so weights, repeat to the bit."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The shipped base model, which stands for any model directory."""
    return ROOT / "models" / "tiny-base"


@pytest.fixture(scope="session")
def tiny(base_dir, one_thread):
    """(model, tokenizer) of the base model, in fp32; tests leave it as it is."""
    from srlib import models

    return models.load(base_dir)


@pytest.fixture(scope="session")
def adapter_judge(base_dir, one_thread, tmp_path_factory) -> Path:
    """A judge kept as an adapter (rank 4, alpha 32) on the base model; its weights are random and matter."""
    import torch

    from srlib import models

    policy, tokenizer = models.load(base_dir, training=True)
    policy = models.add_lora(policy, rank=4, alpha=32)
    torch.manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, std=0.01)
    out = tmp_path_factory.mktemp("judges") / "adapter"
    info = {"template": "brief", "max_new_tokens": 60}
    models.save_judge(policy, tokenizer, out, source=base_dir, judge=info, adapter=True)
    return out


@pytest.fixture(scope="session")
def rows():
    """32 training examples of the built-in world."""
    from srlib.data import world

    return world.examples("train", 0, 32, care=0.5)


@pytest.fixture
def fp32(monkeypatch):
    """Training without bf16 autocast, whatever this CPU can do."""
    import torch

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project that nobody edits during the test: code and notebooks are part of every stage's key."""
    root = tmp_path / "project"
    for name in ("srlib", "notebooks", "params", "models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def quiet_kernels(monkeypatch):
    """One thread for each kernel that a test starts."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
