"""A task that counts letters, so that predictions for files need no network."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.runs.predictions import Asker
from instructrec_jax.tasks.answers import LabelAnswer
from instructrec_jax.tasks.base import Encoded, Task, TaskContext
from instructrec_jax.tasks.prediction import Predict

ASKED: dict[str, object] = {"run": "a"}


class Letters(Task):
    """Answers with the number of letters; knows no text with an x, and drops texts with a z."""

    def __init__(self) -> None:
        self.context = TaskContext(None, 64, truncate="drop")

    def unanswered(self, example: Example) -> Example:
        return replace(example, output="0")

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Any]]:
        for number, example in enumerate(examples):
            if "x" in example.instruction:
                raise ValueError(f"example {example.id or number!r} has an x.")
        return [Encoded(Text(np.zeros(1, np.int32)), None, e) for e in examples if "z" not in e.instruction]

    def answers(self, predict: Predict, encoded: Sequence[Encoded[Any]], k: int = 10) -> list[LabelAnswer]:
        predict([e.text for e in encoded])
        sizes = [len(e.example.instruction) for e in encoded]
        return [LabelAnswer(str(size), {"a, b": 1 / size, "c": 0.5}) for size in sizes]


def asker(run: Any = lambda texts, *_: [np.zeros(1)] * len(texts)) -> Asker:
    fields = FieldsConfig(instruction="text", output=None, ignore=["label", "note"])
    return Asker(Letters(), Predict(run), FieldMapper(fields))


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "note"])
        table.writerows([text, "?", f'"{number}"\n'] for number, text in enumerate(texts))
    return path


TEXTS = ["a" * (1 + number * 7 % 11) + "é😀" for number in range(23)]
