"""The embedded base model is what its card says, and its tokenizer can write anything down."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch
BASE = Path(__file__).parent.parent / "models" / "tiny-base"


@pytest.fixture(scope="module")
def tokenizer():
    from srlib.models import load as models

    return models.load_tokenizer(BASE)


def test_card_names_the_weights_that_lie_there():
    facts = json.loads((BASE / "pretraining.json").read_text())
    weights = (BASE / "model.safetensors").read_bytes()
    assert len(weights) <= 4_000_000
    assert hashlib.sha256(weights).hexdigest() == facts["sha256"]
    card = (BASE / "README.md").read_text()
    assert facts["sha256"] in card
    assert f"--steps {facts['steps']}" in card
    assert f"{facts['parameters']:,}" in card


def test_loads_as_any_model_does():
    from srlib.models import load as models

    model, tokenizer = models.load(BASE)
    assert (
        sum(p.numel() for p in model.parameters()) == json.loads((BASE / "pretraining.json").read_text())["parameters"]
    )
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert {file.suffix for file in BASE.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_goes_through_the_tokenizer_unchanged(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id is None
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_word_of_the_world_is_one_token(tokenizer):
    from srlib.data import lexicon

    words = [
        *lexicon.NAMES,
        *lexicon.PLACES,
        *lexicon.DAYS,
        *lexicon.POSITIONS[0].split(),
        *lexicon.TOPICS["event"][1].split(),
    ]
    assert all(len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in words)
