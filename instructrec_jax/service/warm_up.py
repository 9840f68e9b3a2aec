"""Compiles a run's programs in every shape that requests can have, before there are any."""

from dataclasses import replace

import numpy as np

from instructrec_jax.answering.ranker import Ranker
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.media.thumbnails import blank_picture
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.evaluation.predictor import LONG_TARGETS, SHORT_TARGETS, ladder, texts_of_every_shape
from instructrec_jax.inference.likelihood import Branch, Request, log_likelihoods
from instructrec_jax.runs.data import buckets
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.captions import Captions, beside_image, image_alone
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.reranker import RerankerTask
from instructrec_jax.tasks.ranking.sequence import TABLES, SequenceTask
from instructrec_jax.tasks.text.classification import ClassificationTask
from instructrec_jax.tasks.texts import tokenize

SAMPLES = (Example(instruction="a"), Example(instruction="a", input="a"))


def compile_task(run: Run) -> None:
    """Runs a run with `fixed_shapes`, and each of its subtasks, in every shape."""
    parts = {name: (task, run.predictor.subtasks[name]) for name, task in run.task.subtasks.items()}
    for task, predict in parts.values() if parts else [(run.task, run.predictor)]:
        if not task.has_answers:
            continue
        if isinstance(task, LikelihoodTask):
            _likelihoods(run, task, predict)
            continue
        for sample in _samples(task):
            for texts in texts_of_every_shape(sample, buckets(run.config), data_shards(run.mesh)):
                for each in predict.each:
                    each.run(texts)
                if isinstance(run.task, ClassificationTask) and run.domain_scores.reads_vectors:
                    run.domain_scores.vectors(texts)
        if isinstance(task, SequenceTask):
            for each in predict.each:
                _sequences(run, task, each)
            if task.pictures is not None:
                task.pictures.compile()


def compile_vectors(run: Run) -> None:
    """The same for the vectors of texts."""
    for texts in run.embedder.every_shape(run.mesh):
        run.embedder.vectors(texts)


def compile_ranker(ranker: Ranker, most: int, *, alone: bool) -> None:
    """The same for a ranker of a catalogue.

    Args:
      most: the largest k.
      alone: whether it answers by itself, rather than in a fusion, which ranks on the host.
    """
    compile_task(ranker.run)
    if ranker.has_vectors:
        _ = ranker.vectors
        if alone:
            ranker.index.compile(min(most, len(ranker.catalogue)))


def _samples(task: Task) -> list[Text]:
    """Texts as the task encodes them: one of each kind that a request may have."""
    read = task.context.pixels
    if read is None:
        return [_sample(task)]
    images = TextImages.alone([blank_picture()], read)
    if task.context.kind != "image_text":
        return [Text(np.zeros(read.vectors, np.int32), images=images)]
    (caption,) = Captions.of(task.context).tokens(["a"], ["the caption a"])
    assert caption is not None
    return [caption, beside_image(caption, images), image_alone(images)]


def _sample(task: Task) -> Text:
    """A text as the task encodes it."""
    if isinstance(task, RerankerTask):
        return task.free_pairs("a", ["a"])[0]
    if isinstance(task, SequenceTask):
        return _of_words(task)
    for example in SAMPLES:
        try:
            encoded = task.encode([replace(task.unanswered(example), id="0", where="warm-up")])
        except ValueError:
            continue
        if encoded:
            return encoded[0].text
    return _of_words(task)


def _of_words(task: Task) -> Text:
    (text,) = tokenize(["a"], ["the text a"], task.context)
    assert text is not None  # one word is never too long
    return text


def _sequences(run: Run, task: SequenceTask, predict: Predict) -> None:
    width = task.text_vectors(predict).shape[1]
    tables = [np.zeros((rows, width), np.float32) for rows in TABLES] if width else [np.zeros((0, 0), np.float32)]
    longest, known = 1 + task.config.history_limit, buckets(run.config)  # the instruction's number and the items
    lengths = [each for shorter, each in zip((0, *known), known, strict=False) if shorter < longest]
    for table in tables:
        for texts in texts_of_every_shape(Text(np.zeros(1, np.int32)), lengths, data_shards(run.mesh)):
            predict.run(texts, task.inputs(predict, table))


def _likelihoods(run: Run, task: LikelihoodTask, predict: Predict) -> None:
    """Answers of each length of target rows after prompts of each length."""
    token = np.array(task.tokenizer("a", add_special_tokens=False)["input_ids"][:1], np.int32)
    for length in buckets(run.config):
        for answers in (SHORT_TARGETS, LONG_TARGETS):
            tokens = np.resize(token, answers)
            branch = Branch(tokens, tokens, np.ones(answers, bool), 1)
            request = Request(Text(np.resize(token, length)), [branch])
            for rows in ladder(length + answers):
                log_likelihoods(predict, [request] * (rows * data_shards(run.mesh)))
