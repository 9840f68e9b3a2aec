"""Whole runs of language models: tuned, exported to transformers and PEFT, generating the same text there."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from tiny_runs import changed, language_run

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.answering.comparison import Beside, evaluate
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs import model as models
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig
from instructrec_jax.train import train

PROMPTS = ["the bad film love", "a book 书 🙂", "very long new old dull bright film war"]


@pytest.fixture(scope="module")
def tuned(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Finished runs: llama with packed rows and LoRA, t5 with full tuning."""
    runs = {}
    for name, changes in {
        "llama": dict(lora=LoraConfig(rank=4, alpha=64.0), data__batch_size=None, data__batch_rows=8),
        "t5": {},
    }.items():
        runs[name] = language_run(
            language_models[name], tmp_path_factory.mktemp(name), optimizer__learning_rate=0.02, **changes
        )
        train(runs[name])
    return runs


def our_logits(run: Path, tokens: np.ndarray) -> np.ndarray:
    opened = Run.open(run)
    config, task, mesh = opened.config, opened.task, opened.mesh
    network = models.restored_model(config, task, run, mesh).network
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(network.head(network.backbone, network.backbone(tokens, ones, positions, ones * 0)))


def their_text(model: Any, folder: Path, pair: bool) -> list[str]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        if pair:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
        else:
            turns = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
            )
        out = model.generate(ids, max_new_tokens=12, do_sample=False)[0]
        texts.append(tokenizer.decode(out[1 if pair else ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_transformers_writes_the_same_text(name: str, tuned: dict[str, Any], tmp_path: Path) -> None:
    run, out = Path(tuned[name].run_dir), tmp_path / "hf"
    export(run, out, format="hf")
    classes = {"llama": transformers.AutoModelForCausalLM, "t5": transformers.AutoModelForSeq2SeqLM}
    model = classes[name].from_pretrained(out).eval()
    ours = LanguageModel(run).generate(PROMPTS, GenerationConfig(max_new_tokens=12))
    assert [answer.text for answer in ours] == their_text(model, out, pair=name == "t5")
    assert [a.text for a in LanguageModel(out).generate(PROMPTS, GenerationConfig(max_new_tokens=12))] == [
        answer.text for answer in ours
    ]
    assert not (out / "weights.json").exists()
    if name == "llama":
        tokens = np.random.default_rng(0).integers(3, 90, (2, 20)).astype(np.int32)
        with torch.no_grad():
            theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(our_logits(run, tokens), theirs, atol=1e-4)


def test_peft_opens_the_adapter_and_we_open_it_again(
    tuned: dict[str, Any], language_models: dict[str, Path], tmp_path: Path
) -> None:
    run, out = Path(tuned["llama"].run_dir), tmp_path / "adapter"
    export(run, out, format="peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(language_models["llama"])
    tokens = np.random.default_rng(1).integers(3, 90, (2, 20)).astype(np.int32)
    with torch.no_grad():
        before = base(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(base, out).eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    ours = our_logits(run, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - before).max() > 1e-2  # it learned something

    again = changed(tuned["llama"], lora=LoraConfig(adapter=str(out)), run_dir=str(tmp_path / "again"), steps=2)
    train(changed(again, optimizer__learning_rate=1e-30))
    np.testing.assert_allclose(our_logits(tmp_path / "again", tokens), ours, atol=1e-6)
    facts = read_json(tmp_path / "again" / "summary.json")["facts"]["parameters"]
    assert facts == read_json(run / "summary.json")["facts"]["parameters"]


def test_a_run_without_lora_has_no_adapter(tuned: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LoRA.*--format hf"):
        export(Path(tuned["t5"].run_dir), tmp_path / "out", format="peft")


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_quantized_run_goes_through_every_verb(
    kind: str, tuned: dict[str, Any], language_models: dict[str, Path], tmp_path: Path
) -> None:
    lora = LoraConfig(rank=2)
    config = language_run(language_models["llama"], tmp_path, steps=2, lora=lora, backbone__quantize=kind)
    train(config)
    run, out = Path(config.run_dir), tmp_path / "hf"
    evaluate(Run.open(run), tmp_path / "evaluation", beside=Beside(baselines=False))
    export(run, out, format="hf")
    ours = LanguageModel(run).generate(PROMPTS, GenerationConfig(max_new_tokens=8))
    merged = LanguageModel(out).generate(PROMPTS, GenerationConfig(max_new_tokens=8))
    assert [a.text for a in ours] == [a.text for a in merged]
    with pytest.raises(ValueError, match="backbone.quantize.*lora.rank"):
        train(changed(config, lora=LoraConfig(), run_dir=str(tmp_path / "other")))


def test_losses_of_every_task_stand_in_the_table(tuned: dict[str, Any]) -> None:
    rows = {row["name"]: row["values"] for row in read_json(Path(tuned["llama"].run_dir) / "evaluation.json")["rows"]}
    assert set(rows) == {"before tuning", "after tuning", "unigram", "5-gram"}
    after = rows["after tuning"]
    assert after["loss"] < rows["before tuning"]["loss"]
    assert after["perplexity"] == pytest.approx(np.exp(after["loss"]), rel=1e-4)
    assert 0 <= after["token accuracy"] <= 1


def test_an_example_without_an_answer_is_named(language_models: dict[str, Path], tmp_path: Path) -> None:
    asked = {"id": "odd", "messages": [{"role": "user", "content": "a film"}]}
    write_jsonl(tmp_path / "odd.jsonl", [asked])
    config = language_run(language_models["llama"], tmp_path)
    with pytest.raises(ValueError, match="example 'odd'.*fields.output"):
        train(changed(config, data__train=[SourceConfig(path=str(tmp_path / "odd.jsonl"))]))


def test_an_answer_longer_than_the_network_writes_is_refused(language_models: dict[str, Path], tmp_path: Path) -> None:
    config = language_run(language_models["bart"], tmp_path, task=LanguageModelConfig(max_target_length=129))
    with pytest.raises(ValueError, match="task.max_target_length.*129.*128"):
        train(config)
