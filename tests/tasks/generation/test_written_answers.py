"""Tasks that write: what is scored is what `generate` writes, and the scores are the libraries' on the predictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer
from tiny_runs import changed

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluate import main as evaluate
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.answers import exact_match, f1
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import (
    DialogueConfig,
    QuestionAnsweringConfig,
    SummarizationConfig,
    TranslationConfig,
)
from instructrec_jax.tasks.generation.nearest_answer import nearest_answers
from instructrec_jax.train import train
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

FILMS = [
    Example(instruction="what is it", input=f"the {a} film. a {b} one", output=(f"{a} {b}", b), id=f"{a}-{b}")
    for a in ("old", "new", "dull", "bright")
    for b in ("war", "love", "space")
]
TASKS: dict[str, Any] = {
    "question_answering": QuestionAnsweringConfig,
    "summarization": SummarizationConfig,
    "translation": TranslationConfig,
}


def settings(task: Any, folder: Path, out: Path, examples: list[Example] = FILMS, **changes: Any) -> Config:
    files = {}
    for split, rows in {"train": examples[:8], "validation": examples[8:10], "test": examples[8:]}.items():
        write_jsonl(out / f"{split}.jsonl", [e.to_record() for e in rows])
        files[split] = [SourceConfig(path=str(out / f"{split}.jsonl"))]
    config = Config(
        run_dir=str(out / "run"),
        steps=2,
        backbone=BackboneConfig(path=str(folder), dtype="float32"),
        task=task(template="plain", max_new_tokens=4),
        data=DataConfig(**files, batch_size=8, max_length=64),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluation=EvaluationConfig(every=2),
        checkpoint=CheckpointConfig(every=2),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )
    return changed(config, **changes)


def test_squad_scores(language_models: dict[str, Path], tmp_path: Path) -> None:
    """A run on one device, and the same evaluation on eight."""
    run = train(settings(QuestionAnsweringConfig, language_models["llama"], tmp_path))
    written = read_jsonl(run / "predictions.jsonl")
    said = LanguageModel(run).generate(FILMS[8:], GenerationConfig(max_new_tokens=4))
    assert [r["prediction"] for r in written] == [answer.text.strip() for answer in said]
    assert [r["reference"] for r in written] == [list(e.output) for e in FILMS[8:]]  # type: ignore[arg-type]
    assert [r["input"] for r in written] == [f"{e.instruction}\n{e.input}" for e in FILMS[8:]]
    rows = {row["name"]: row["values"] for row in read_json(run / "evaluation.json")["rows"]}
    after = rows["after tuning"]
    assert after["f1"] == pytest.approx(np.mean([f1(r["prediction"], r["reference"]) for r in written]))
    hits = [exact_match(r["prediction"], r["reference"]) for r in written]
    assert after["exact_match"] == pytest.approx(np.mean(hits)) and after["perplexity"] > 1
    assert rows["most frequent answer"]["f1"] > 0
    compared = {d["metric"] for d in read_json(run / "evaluation.json")["differences"]}
    assert compared == {"loss", "f1"}
    evaluate([str(run), "--out", str(tmp_path / "eight"), "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"])
    eight = read_json(tmp_path / "eight" / "evaluation.json")["rows"][0]["values"]
    assert eight == pytest.approx(after, abs=1e-4)


def test_no_room_for_the_answer_is_an_error_before_the_run_begins(
    language_models: dict[str, Path], tmp_path: Path
) -> None:
    config = settings(QuestionAnsweringConfig, language_models["gpt2"], tmp_path)
    config = changed(config, task__max_new_tokens=120)  # the network reads 128 tokens
    with pytest.raises(ValueError, match="max_new_tokens"):
        train(config)
    assert not Path(config.run_dir).exists()


@pytest.mark.slow
def test_rouge_scores_of_an_encoder_decoder(language_models: dict[str, Path], tmp_path: Path) -> None:
    run = train(settings(SummarizationConfig, language_models["t5"], tmp_path))
    written = read_jsonl(run / "predictions.jsonl")
    said = LanguageModel(run).generate(FILMS[8:], GenerationConfig(max_new_tokens=4))
    assert [r["prediction"] for r in written] == [answer.text.strip() for answer in said]
    rows = {row["name"]: row["values"] for row in read_json(run / "evaluation.json")["rows"]}
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)

    def mean(texts: list[str]) -> float:
        each = [
            max(scorer.score(r, text)["rougeL"].fmeasure for r in row["reference"])
            for text, row in zip(texts, written, strict=True)
        ]
        return float(np.mean(each))

    assert rows["after tuning"]["rougeL"] == pytest.approx(mean([r["prediction"] for r in written]))
    first = [str(e.input).split(".")[0] + "." for e in FILMS[8:]]
    assert rows["lead-1"]["rougeL"] == pytest.approx(mean(first)) and rows["lead-1"]["rougeL"] > 0


def test_bleu_and_the_most_similar_source(language_models: dict[str, Path], tmp_path: Path) -> None:
    config = settings(TranslationConfig, language_models["gpt2"], tmp_path)
    config = replace(config, task=replace(config.task, beams=2))  # type: ignore[type-var]
    run = train(config)
    written = read_jsonl(run / "predictions.jsonl")
    result = read_json(run / "evaluation.json")
    rows = {row["name"]: row["values"] for row in result["rows"]}
    texts, refs = [r["prediction"] for r in written], [r["reference"] for r in written]
    streams = [list(each) for each in zip(*refs, strict=True)]
    assert rows["after tuning"]["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score / 100)
    assert "tok:13a" in result["protocol"] and "2 beams" in result["protocol"]
    sources = [str(e.input) for e in FILMS]
    found = nearest_answers(sources[:8], [e.output[0] for e in FILMS[:8]], sources[8:])  # type: ignore[index]
    name = "translation of the most similar source"
    assert rows[name]["chrF"] == pytest.approx(sacrebleu.corpus_chrf(found, streams).score / 100)


def test_bleu_of_each_language_by_its_own_tokenizer(language_models: dict[str, Path], tmp_path: Path) -> None:
    task: Any = models.open_task(
        settings(TranslationConfig, language_models["gpt2"], tmp_path), language_models["gpt2"]
    )
    wanted = [
        "我们今天去看一部老电影。",
        "Wir sehen heute einen alten Film.",
        "他们不喜欢这部电影吗？",
        "Der Film ist nicht gut.",
    ]
    said = ["我们去看一部电影。", "Wir sehen heute einen guten Film.", "他们喜欢这部电影吗？", "Es ist doch gut."]
    found = task.judge([Example(instruction="translate", output=text) for text in wanted], said)
    chinese = sacrebleu.corpus_bleu(said[::2], [wanted[::2]], tokenize="zh").score
    german = sacrebleu.corpus_bleu(said[1::2], [wanted[1::2]], tokenize="13a").score
    assert found.metrics["BLEU (zh)"] == pytest.approx(chinese / 100)
    assert found.metrics["BLEU (other)"] == pytest.approx(german / 100)
    assert "BLEU (other) nrefs:1|case:mixed|eff:no|tok:13a" in found.protocol
    same = task.judge([Example(instruction="translate", output=text) for text in wanted[::2]], said[::2])
    assert "BLEU (zh)" not in same.metrics


def test_all_turns_are_learnt_and_the_last_is_written(language_models: dict[str, Path], tmp_path: Path) -> None:
    chats = [
        Example(
            instruction="",
            id=f"c{n}",
            messages=(
                Message("user", "a film"),
                Message("assistant", f"old {w}"),
                Message("user", "new"),
                Message("assistant", f"{w} space"),
            ),
        )
        for n, w in enumerate(["war", "love", "music"] * 4)
    ]
    config = settings(DialogueConfig, language_models["llama"], tmp_path, chats)
    task: Any = models.open_task(config, language_models["llama"])
    (e,) = task.encode(chats[:1])
    learnt = task.tokenizer.decode(e.text.tokens[1:][e.target.supervised[:-1] > 0])
    assert learnt.split() == task.tokenizer.tokenize("old war [SEP] war space [SEP]")
    assert task.tokenizer.decode(task.asked([e])[0].tokens).endswith("ne ##w")
    run = train(config)
    written = read_jsonl(run / "predictions.jsonl")
    assert [r["reference"] for r in written] == [[c.messages[-1].content] for c in chats[8:]]
    rows = {row["name"]: row["values"] for row in read_json(run / "evaluation.json")["rows"]}
    assert {"BLEU", "distinct-1", "distinct-2", "perplexity"} <= set(rows["after tuning"])
    assert rows["reply to the most similar dialogue"]["sentence chrF"] > rows["most frequent reply"]["sentence chrF"]


def test_an_encoder_decoder_writes_each_turn_of_the_assistant(language_models: dict[str, Path], tmp_path: Path) -> None:
    said = [Message("user", "a film"), Message("assistant", "old war"), Message("user", "new")]
    chats = [
        Example(instruction="be short", id="ends", messages=(*said, Message("assistant", "war space"))),
        Example(instruction="be short", id="output", messages=tuple(said), output="love"),
    ]
    config = settings(DialogueConfig, language_models["t5"], tmp_path, chats)
    task: Any = models.open_task(config, language_models["t5"])
    encoded = task.encode(chats)
    assert [e.example.id for e in encoded] == ["ends, turn 2", "ends", "output, turn 2", "output"]

    def words(tokens: Any) -> str:
        return task.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ##", "")

    assert [words(e.target.labels) for e in encoded] == ["old war", "war space", "old war", "love"]
    asked = [words(e.text.tokens) for e in encoded]
    assert asked[0] == asked[2] and asked[1] == asked[3] and "old war" in asked[1] and "old war" not in asked[0]


def test_prompts_that_are_too_long_keep_their_end(language_models: dict[str, Path], tmp_path: Path) -> None:
    long = [replace(e, input="very " * 40 + "war") for e in FILMS]
    config = settings(QuestionAnsweringConfig, language_models["llama"], tmp_path, long, data__max_length=24)
    with pytest.raises(ValueError, match=r"data.max_length.*24"):
        train(config)
    config = changed(config, data__truncate="left")
    task: Any = models.open_task(config, language_models["llama"])
    prompt = task.asked(task.encode(long[:1]))[0].tokens
    assert len(prompt) == 24 and task.tokenizer.decode(prompt).endswith("wa ##r")
    task = models.open_task(changed(config, data__truncate="right"), language_models["t5"])
    source = task.asked(task.encode(long[:1]))[0].tokens
    assert len(source) == 24  # an encoder reads what training read


def test_lengths_are_asked_for(language_models: dict[str, Path], tmp_path: Path) -> None:
    config = settings(SummarizationConfig, language_models["llama"], tmp_path)
    config = replace(config, task=replace(config.task, say_length=True))  # type: ignore[type-var]
    task: Any = models.open_task(config, language_models["llama"])
    case = Example(instruction="Sum up.", input="a film", output=("one two three four five six seven eight", "x"))
    assert task.trained_form(case).instruction == "Sum up. Use about 10 words."
    assert (
        task.trained_form(replace(case, instruction="总结。", output="一二三四五六七")).instruction
        == "总结。 用大约5个字。"
    )
    (e,) = task.encode([case])
    assert e.example == case and "yo" not in task.tokenizer.decode(task.asked([e])[0].tokens)
    assert len(task.asked([e])[0].tokens) > len(task.prompts([replace(case, output="x")])[0].tokens)


@pytest.mark.parametrize("name", TASKS)
def test_an_example_without_an_answer_is_named(name: str, language_models: dict[str, Path], tmp_path: Path) -> None:
    task: Any = models.open_task(settings(TASKS[name], language_models["llama"], tmp_path), language_models["llama"])
    for output in (None, ()):
        with pytest.raises(ValueError, match="example 'x7'"):
            task.encode([Example(instruction="a", input="b", output=output, id="x7")])


def test_languages_are_told_apart(language_models: dict[str, Path], tmp_path: Path) -> None:
    cases = [replace(e, origin={"language": "en" if n % 2 else "zh"}) for n, e in enumerate(FILMS)]
    run = train(settings(QuestionAnsweringConfig, language_models["llama"], tmp_path, cases))
    values = read_json(run / "evaluation.json")["rows"][1]["values"]
    written = read_jsonl(run / "predictions.jsonl")
    for language, own in (("zh", written[::2]), ("en", written[1::2])):
        assert values[f"f1 ({language})"] == pytest.approx(np.mean([r["f1"] for r in own]))
    assert json.dumps(written)  # plain records


@pytest.mark.parametrize("kind", ["translation", "summarization", "dialogue"])
def test_packages_of_the_metrics_are_asked_for_before_training(
    kind: str, language_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(TASKS.get(kind, DialogueConfig), language_models["gpt2"], tmp_path)
    task = models.open_task(config, language_models["gpt2"])
    monkeypatch.setattr("instructrec_jax.extras.installed", lambda package: False)
    with pytest.raises(ValueError, match=rf"task\.type {kind}.*text-metrics"):
        task.check([])
