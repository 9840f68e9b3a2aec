"""Language modelling: labels and their mask, truncation, the loss against PyTorch, scores and baselines."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from byte_tokenizer import byte_tokenizer
from flax import nnx

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.loader import pack
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.evaluator import greater_is_better
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import LanguageModelConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext

PAIR = Example(instruction="a", input="b", output="yes", id="x7")
TALK = Example(
    instruction="", messages=tuple(Message(r, c) for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True))
)


def build(
    tokenizer: Any = None,
    kind: str = "decoder",
    length: int = 64,
    truncate: Any = "error",
    prompt_type: int = 0,
    **settings: Any,
) -> Any:
    start = 0 if kind == "encoder_decoder" else None
    if tokenizer is None:
        tokenizer = byte_tokenizer(eos=kind == "encoder_decoder")
    context = TaskContext(tokenizer, length, truncate, kind=kind, decoder_start_token_id=start, prompt_type=prompt_type)
    return LanguageModelConfig(**({"template": "plain"} | settings)).build(context)


def learnt(task: Any, encoded: Any) -> str:
    """The text of the supervised labels."""
    labels, supervised = encoded.target.labels, encoded.target.supervised
    return task.tokenizer.decode(labels[supervised > 0])


# ------------------------------------------------------------------ decoders


def test_labels_are_the_next_tokens_and_the_answer_is_supervised() -> None:
    task = build(byte_tokenizer(bos=True))
    (e,) = task.encode([PAIR])
    labels, supervised = e.target.labels, e.target.supervised
    assert task.tokenizer.decode(e.text.tokens) == "<s>a\nb\nyes</s>" and e.text.target is None
    np.testing.assert_array_equal(labels[:-1], e.text.tokens[1:])
    assert supervised.tolist() == [0] * (len(labels) - 3) + [1, 1, 0]
    assert learnt(task, e) == "yes</s>"
    for array in (e.text.tokens, labels, supervised):
        assert array.dtype == np.int32
    parts = task.gather([e], np.random.default_rng(0))
    assert parts.texts == [e.text] and (parts.own.labels == labels).all()


def test_a_prompt_that_is_read_in_both_directions_is_marked_up_to_the_first_answer() -> None:
    (e,) = build(byte_tokenizer(bos=True), prompt_type=1).encode([PAIR])
    assert e.text.types.dtype == np.int32 and set(e.text.types.tolist()) == {0, 1}
    at = e.text.types.tolist().index(0)
    task = build(byte_tokenizer(bos=True))
    assert task.tokenizer.decode(e.text.tokens[:at]) == "<s>a\nb\n" and not e.text.types[at:].any()
    assert not e.target.supervised[: at - 1].any() and e.target.supervised[at - 1]
    (turns,) = build(length=80, prompt_type=1).encode([TALK])
    assert task.tokenizer.decode(turns.text.tokens[turns.text.types > 0]) == "a\n"
    with pytest.raises(ValueError, match="train_on all.*both directions.*completions"):
        build(prompt_type=1, train_on="all")


def test_train_on_all() -> None:
    task = build(byte_tokenizer(bos=True), train_on="all")
    (e,) = task.encode([PAIR])
    assert learnt(task, e) == "a\nb\nyes</s>" and e.target.supervised[-1] == 0


def test_every_turn_of_the_assistant_is_learnt() -> None:
    for template, words in (("plain", "b</s>d</s>"), ("chatml", "b<|im_end|>d<|im_end|>")):
        task = build(length=80, template=template)
        assert learnt(task, *task.encode([TALK])) == words


def test_numbers_labels_and_several_of_them() -> None:
    task = build()
    outputs: list[Any] = [3, 2.5, ("a", "b")]
    texts = [learnt(task, e) for e in task.encode([Example(instruction="q", output=o) for o in outputs])]
    assert texts == ["3</s>", "2.5</s>", "a, b</s>"]


def test_auto_follows_the_tokenizer() -> None:
    own = byte_tokenizer(chat_template="{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>{% endfor %}")
    task = build(own, template="auto")
    (e,) = task.encode([PAIR])
    assert task.tokenizer.decode(e.text.tokens) == "[user]a\nb<|eot_id|>[assistant]yes<|eot_id|>"
    task = build(template="auto", length=400)
    assert "### Input:\nb\n\n### Response:yes</s>" in task.tokenizer.decode(task.encode([PAIR])[0].text.tokens)


# ------------------------------------------------------------------ truncation


def cut(truncate: str, length: int, example: Example, **settings: Any) -> tuple[Any, list[str], list[str]]:
    task = build(byte_tokenizer(bos=True), length=length, truncate=truncate, **settings)
    encoded = task.encode([example])
    assert all(len(e.text.tokens) <= length for e in encoded)
    return task, [task.tokenizer.decode(e.text.tokens) for e in encoded], [learnt(task, e) for e in encoded]


def test_truncation() -> None:
    example = Example(instruction="qwrtzu", output="123", id="x7")  # <s> + 6 + newline + 3 + </s>: 12 tokens
    for truncate in ("error", "left", "right", "drop"):
        task, texts, _ = cut(truncate, 12, example)
        assert texts == ["<s>qwrtzu\n123</s>"] and not task.context.counts
    with pytest.raises(ValueError, match="example 'x7'.*12.*data.max_length.*11"):
        cut("error", 11, example)
    task, *found = cut("left", 8, example)
    assert found == [["<s>zu\n123</s>"], ["123</s>"]] and task.context.counts == {"texts cut": 1}
    task, *found = cut("left", 4, example)
    assert found == [["<s>23</s>"], ["23</s>"]]  # the beginning of the answer too
    task, *found = cut("right", 10, example)
    assert found == [["<s>qwrtzu\n12"], ["12"]] and task.context.counts == {"texts cut": 1}
    task, *found = cut("drop", 11, example)
    assert found == [[], []] and task.context.counts == {"texts dropped": 1}


def test_bos_that_only_the_template_writes_is_kept() -> None:
    own = byte_tokenizer(chat_template="{{ bos_token }}{% for m in messages %}{{ m.content }}|{% endfor %}")
    task = build(own, template="tokenizer", length=6, truncate="left")
    (e,) = task.encode([Example(instruction="qwrtzu", output="1")])
    assert task.tokenizer.decode(e.text.tokens) == "<s>u|1|</s>" and learnt(task, e) == "1|</s>"


def test_an_example_without_a_supervised_token_is_an_error() -> None:
    long = Example(instruction="q" * 20, output="1", id="x7")
    for train_on in ("completions", "all"):
        with pytest.raises(ValueError, match="example 'x7': .*fields.output"):
            build(train_on=train_on).encode([PAIR, Example(instruction="a", id="x7")])
    with pytest.raises(ValueError, match="example 1: .*answer"):
        build().encode([PAIR, Example(instruction="a", output=" ")])
    with pytest.raises(ValueError, match=r"example 'x7'.*data.max_length.*8"):
        cut("right", 8, long)
    with pytest.raises(ValueError, match="example 0: .*chat template"):
        build(byte_tokenizer(chat_template="{{ raise_exception('no') }}"), template="auto").encode([TALK])


def test_words_that_are_special_tokens_are_counted() -> None:
    task = build()
    task.encode([PAIR, Example(instruction="a <s> b", output="c"), Example(instruction="a", output="</s>")])
    assert task.context.counts == {"texts that contain a special token as plain text": 2}


def test_answers_that_begin_inside_a_token_are_counted() -> None:
    task = build(byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"), template="auto")
    (e,) = task.encode([Example(instruction="y", output="es")])
    assert learnt(task, e) == "</s>" and e.text.tokens.tolist() == task.tokenizer("yes</s>")["input_ids"]
    assert task.context.counts == {
        "answers whose first characters share a token with the prompt, which is not trained on": 1
    }


# ------------------------------------------------------------------ encoder–decoders


def test_sources_and_targets() -> None:
    task = build(kind="encoder_decoder")
    (e,) = task.encode([PAIR])
    labels, supervised = e.target.labels, e.target.supervised
    assert task.tokenizer.decode(e.text.tokens) == "a\nb</s>"
    assert task.tokenizer.decode(labels) == "yes</s>" and supervised.tolist() == [1, 1]
    assert e.text.target.tolist() == [0, labels[0]] and e.text.target.dtype == labels.dtype == np.int32
    talk = task.encode([TALK])[0]
    assert task.tokenizer.decode(talk.text.tokens) == "a\nb\nc</s>" and learnt(task, talk) == "d</s>"


def test_an_eos_is_added_to_answers_where_the_tokenizer_adds_none() -> None:
    task = build(byte_tokenizer(bos=True), kind="encoder_decoder")
    (e,) = task.encode([PAIR])  # with the tokens that the tokenizer puts around answers, as BART's <s>
    assert task.tokenizer.decode(e.text.tokens) == "<s>a\nb" and learnt(task, e) == "<s>yes</s>"


def test_truncation_of_sources_and_answers() -> None:
    example = Example(instruction="qwrtzu", output="1234", id="x7")  # 7 and 5 tokens

    def run(truncate: str, **settings: Any) -> tuple[Any, list[tuple[str, str]]]:
        task = build(kind="encoder_decoder", truncate=truncate, **settings)
        return task, [(task.tokenizer.decode(e.text.tokens), learnt(task, e)) for e in task.encode([example])]

    for truncate in ("error", "left", "right", "drop"):
        task, found = run(truncate, length=7, max_target_length=5)
        assert found == [("qwrtzu</s>", "1234</s>")] and not task.context.counts
    with pytest.raises(ValueError, match="example 'x7'.*7.*data.max_length.*6"):
        run("error", length=6)
    with pytest.raises(ValueError, match="example 'x7'.*5.*task.max_target_length.*4"):
        run("error", max_target_length=4)
    assert run("left", length=4, max_target_length=3)[1] == [("tzu</s>", "123")]
    task, found = run("right", length=4, max_target_length=3)
    assert found == [("qwr</s>", "123")] and task.context.counts == {"texts cut": 1, "answers cut": 1}
    task, found = run("drop", max_target_length=4)
    assert not found and task.context.counts == {"answers dropped": 1}
    assert build(kind="encoder_decoder", length=17).max_target_length == 17 and build().max_target_length is None


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="language_model.*masked_lm"):
        build(kind="encoder")
    with pytest.raises(ValueError, match="task.max_target_length"):
        build(max_target_length=5)
    with pytest.raises(ValueError, match="task.max_target_length"):
        build(kind="encoder_decoder", max_target_length=0)
    with pytest.raises(ValueError, match="task.train_on"):
        build(kind="encoder_decoder", train_on="all")
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        LanguageModelConfig().build(TaskContext(byte_tokenizer(), 64, kind="encoder_decoder"))
    with pytest.raises(ValueError, match="sentence encoder"):
        LanguageModelConfig().build(TaskContext(byte_tokenizer(), 64, lower_case=True, kind="decoder"))


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_prompts_are_those_of_training(kind: str) -> None:
    task = build(byte_tokenizer(bos=True, eos=kind == "encoder_decoder"), kind=kind)
    encoded, asked = task.encode([PAIR, TALK]), [text.tokens for text in task.prompts([PAIR, TALK])]
    for e, tokens in zip(encoded, asked, strict=True):
        whole = e.text.tokens if kind == "decoder" else tokens
        np.testing.assert_array_equal(tokens, e.text.tokens[: len(tokens)])
        assert len(tokens) <= len(whole) and tokens.dtype == np.int32
    assert task.tokenizer.decode(asked[0]) == {"decoder": "<s>a\nb\n", "encoder_decoder": "<s>a\nb</s>"}[kind]
    unanswered = Example(instruction="a", input="b")
    np.testing.assert_array_equal(task.prompts([unanswered])[0].tokens, asked[0])
    with pytest.raises(ValueError, match="example 'x7'.*data.max_length.*3"):
        build(kind=kind, length=3).prompts([Example(instruction="qwrtzu", id="x7")])


def test_ends() -> None:
    tokenizer = byte_tokenizer()
    assert build().ends == (tokenizer.eos_token_id,) == build(kind="encoder_decoder").ends
    assert build(template="chatml").ends == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"))


# ------------------------------------------------------------------ the model

SIZES: dict[str, Any] = {
    "llama": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    ),
    "t5": dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
}
CLASSES = {"llama": transformers.LlamaForCausalLM, "t5": transformers.T5ForConditionalGeneration}


def examples(count: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            instruction="".join(rng.choice([*"qwrtzu"], rng.integers(1, 20))),
            output="".join(rng.choice([*"123456"], rng.integers(1, 9))),
            task=("qa", "chat")[n % 2],
            id=f"e{n}",
        )
        for n in range(count)
    ]


class Run:
    """A random checkpoint, its task and model, and the network in PyTorch."""

    def __init__(self, kind: str, folder: Path, **settings: Any):
        tokenizer = byte_tokenizer(eos=kind == "t5", bos=kind == "llama")
        size = -(-len(tokenizer) // 8) * 8
        config = CLASSES[kind].config_class(vocab_size=size, **SIZES[kind])
        torch.manual_seed(0)
        self.theirs = CLASSES[kind](config).eval()
        self.theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = Config(
            backbone=BackboneConfig(str(folder), dtype="float32"),
            task=LanguageModelConfig(**({"template": "plain"} | settings)),
            data=DataConfig(max_length=48),
        )
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self.task = models.open_task(config, folder)
        self.model = models.load_model(config, self.task, folder, self.mesh)
        self.encoded = self.task.encode(examples())
        self.buckets = run_data.buckets(config)
        self.target_buckets = run_data.target_buckets(self.task)

    def loss(self) -> tuple[float, float]:
        parts = self.task.gather(self.encoded, np.random.default_rng(0))
        batch = pack(parts, self.buckets, 1, target_buckets=self.target_buckets).batch
        assert (batch.texts.segment_ids.max(1) > 1).any()  # several texts in a row

        @jax.jit
        def run(params: Any, batch: Any) -> Any:
            model = nnx.merge(self.model.graphdef, params)
            return self.task.loss(model, batch, LossInputs())

        total, weight = run(self.model.params, batch)
        return float(total), float(weight)

    def expected(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """By PyTorch, one text at a time: loss, hit and log Σ exp of each supervised token of each example."""
        losses, hits, norms = [], [], []
        for e in self.encoded:
            labels, supervised = (torch.tensor(x) for x in (e.target.labels, e.target.supervised))
            inputs = {"input_ids": torch.tensor(e.text.tokens)[None].long()}
            if e.text.target is not None:
                inputs["decoder_input_ids"] = torch.tensor(e.text.target)[None].long()
            with torch.no_grad():
                logits = self.theirs(**inputs).logits[0].double()
            each = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
            chosen = supervised > 0
            losses.append(each[chosen].numpy())
            hits.append((logits.argmax(-1) == labels)[chosen].numpy())
            norms.append(logits.logsumexp(-1)[chosen].numpy())
        return losses, hits, norms


@pytest.fixture(scope="module", params=["llama", "t5"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(request.param, tmp_path_factory.mktemp(request.param))


def test_loss_equals_pytorch(run: Run) -> None:
    losses, _, norms = run.expected()
    total, weight = run.loss()
    assert weight == sum(len(each) for each in losses)
    assert total == pytest.approx(np.concatenate(losses).sum(), rel=1e-5)
    run.task.config.z_loss = 0.1
    try:
        regularised = run.loss()[0]
    finally:
        run.task.config.z_loss = 0.0
    assert regularised - total == pytest.approx(0.1 * np.square(np.concatenate(norms)).sum(), rel=1e-4)


def test_scores_equal_pytorch(run: Run) -> None:
    losses, hits, _ = run.expected()
    predict = predictor(run.task, run.model.graphdef, run.mesh, run.buckets)(run.model.params)
    scores = run.task.score(predict, run.encoded)
    every, right = np.concatenate(losses), np.concatenate(hits)
    assert scores.metrics["loss"] == pytest.approx(every.mean(), rel=1e-5)
    assert scores.metrics["perplexity"] == pytest.approx(np.exp(every.mean()), rel=1e-4)
    assert scores.metrics["token accuracy"] == pytest.approx(right.mean())
    for offset, name in enumerate(["qa", "chat"]):
        assert scores.metrics[f"loss ({name})"] == pytest.approx(np.concatenate(losses[offset::2]).mean(), rel=1e-5)
        accuracy = np.concatenate(hits[offset::2]).mean()
        assert scores.metrics[f"token accuracy ({name})"] == pytest.approx(accuracy)
    assert scores.cases["loss"].mean() == pytest.approx(scores.metrics["loss"])  # what Scores promises
    sums = np.array([each.sum() for each in losses])
    np.testing.assert_allclose(scores.cases["loss"] / scores.cases["loss"].sum(), sums / sums.sum(), rtol=1e-4)
    for record, example, each in zip(scores.predictions, examples(), losses, strict=True):
        assert (record["id"], record["task"], record["tokens"]) == (example.id, example.task, len(each))
        assert record["mean_log_probability"] == pytest.approx(-each.mean(), rel=1e-4)
        assert (record["input"], record["reference"]) == (render(example), answer(example))
    alone = run.task.score(predict, run.encoded[::2])
    assert set(alone.metrics) == {"loss", "perplexity", "token accuracy"}  # of one task


def test_which_metrics_are_better_lower() -> None:
    task = build()
    for metric in ("loss", "perplexity", "loss (qa)", "loss, qa", "loss (no task)", "mse", "test/mse", "eval_loss"):
        assert not greater_is_better(task, metric), metric
    for metric in ("token accuracy", "token accuracy (loss)", "NDCG@10"):
        assert greater_is_better(task, metric), metric


# ------------------------------------------------------------------ baselines


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_baselines_by_hand(kind: str) -> None:
    """One text of which each token occurs once, so that all discounts are KenLM's 0.5."""
    task = build(kind=kind)
    train = task.encode([Example(instruction="q", output="1")])  # q newline 1 </s>, or q </s> and 1 </s>
    test = task.encode([Example(instruction="q", output="1"), Example(instruction="q", output="2", task="b")])
    size, (unigram, ngram) = len(task.tokenizer), task.baselines(train, test).values()
    kinds, end = (4, 1) if kind == "decoder" else (3, 2)

    def p(count: int) -> float:
        discount = (0, 0.5, 1)[count]
        left = 0.5 * 4 if kind == "decoder" else 0.5 * 2 + 1
        assert kinds + (kind != "decoder") == 4
        return (count - discount) / 4 + left / 4 / size

    losses = -np.log([p(1), p(end), p(0), p(end)])
    assert unigram.metrics["loss"] == pytest.approx(losses.mean())
    assert unigram.metrics["perplexity"] == pytest.approx(np.exp(losses.mean()))
    assert unigram.metrics["loss (b)"] == pytest.approx(losses[2:].mean())
    assert "token accuracy" not in unigram.metrics
    np.testing.assert_allclose(unigram.cases["loss"], [losses[:2].mean(), losses[2:].mean()])
    assert ngram.metrics["loss (no task)"] < unigram.metrics["loss (no task)"]
    assert [record["tokens"] for record in ngram.predictions] == [2, 2]


def test_baselines_see_the_prompt() -> None:
    """The answer repeats what a question says: 5-grams know it, unigrams do not."""
    task = build()
    made = [Example(instruction=f"say {word}", output=word) for word in ("ab", "cd", "ef", "gh")] * 5
    scores = task.baselines(task.encode(made), task.encode(made[:4]))
    assert list(scores) == ["unigram", "5-gram"]
    assert scores["5-gram"].metrics["perplexity"] < 1.5 < 5 < scores["unigram"].metrics["perplexity"]


def test_baselines_are_fitted_once_for_all_segments() -> None:
    task = build()
    train, test = task.encode(examples()), task.encode(examples(4))
    task.baselines(train, test)
    model = task._fitted[1]["5-gram"]
    task.baselines(train, test[:1])
    assert task._fitted[1]["5-gram"] is model
    task.baselines(list(train), test)
    assert task._fitted[1]["5-gram"] is not model
