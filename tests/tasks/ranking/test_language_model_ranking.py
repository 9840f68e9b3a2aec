"""Ranking with language models, against transformers reading each prompt with each answer alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from byte_tokenizer import byte_tokenizer
from flax import nnx
from helpers import Setup, by_text, examples, task_config
from tiny_runs import tiny_run

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.prompts import tokenize_pieces, written
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import read_json
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import LanguageModelConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.ranking.language_model_ranking import tournament
from instructrec_jax.train import train

PAIRS = ("t5", "bart")
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "t5": transformers.T5ForConditionalGeneration,
    "bart": transformers.BartForConditionalGeneration,
}
ASKED = [
    Example(instruction="a film about love", output="item-1", history=("item-2",), id="one"),
    Example(instruction="old music", input="very long", output=("item-3", "item-6"), id="two"),
    Example(instruction="a bad book about space", output="item-0", id="three"),
]
CANDIDATES = np.array([[1, 0, 5, 11], [3, 6, 7, 3], [0, 2, 9, 4]])


@pytest.fixture(scope="module")
def folders(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tests' language models with larger weights, so that answers differ in likelihood."""
    made = {}
    for kind, folder in language_models.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        for file in folder.iterdir():
            (made[kind] / file.name).write_bytes(file.read_bytes())
        torch.manual_seed(1)
        theirs = CLASSES[kind].from_pretrained(folder)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.05))
        theirs.save_pretrained(made[kind])
    return made


@pytest.fixture
def oracle(folders: dict[str, Path]) -> Callable[..., list[float]]:
    """log p of each token of an answer, by transformers."""
    known: dict[str, Any] = {}

    def score(kind: str, task: Any, example: Example, answer: str) -> list[float]:
        theirs = known.setdefault(kind, CLASSES[kind].from_pretrained(folders[kind]).eval())
        tokenizer = task.tokenizer
        with torch.no_grad():
            if kind in PAIRS:
                source = torch.tensor([tokenizer(task.prompt_of(example))["input_ids"]])
                labels = torch.tensor([tokenizer(answer)["input_ids"]])
                logits = theirs(input_ids=source, labels=labels).logits[0]
                return torch.log_softmax(logits, -1).gather(1, labels[0][:, None])[:, 0].tolist()
            said = Example(instruction=example.instruction, input=example.input, output=answer)
            (tokens,) = tokenize_pieces([written(said, task.template, tokenizer, eos=tokenizer.eos_token)], tokenizer)
            whole = torch.tensor(tokens.ids).long()
            each = torch.log_softmax(theirs(input_ids=whole[None]).logits[0, :-1], -1)
            each = each.gather(1, whole[1:, None])[:, 0]
            return each[torch.tensor(tokens.said[1:])].tolist()

    return score


def set_up(kind: str, folders: dict[str, Path], folder: Path, **settings: Any) -> tuple[Any, Any]:
    setup = Setup("language_model_ranking", folders[kind], folder, **settings)
    return setup.task, predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)


def build(context: TaskContext, folder: Path, **settings: Any) -> Any:
    return task_config("language_model_ranking", folder / "catalogue", **settings).build(context)


