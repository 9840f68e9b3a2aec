"""Pruned runs: opened by the other verbs and by transformers; what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_runs import language_run, untrained_run

from instructrec_jax import compress as verb
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.compression import compress
from instructrec_jax.compression.measure import Speed
from instructrec_jax.compression.prune import prune, shown_pruned
from instructrec_jax.compression.pruning import Pruning
from instructrec_jax.files import read_json
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig
from instructrec_jax.tasks.text.text_config import ClassificationConfig

TEXTS = ["a dull film about a book", "the new bright film"]


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    """Timing is tested in test_measure.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "speed", lambda *_: Speed("texts/s", 1.0, 1.0, 1.0))
        yield


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def smaller(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with one layer of two, half the features and the tokens in use, and what was found out."""
    out, before = tmp_path_factory.mktemp("pruned") / "smaller", files(Path(finished.run_dir))
    found = prune(finished.run_dir, out, Pruning(layers=1, width=32, vocabulary=True), calibration=8)
    assert files(Path(finished.run_dir)) == before, "the source is only read"
    assert not list(out.parent.glob(".*")), "the partial folder is gone"
    return out, found


def test_transformers_opens_what_is_left(smaller: Any, tmp_path: Path) -> None:
    out, _ = smaller
    run = Run.open(out)
    export(out, tmp_path / "hf")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    sizes = network.config
    assert (sizes.num_hidden_layers, sizes.intermediate_size, sizes.vocab_size) == (1, 32, len(tokenizer))
    with torch.no_grad():
        expected = torch.softmax(network(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits, -1).numpy()
    found = np.array([list(each.probabilities.values()) for each in run.predict(TEXTS)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_keep_their_pieces(smaller: Any, finished: Any) -> None:
    out, found = smaller
    cut, whole = (Run.open(path).task.context.tokenizer for path in (out, finished.run_dir))
    assert found.tokens == (len(whole), len(cut)) and len(cut) < len(whole)
    for text in TEXTS:
        assert cut.convert_ids_to_tokens(cut(text)["input_ids"]) == whole.convert_ids_to_tokens(
            whole(text)["input_ids"]
        )


def test_the_criteria_stand_side_by_side(smaller: Any) -> None:
    out, found = smaller
    assert [each.criterion for each in found.choices] == ["influence", "random"]
    assert len(found.choices[0].layers) == 1 and all(np.isfinite(each.loss) for each in found.choices)
    record = read_json(out / "compression.json", dict)
    assert [each["loss"] for each in record["criteria"]] == [each.loss for each in found.choices]
    assert record["bytes"]["parameters"][1] < 0.8 * record["bytes"]["parameters"][0]
    assert "criterion" in shown_pruned(found) and "tokens" in shown_pruned(found)
    table = [line.split() for line in shown_pruned(found).splitlines() if line.startswith(("dense ", "compressed "))]
    assert "texts/s" in shown_pruned(found) and [row[-1] for row in table][-2:] == ["1.0", "1.0"], "both speeds"


def test_a_language_model_without_data_loses_heads(language_models: Any, tmp_path: Path) -> None:
    task = LanguageModelConfig(template="plain")
    run = untrained_run(tmp_path / "run", task, language_models["llama"], max_length=64)
    prune(run, tmp_path / "small", Pruning(layers=1, heads=2, width=24, criterion="random"))
    small = LanguageModel(tmp_path / "small")
    assert len(small.generate(TEXTS, GenerationConfig(max_new_tokens=4), raw=True)) == 2
    export(tmp_path / "small", tmp_path / "hf")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert (network.config.num_attention_heads, network.config.num_key_value_heads) == (2, 1)
    tokens = np.arange(5, 25, dtype=np.int32).reshape(2, 10)
    ones, places = np.ones_like(tokens), np.arange(10, dtype=np.int32) * np.ones_like(tokens)
    model = small.run.model.network
    found = np.asarray(model.head(model.backbone, model.backbone(tokens, ones, places, 0 * tokens)))
    with torch.no_grad():
        expected = network(torch.tensor(tokens.astype(int))).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(layers=2), "--layers is 2, but should be from 1 to 1"),
        (dict(vocabulary=True), "--vocabulary keeps the tokens of data.train, but it is empty"),
        (dict(layers=1), "--criterion influence needs examples"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(checkpoint: Path, tmp_path: Path, how: Any, message: str) -> None:
    run = untrained_run(tmp_path / "run", ClassificationConfig(labels=["a", "b"]), checkpoint, max_length=32)
    with pytest.raises(ValueError, match=message):
        prune(run, tmp_path / "small", Pruning(**how))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command(finished: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    asked = []
    monkeypatch.setattr(verb, "prune", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr(verb, "shown_pruned", lambda found: "the table")
    out = str(tmp_path / "small")
    verb.main([finished.run_dir, "--out", out, "--layers", "1", "--criterion", "loss", "--calibration", "7"])
    ((_, _, how), rest) = asked[0]
    assert how == Pruning(layers=1, criterion="loss")
    assert rest == dict(settings=[], step=None, calibration=7, limit=None)
    assert "the table" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--weights is for codes: prune first"):
        verb.main([finished.run_dir, "--out", out, "--layers", "1", "--weights", "int8"])


@pytest.mark.slow  # a training run
def test_a_language_model_keeps_its_tokens(language_models: Any, tmp_path: Path) -> None:
    from instructrec_jax.train import train

    config = language_run(language_models["gpt2"], tmp_path)
    train(config)
    found = prune(config.run_dir, tmp_path / "small", Pruning(layers=1, width=64, vocabulary=True), calibration=8)
    assert found.tokens[1] < found.tokens[0] and found.compressed.quality is not None
    before, after = (LanguageModel(path).run.task.context.tokenizer for path in (config.run_dir, tmp_path / "small"))
    for text in TEXTS:
        assert before.tokenize(text) == after.tokenize(text)
    assert Run.open(tmp_path / "small").evaluate(str(config.data.test[0].path)).evaluation
