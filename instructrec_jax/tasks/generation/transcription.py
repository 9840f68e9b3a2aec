"""Transcription: an encoder–decoder writes the words of a sound. Scored by word and character error rate."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references, shown_input
from instructrec_jax.inference.generation_config import speech_prefix
from instructrec_jax.metrics.speech import PROTOCOL, error_rates
from instructrec_jax.tasks.base import Encoded, TaskContext, examples_of, name_of
from instructrec_jax.tasks.generation.language_model import NextTokens
from instructrec_jax.tasks.generation.writing_config import TranscriptionConfig
from instructrec_jax.tasks.generation.written_answers import Judgement, WritingTask, scores_of_texts, with_one_answer
from instructrec_jax.tasks.images import read_images
from instructrec_jax.tasks.scores import Scores


class TranscriptionTask(WritingTask):
    """The source of an example is its only sound; the target are its words, behind the tokens that Whisper's settings
    force (language, task, no timestamps)."""

    case_measure = "sentence-WER"

    def __init__(self, config: TranscriptionConfig, context: TaskContext):
        super().__init__(config, context)
        assert context.folder is not None
        self.prefix = speech_prefix(context.folder, read_config(context.folder))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        for example, name in zip(examples, names, strict=True):
            if not references(example):
                raise ValueError(f"{name} has no answer: add it, or remove the row.")
            if len(example.sounds) > 1:
                raise ValueError(f"{name} has {len(example.sounds)} sounds, but one is transcribed: make rows of them.")
        assert self.context.pixels is not None
        sounds = list(read_images(examples, names, self.context, self.context.pixels))
        answers = [references(with_one_answer(example))[0] for example in examples]
        written = self.tokenizer(answers, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        encoded = []
        for example, name, sound, ids in zip(examples, names, sounds, written, strict=True):
            ids = [*self.prefix, *ids, self.tokenizer.eos_token_id]
            if len(ids) > self._longest_target and self._is_dropped(len(ids), name):
                continue
            labels = np.array(ids[: self._longest_target], np.int32)
            target = np.array([self.context.decoder_start_token_id, *labels[:-1]], np.int32)
            text = Text(sound.tokens, target=target, images=sound.images)
            encoded.append(Encoded(text, NextTokens(labels, np.ones_like(labels)), example))
        return encoded

    def prompts(self, examples: Sequence[Example]) -> list[Text]:
        raise ValueError("transcription reads sounds, which have no prompt: use predict, which reads a file of them.")

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        rates = error_rates(answers, [references(e) for e in examples])
        corpus = rates.metrics()
        everything = np.arange(len(examples))
        cases = {self.case_measure: rates.word_edits / rates.words}
        return Judgement(
            {name: metric.value(everything) for name, metric in corpus.items()},
            cases,
            self.case_measure,
            PROTOCOL,
            corpus=corpus,
        )

    def _judged(self, encoded: Sequence[Encoded], answers: Sequence[str]) -> Scores:
        examples = examples_of(encoded)
        return scores_of_texts(examples, shown_input, answers, self.judge(examples, answers))

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        usual = Counter(references(e)[0] for e in train).most_common(1)[0][0]
        return {"most frequent transcript": lambda examples: [usual] * len(examples)}