@pytest.fixture
def context() -> TaskContext:
    return TaskContext(byte_tokenizer(bos=True), 400, kind="decoder")


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("gpt2", {"alpha": 0.5, "end_token": False}),
        ("t5", {"alpha": 0.0}),
        ("bart", {"end_token": False}),
    ],
)
def test_likelihood_equals_transformers(
    kind: str, settings: dict[str, Any], folders: dict[str, Path], oracle: Any, tmp_path: Path
) -> None:
    task, predict = set_up(kind, folders, tmp_path, **settings)
    found = task.score_candidates(predict, task.encode(ASKED), CANDIDATES)
    for example, items, values in zip(ASKED, CANDIDATES, found, strict=True):
        each = [oracle(kind, task, example, f"title {item}") for item in items]
        if not settings.get("end_token", True):
            each = [tokens[:-1] for tokens in each]
        expected = [sum(tokens) / len(tokens) ** settings.get("alpha", 1.0) for tokens in each]
        np.testing.assert_allclose(values, expected, atol=1e-4)
    assert np.ptp(found) > 0.1
    assert found[1, 0] == found[1, 3]  # the same item twice


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_yes_no_and_pairwise_equal_transformers(
    kind: str, folders: dict[str, Path], oracle: Any, tmp_path: Path
) -> None:
    task, predict = set_up(kind, folders, tmp_path, form="yes_no", yes="good film", no="bad", question="{candidate} ok")
    example, items = ASKED[0], CANDIDATES[0]
    found = task.score_candidates(predict, task.encode([example]), items[None])[0]

    def asked(words: str) -> Example:
        return Example(instruction=f"{example.instruction}\n{words}")

    for item, value in zip(items, found, strict=True):
        yes, no = (oracle(kind, task, asked(f"title {item} ok"), word)[:-1] for word in ("good film", "bad"))
        assert value == pytest.approx(sum(yes) - sum(no), abs=2e-4)

    task, predict = set_up(kind, folders, tmp_path, form="pairwise", question="{first} or {second}")
    found = task.score_candidates(predict, task.encode([example]), items[None])[0]
    chances: dict[tuple[int, int], float] = {}
    for a in items:
        for b in items[items != a]:
            means = [np.mean(oracle(kind, task, asked(f"title {a} or title {b}"), f"title {item}")) for item in (a, b)]
            chances[a, b] = 1 / (1 + np.exp(means[1] - means[0]))
    for item, value in zip(items, found, strict=True):
        ahead = [(chances[item, b] + 1 - chances[b, item]) / 2 for b in items if b != item]
        assert value == pytest.approx(sum(chance > 0.5 for chance in ahead) + np.mean(ahead) / 2, abs=1e-4)


