"""Two adapters become one judge: what is merged is what each adds to the weights, and a merge repeats to the bit."""

import shutil
from pathlib import Path

import pytest

from srlib import files as store
from srlib import train
from srlib.models import adapters, merge
from srlib.models import load as models

pytestmark = pytest.mark.torch

SETTINGS = train.Settings(backend="transformers", lora_rank=4, lora_alpha=8, judge={"max_new_tokens": 77})
ROWS = {name: [{"input_ids": [1, 2], "completion_mask": [0, 1]}] for name in merge.PARTS}


@pytest.fixture(autouse=True)
def _exact(one_thread, fp32):
    pass


def adapter_judge(base: Path, out: Path, seed: int, settings: train.Settings) -> None:
    """A judge as training leaves it, an adapter that changes something, without the training."""
    import torch

    model, tokenizer = models.load(base, training=True)
    model = adapters.add_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1, generator=generator)
    adapters.save_judge(model, tokenizer, out, source=base, judge={}, adapter=True)


@pytest.fixture(scope="module")
def parts(base_dir, tmp_path_factory) -> dict[str, Path]:
    """A pointwise and a pairwise adapter of rank 2 and alpha 4."""
    root = tmp_path_factory.mktemp("parts")
    half = train.Settings(lora_rank=2, lora_alpha=4)
    for seed, name in enumerate(merge.PARTS):
        adapter_judge(base_dir, root / name, seed, half)
    return {name: root / name for name in merge.PARTS}


def update(model, base) -> dict:
    """What an adapter on top changes in each weight of the base."""
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name] - weight for name, weight in base.items() if name.endswith("_proj.weight")}


@pytest.fixture(scope="module")
def base(base_dir):
    return {name: weight.clone() for name, weight in models.load(base_dir)[0].state_dict().items()}


@pytest.fixture(scope="module")
def updates(parts, base):
    return [update(models.load(path, training=True)[0], base) for path in parts.values()]


def merged(base_dir, parts, method="linear", weight=0.5, density=0.5, settings=SETTINGS):
    return merge.adapter(base_dir, parts, method, weight, density, settings)[0]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_linear_is_the_weighted_sum_of_both_updates(base_dir, base, parts, updates, weight):
    import torch

    found = update(merged(base_dir, parts, weight=weight), base)
    assert len(found) > 5
    for name, (a, b) in {name: (updates[0][name], updates[1][name]) for name in found}.items():
        assert float(a.abs().max()) > 1e-3 < float((a - b).abs().max())
        torch.testing.assert_close(found[name], (1 - weight) * a + weight * b, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("method", ["dare_linear", "ties"])
def test_the_others_leave_something_out(base_dir, base, parts, method):
    import torch

    first, again, other, whole = (
        update(merged(base_dir, parts, method, density=density, settings=settings), base)
        for density, settings in [(0.5, SETTINGS), (0.5, SETTINGS), (0.5, _seed(1)), (1.0, SETTINGS)]
    )
    plain = update(merged(base_dir, parts), base)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first) == (method == "dare_linear")
    assert any(float((first[name] - plain[name]).abs().max()) > 1e-3 for name in first)
    if method == "dare_linear":  # nothing is dropped, and the sum of two updates of rank 2 has rank 4
        assert all(torch.allclose(whole[name], plain[name], atol=1e-5) for name in first)


def _seed(seed: int) -> train.Settings:
    return train.Settings(**{**vars(SETTINGS), "seed": seed})


def test_the_merged_adapter_is_like_any_other_and_can_be_trained_on(base_dir, parts, tmp_path):
    model, tokenizer = merge.adapter(base_dir, parts, "ties", 0.5, 0.5, SETTINGS)
    adapters.save_judge(model, tokenizer, tmp_path / "j", source=base_dir, judge={}, adapter=True)
    loaded, _ = models.load(tmp_path / "j", training=True)
    goes_on = adapters.add_lora(loaded, rank=4, alpha=8)  # refuses an adapter of another rank or alpha
    assert goes_on is loaded
    assert any(p.requires_grad for p in goes_on.parameters())


@pytest.fixture
def trained(monkeypatch, base_dir, parts):
    """train.sft without the training: copies an adapter, and keeps the settings it was asked with."""
    asked = {}

    def sft(model, rows, out, settings):
        asked[out.name] = settings
        shutil.copytree(parts[out.name], out, dirs_exist_ok=True)
        facts = {"steps": 2, "rows": len(rows), "tokens": 10, "seconds": 1.5, "bf16": False, "torch": "2"}
        store.write_json(out / "train.json", {**facts, "log": [{"step": s, "loss": 1.0} for s in (1.0, 2.0)]})

    monkeypatch.setattr(train, "sft", sft)
    return asked


def test_both_parts_become_one_judge(base_dir, base, updates, trained, tmp_path):
    import torch

    log = merge.sft(base_dir, ROWS, tmp_path / "j", SETTINGS)
    assert {name: (s.lora_rank, s.lora_alpha, s.judge_format) for name, s in trained.items()} == {
        name: (2, 4, "adapter") for name in merge.PARTS
    }
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    facts = store.read_json(tmp_path / "j" / "train.json")
    assert (facts["steps"], facts["rows"], facts["tokens"], facts["seconds"]) == (4, 2, 20, 3.0)
    assert not (tmp_path / "j" / "parts").exists()
    assert models.judge_info(tmp_path / "j")["max_new_tokens"] == 77
    found = models.load(tmp_path / "j")[0].state_dict()
    for name, a in updates[0].items():
        torch.testing.assert_close(found[name] - base[name], (a + updates[1][name]) / 2, atol=1e-6, rtol=1e-4)

    trained.clear()
    assert merge.sft(base_dir, ROWS, tmp_path / "j", SETTINGS) == log
    assert trained == {}, "what is there is not made again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 5}, "half of lora_rank, which is 5; set an even one"),
        ({"lora_rank": 0}, "half of lora_rank, which is 0"),
    ],
)
def test_a_rank_without_a_half_is_refused(base_dir, tmp_path, changes, message):
    with pytest.raises(models.ModelError, match=message):
        merge.sft(base_dir, ROWS, tmp_path, train.Settings(**{**vars(SETTINGS), **changes}))


def test_an_unknown_method_and_an_adapter_as_base_are_refused(base_dir, parts, tmp_path):
    with pytest.raises(models.ModelError, match="'svd' is not one of linear, dare_linear, ties"):
        merge.sft(base_dir, ROWS, tmp_path, SETTINGS, method="svd")
    with pytest.raises(models.ModelError, match=r"starts from a base, and .* is an adapter; set sft_mode to mix"):
        merge.sft(parts["pairwise"], ROWS, tmp_path, SETTINGS)
