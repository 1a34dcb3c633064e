"""Notebook 04, its cells run in this process on a stage that is only a directory: hints, and judgments that judge judgments."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import srlib.run
from srlib import config, dpo, files, sample, sft
from srlib.models import training
from srlib.schema import Judgment, Pair

pytest.importorskip("matplotlib").use("agg")
pytestmark = pytest.mark.torch
CELLS = json.loads((Path(__file__).parent.parent / "notebooks" / "04_curate.ipynb").read_text())["cells"]
N = 3


@pytest.fixture(scope="module")
def run(tiny, rows, tmp_path_factory):
    """A run with six prompts: the samples of the first two are all right, of the next two all wrong, of the others mixed."""
    path = tmp_path_factory.mktemp("run")
    (path / "judges").mkdir()
    (path / "judges" / "sft").symlink_to(Path(__file__).parent.parent / "models" / "tiny-base")
    files.write_rows(path / "data" / "train.jsonl", rows[:6])
    files.write_rows(path / "data" / "train_pairwise.jsonl", [])
    judgments = []
    for i, row in enumerate(rows[:6]):
        wrong = max(row.rubric.scale, key=lambda score: abs(score - row.score))
        scores = [[row.score] * N, [wrong] * N, [row.score, wrong, None]][i // 2]
        for index, score in enumerate(scores):
            outcome = {"failure": "no_verdict"} if score is None else {"score": score}
            text = f"Reason {index}. [RESULT] {score}"
            judgments.append(Judgment(example_id=row.id, index=index, text=text, **outcome))
    files.write_rows(path / "judgments" / "1" / "judgments.jsonl", judgments)
    return path


def execute(run, path, monkeypatch, **changes):
    """Run every code cell but the set-up; returns the facts that the stage is finished with, and its pairs."""
    parameters = dict(temperature=1.0, margin=1.0, backend="transformers", dtype="float32") | changes
    facts, space, path = {}, {}, files.make_dir(path) or path
    stage = SimpleNamespace(
        run=run, path=path, done=False, cfg=config.load().model_copy(update=parameters), track=contextlib.nullcontext,
        inputs={"data": run / "data", "judgments/1": run / "judgments" / "1"}, finish=lambda **kept: facts.update(kept),
    )  # fmt: skip
    monkeypatch.setattr(srlib.run, "open_stage", lambda name, values: stage, raising=False)
    for cell in (cell for cell in CELLS if cell["cell_type"] == "code" and cell["metadata"].get("tags") != ["setup"]):
        exec("".join(cell["source"]), space)
        if cell["metadata"].get("tags") == ["parameters"]:
            space |= {name: value for name, value in parameters.items() if name in space}
    return facts, files.read_rows(path / "pairs.jsonl", Pair)


def test_hinted_texts_are_resumed_and_counted_and_no_training_row_has_the_hint(run, tmp_path, monkeypatch, tiny, rows):
    facts, pairs = execute(run, tmp_path, monkeypatch, hints="rescue")
    assert facts["hinted_prompts"] == 4, "the last two prompts have right and wrong ones"
    drawn = files.read_rows(tmp_path / "hinted.jsonl", Judgment)
    assert len(drawn) == 2 * facts["hinted_prompts"]
    hinted = {pair.example_id for pair in pairs if pair.strategy == "hinted"}
    assert 0 < len(hinted) == facts["rescued"]
    assert facts["rescued_share"] == facts["rescued"] / facts["hinted_prompts"]
    assert len({pair.example_id for pair in pairs}) + sum(facts["drops"].values()) == 6

    made = dpo.rows_of(tiny[1], {row.id: row for row in rows}, pairs, "brief")
    plain = {row["prompt"] for row in sft.rows_of(tiny[1], rows, "brief")}
    for row in made:
        assert row["prompt"] in plain
        assert not [text for text in row.values() if sft.mentions_hint(text) or "Hint" in text]
    kept = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert {text for text in kept if not text.startswith("Reason ")} <= {j.text for j in drawn}

    lines = (tmp_path / "hinted.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "hinted.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # a kill tears the last line
    assert execute(run, tmp_path, monkeypatch, hints="rescue") == (facts, pairs)
    assert (tmp_path / "hinted.jsonl").read_text() == "".join(lines)


def test_a_text_that_mentions_the_hint_or_another_verdict_is_no_training_text(run, tmp_path, monkeypatch):
    def told(model, tokenizer, items, **_):
        assert all(f"(Hint: the right verdict is {item.score:g}." in item.instruction for item in items)
        texts = ["As the hint says. [RESULT] {:g}", "It greets. [RESULT] {:g}", "It greets."]
        written = [(item, texts[i % 3].format(item.score)) for i, item in enumerate(items)]
        return [sample.draws.judgment(item, 0, text, True) for item, text in written]

    monkeypatch.setattr(sample, "judgments", told)
    facts, pairs = execute(run, tmp_path, monkeypatch, hints="rescue")
    assert (facts["hinted_kept"], facts["hinted_prompts"]) == (3, 4)  # the second of every three of 8
    assert execute(run, tmp_path / "all", monkeypatch, hints="all")[0]["hinted_prompts"] == 6
    assert {side for p in pairs for side in (p.chosen, p.rejected) if "hint" in side} == set()


def test_the_notebook_lets_the_judge_compare_and_rate_its_judgments(run, tmp_path, monkeypatch):
    def compares(model, tokenizer, items, **_):
        better = ["A" if item.response_a > item.response_b else "B" for item in items]
        return [
            sample.draws.judgment(item, 0, f"So. [RESULT] {p}", True) for item, p in zip(items, better, strict=True)
        ]

    facts, pairs = execute(run, tmp_path / "none", monkeypatch)
    assert not {"rescued", "meta_higher"} & set(facts)
    monkeypatch.setattr(sample, "judgments", compares)
    facts, pairs = execute(run, tmp_path / "equal", monkeypatch, strategy="meta_equal")
    assert (facts["drops"], len(pairs), facts["meta_higher_n"]) == ({"no_equal": 2}, 4, 4)
    assert 0 <= facts["meta_higher"] <= 1
    assert {(p.chosen[:8], p.rejected[:8], p.margin) for p in pairs} == {("Reason 2", "Reason 0", 0.0)}
    facts, pairs = execute(run, tmp_path / "graded", monkeypatch, strategy="graded", pairs_per_prompt=2)
    assert (facts["drops"], {p.rejected_score for p in pairs}) == ({"all_right": 2, "all_wrong": 2}, {None})


def test_the_notebook_mixes_three_kinds_of_pairs_and_rows_hold_what_each_asks(run, tmp_path, monkeypatch, tiny, rows):
    written = []

    def writes(model, tokenizer, items, template, **_):
        written.extend((item, template) for item in items)
        texts = ["Hello there.", "", "word " * 600]  # an empty one and one that is too long are no rejected side
        return [sample.draws.judgment(item, 0, texts[i % 3], True) for i, item in enumerate(items)]

    monkeypatch.setattr(sample, "judgments", writes)
    mix = dict(pair_mix=["cot:1", "verdict:1", "deduction:1"], strategy="graded", margin=1.0)
    facts, pairs = execute(run, tmp_path, monkeypatch, **mix)
    assert [template for _, template in written] == ["brief-deduction"] * len(written)
    assert facts["drops"] == {"all_right": 2, "all_wrong": 2, "mix": 1}, "an unreadable verdict is none"
    strategy = {"strategy": "majority_vote", "margin": 0.0, "pair_mix": ["verdict:1", "deduction:1"]}
    monkeypatch.setattr(
        files, "read_rows",
        lambda path, row, plain=files.read_rows: [
            j.model_copy(update={"score": 1.0 + j.index % 2, "failure": None}) if row is Judgment else j for j in plain(path, row)
        ],
    )  # fmt: skip
    facts, pairs = execute(run, tmp_path / "votes", monkeypatch, **strategy)
    assert {p.kind for p in pairs} == {"verdict", "deduction"}
    assert (facts["verdict_pairs"], facts["deduction_pairs"], facts["drops"]) == (3, 2, {"mix": 1})
    by_id = {row.id: row for row in rows}
    for pair, row in zip(pairs, dpo.rows_of(tiny[1], by_id, pairs, "brief"), strict=True):
        response = by_id[pair.example_id].response
        if pair.kind == "verdict":
            assert row["prompt"].endswith("### Verdict\n")
            assert response in row["prompt"]
            assert {row["chosen"], row["rejected"]} == {"[RESULT] 1", "[RESULT] 2"}
        else:
            assert row["prompt"].endswith(f"{pair.rationale} [RESULT] {pair.chosen_score:g}\n### Response\n")
            assert response not in row["prompt"]
            assert (row["chosen"], row["rejected"]) == (response, "Hello there.")


def test_the_training_order_reads_pairs_with_an_unreadable_side(tiny, rows):
    pair = Pair(
        id="p", example_id=rows[0].id, chosen="Yes. [RESULT] 4", rejected="Yes", chosen_id="a", rejected_id="b", chosen_score=4,
        rejected_score=None, gold=4, margin=None, strategy="graded", iteration=1,
    )  # fmt: skip
    made, lengths, dropped = sft.fitting(tiny[1], dpo.rows_of(tiny[1], {rows[0].id: rows[0]}, [pair], "brief"), 512)
    assert (len(made), dropped, made[0]["rejected"]) == (1, 0, "Yes")
    assert training.order(lengths, [row["prompt"] for row in made], batch_size=1, steps=1, seed=0) == [0]