def test_choice_lists_the_candidates_in_their_order(folders: dict[str, Path], oracle: Any, tmp_path: Path) -> None:
    task, predict = set_up("gpt2", folders, tmp_path, form="choice", question="{candidates}")
    for items in (CANDIDATES[0], CANDIDATES[0][::-1]):
        found = task.score_candidates(predict, task.encode(ASKED[:1]), items[None])[0]
        listed = "\n".join(f"- title {item}" for item in items)
        example = Example(instruction=f"{ASKED[0].instruction}\n{listed}")
        expected = [np.mean(oracle("gpt2", task, example, f"title {item}")) for item in items]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_blocks_and_the_evaluator(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, predict = set_up("llama", folders, tmp_path)
    encoded = task.encode(examples("language_model_ranking", 9))
    scores = task.score(predict, encoded)
    assert task.greater_is_better and 0 < scores.metrics[task.metric] < 1
    monkeypatch.setattr("instructrec_jax.tasks.ranking.language_model_ranking.ANSWERS", 7)
    assert task.score(predict, encoded).metrics == pytest.approx(scores.metrics)


def test_a_tournament_counts_wins_and_cancels_the_place() -> None:
    strength, first = np.array([0.3, -0.2, 0.9, 0.9]), 5.0  # a strong preference for what is named first
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    scores = [np.array([strength[a] + first, strength[b]]) for a, b in pairs]
    found = tournament(4, scores)
    assert np.floor(found * 2).tolist() == [2, 0, 5, 5] and found[2] == pytest.approx(found[3])

    def chance(a: int, b: int) -> float:
        one, two = (1 / (1 + np.exp(-(strength[x] + first - strength[y]))) for x, y in ((a, b), (b, a)))
        return float((one + 1 - two) / 2)

    assert found[0] == pytest.approx(1 + np.mean([chance(0, b) for b in (1, 2, 3)]) / 2)
    assert tournament(1, []).tolist() == [0]


# ------------------------------------------------------------------ tokens


def test_prompt_and_name_are_tokenised_as_training_does(context: TaskContext, tmp_path: Path) -> None:
    """Also where a template trims, and where earlier turns are the assistant's."""
    for template in ("plain", "alpaca", "chatml"):
        task = build(context, tmp_path, template=template)
        turns = Example(
            instruction="", messages=(Message("user", "hi"), Message("assistant", "yes"), Message("user", "a book"))
        )
        for example in (ASKED[0], ASKED[1], turns):
            asked = task._ask(example)
            answers = ["the yes", "title 4", "an or"]
            for answer, (tokens, counts) in zip(answers, task._answers(asked, answers), strict=True):
                learnt = Example(instruction=example.instruction, input=example.input, messages=asked.messages)
                pieces = written(
                    Example(**{f: getattr(learnt, f) for f in ("instruction", "input", "messages")}, output=answer),
                    task.template,
                    task.tokenizer,
                    eos=task.tokenizer.eos_token,
                )
                (expected,) = tokenize_pieces([pieces], task.tokenizer)
                assert tokens.tolist() == expected.ids.tolist()
                last = np.flatnonzero(~expected.said).max() + 1
                assert np.flatnonzero(counts).tolist() == list(range(last, len(tokens)))


def test_what_is_learnt_is_the_name(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    words = Example(instruction="Would I like it?", output="yes", origin={"form": "pointwise"})
    encoded = task.encode([ASKED[0], words])
    parts = task.gather(encoded, np.random.default_rng(0))
    said = []
    for labels, supervised in zip(by_text(parts, "labels"), by_text(parts, "supervised"), strict=True):
        said.append(task.tokenizer.decode(labels[supervised > 0]))
    assert said == ["title 1</s>", "yes</s>"]
    assert encoded[0].target.items.tolist() == [1] and encoded[0].target.history.tolist() == [2]
    assert encoded[0].example is ASKED[0]
    with pytest.raises(ValueError, match="pointwise"):
        task.score(None, encoded)


def test_several_wanted_one_is_learnt(context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path)
    many = [Example(instruction="old music", output=("item-3", "item-6"))] * 20
    said = [task.tokenizer.decode(e.target.labels[e.target.supervised > 0]) for e in task.encode(many)]
    assert set(said) == {"title 3</s>", "title 6</s>"}


@pytest.mark.parametrize("form", ["choice", "yes_no", "pairwise"])
def test_questions_are_drawn_for_each_batch(form: Any, context: TaskContext, tmp_path: Path) -> None:
    task = build(context, tmp_path, form=form, negatives=2)
    encoded = task.encode(ASKED)
    seen = set()
    for seed in range(12):
        parts = task.gather(encoded, np.random.default_rng(seed))
        texts = [task.tokenizer.decode(text.tokens).removeprefix("<s>") for text in parts.texts]
        said = [
            task.tokenizer.decode(labels[supervised > 0])
            for labels, supervised in zip(by_text(parts, "labels"), by_text(parts, "supervised"), strict=True)
        ]
        assert max(len(text.tokens) for text in parts.texts) <= max(len(e.text.tokens) for e in encoded)
        seen.add(texts[0])
        if form == "yes_no":
            assert said == ["yes</s>", "no</s>", "no</s>"] * 3
            assert texts[0].startswith("a film about love\nIs title 1 the right choice? Answer yes or no.\nyes")
            assert all("title 1 " not in text and "title 2 " not in text for text in texts[1:3])  # wanted, seen
        elif form == "choice":
            assert len(texts) == 3 and said[0] == "title 1</s>" and texts[0].count("- title") == 3
        else:
            assert len(texts) == 6 and said[:2] == ["title 1</s>"] * 2 and said[2] in ("title 3</s>", "title 6</s>")
    if form == "pairwise":
        assert {text.index("title 1") < text.index(" or ") for text in seen} == {True, False}
    if form != "yes_no":
        assert len(seen) > 3


def test_an_encoder_decoder_learns_drawn_questions(folders: dict[str, Path], tmp_path: Path) -> None:
    setup = Setup("language_model_ranking", folders["t5"], tmp_path, form="yes_no", negatives=1)
    task: Any = setup.task
    batch = setup.batch()

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        return task.loss(nnx.merge(setup.model.graphdef, params), batch, LossInputs())

    total, weight = loss(setup.model.params, batch)
    assert np.isfinite(total) and weight == batch.own.supervised.sum() > 2 * len(setup.encoded)


# ------------------------------------------------------------------ lengths and errors


def test_long_prompts(tmp_path: Path) -> None:
    plain = byte_tokenizer(bos=True)
    long = Example(instruction="an old book " * 5, output="item-1", id="x7")
    short = Example(instruction="a book", output="item-1")

    def context(truncate: Any) -> TaskContext:
        return TaskContext(plain, 50, truncate, kind="decoder")

    with pytest.raises(ValueError, match="example 'x7'"):
        build(context("error"), tmp_path).encode([short, long])
    near = Example(instruction="b" * 40, output="item-1", id="x8")  # fits beside its own name, not beside the longest
    with pytest.raises(ValueError, match="'x8'.*51.*data.max_length"):
        build(context("error"), tmp_path).encode([near])
    dropping = context("drop")
    assert [e.example for e in build(dropping, tmp_path).encode([long, short, near])] == [short]
    assert dropping.counts["prompts dropped"] == 1
    with pytest.raises(ValueError, match="data.truncate"):
        build(context("right"), tmp_path)
    cutting = build(context("left"), tmp_path)
    assert len(cutting.encode([long, short, near])) == 3
    whole = cutting._answers(cutting._ask(long), ["title 3", "title 11"])
    (tokens, counts), (longer, _) = cutting._fitting(whole)
    assert len(longer) == 50 and len(tokens) == 49 and tokens[0] == plain.bos_token_id
    assert plain.decode(tokens[counts]) == "title 3</s>"
    assert tokens[1:].tolist() == whole[0][0][-48:].tolist()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "yes_no", "yes": "yes", "no": "yet"}, "task.yes.*task.no"),
        ({"form": "yes_no", "no": " "}, "task.yes and task.no"),
        ({"form": "yes_no", "question": "Is it?"}, "task.question.*{candidate}, {no}, {yes}"),
        ({"form": "pairwise", "question": "{first} or {other}?"}, "task.question.*{first}, {second}"),
        ({"form": "choice", "question": "{candidates"}, "task.question"),
        ({"question": "{candidate}"}, "task.question"),
        ({"alpha": float("nan")}, "task.alpha"),
        ({"negatives": 0}, "task.negatives"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str, context: TaskContext, tmp_path: Path) -> None:
    if settings.get("no") == "yet":  # one token in the fixed merges is "yes", the other begins with "ye"
        settings |= {"yes": "yell"}
    with pytest.raises(ValueError, match=words):
        build(context, tmp_path, **settings)


def test_too_many_for_a_tournament(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    items = [str(n) for n in range(30)]
    task = build(context, tmp_path, form="pairwise")
    Catalogue(items, items, items).save(tmp_path / "catalogue")
    task = type(task)(task.config, context)
    encoded = task.encode([Example(instruction="a", output="3")])
    with pytest.raises(ValueError, match="pairwise.*20.*21"):
        task.score_candidates(None, encoded, np.arange(21)[None])


def test_conversations_are_ranked_by_likelihood_alone(context: TaskContext, tmp_path: Path) -> None:
    talk = Example(instruction="", messages=(Message("user", "a book"),), output="item-1", id="t")
    assert len(build(context, tmp_path).encode([talk])) == 1
    with pytest.raises(ValueError, match="'t'.*task.form.*likelihood"):
        build(context, tmp_path, form="yes_no").encode([talk])


def test_an_encoder_has_no_language_model(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoder"):
        build(TaskContext(tokenizer, 64), tmp_path)


def test_names_longer_than_answers_may_be(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"item 'item-\d+'.*task.max_target_length"):
        Setup("language_model_ranking", folders["t5"], tmp_path, max_target_length=4)


def test_a_tuned_reranker_writes_too(context: TaskContext, tmp_path: Path) -> None:
    """`generate` takes runs whose settings are those of a language model."""
    task = build(context, tmp_path)
    assert isinstance(task.config, LanguageModelConfig)
    assert task.tokenizer.decode(task.prompts([ASKED[0]])[0].tokens) == "<s>a film about love\n"


def test_a_whole_run(folders: dict[str, Path], tmp_path: Path) -> None:
    """Settings survive config.yaml; the run is evaluated by ranking; it can be opened to write."""
    config = tiny_run("retrieval", folders["gpt2"], tmp_path, data__max_length=64)
    task = task_config("language_model_ranking", tmp_path / "catalogue", form="yes_no", alpha=0.5)
    run = train(replace(config, task=task, steps=2))
    assert "uni5 NDCG" in str(read_json(run / "evaluation.json"))
    assert Run.open(run).config.task == task
    assert len(LanguageModel(run).generate(["a book"], GenerationConfig(max_new_tokens=2))) == 1
