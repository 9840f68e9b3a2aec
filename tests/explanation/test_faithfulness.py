"""A network whose label hangs on one word: the word is found, and removing it tells methods from random ones."""

from pathlib import Path

import numpy as np
import pytest
from helpers import SUBJECTS
from tiny_runs import tiny_run, write_examples

from instructrec_jax.explanation.explain import Explainer
from instructrec_jax.explanation.faithfulness import Faithfulness, MethodRow, faithfulness
from instructrec_jax.explanation.shown import shown_faithfulness
from instructrec_jax.files import read_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice
from instructrec_jax.train import train


@pytest.mark.slow
def test_a_planted_word_is_found(checkpoint: Path, tmp_path: Path) -> None:
    often = {"evaluation__every": 400, "checkpoint__every": 400, "tracking__log_every": 100}
    config = tiny_run("classification", checkpoint, tmp_path, steps=400, **often)
    for split, count, seed in (("train", 800, 0), ("validation", 16, 1), ("test", 40, 2)):
        write_examples(tmp_path / f"{split}.jsonl", "classification", count, seed)
    run = Run.open(train(config))
    # Occlusion finds it in fewer texts: without the word the network still answers one of the labels.
    explainer = Explainer(run, ("integrated",), most=64)
    held_out = read_jsonl(tmp_path / "test.jsonl")
    found = explainer.explain([str(row["instruction"]) for row in held_out])
    for method in explainer.methods:
        first = [e.words[int(np.argmax(e.scores))] for e in found if e.method == method]
        right = [word == row["output"] for word, row in zip(first, held_out, strict=True)]
        assert np.mean(right) >= 0.95, method
    table = faithfulness(explainer, Choice())
    assert [row.beats_random for row in table.rows] == [True] and table.texts == 16


def test_a_method_that_does_not_beat_random_is_left_out_and_named() -> None:
    better, worse = (0.5, 0.25, 0.75), (-0.5, -0.75, -0.25)
    rows = (
        MethodRow("integrated", better, worse, better, worse),
        MethodRow("gradient", better, worse, (0.1, -0.1, 0.3), worse),
        MethodRow("occlusion", better, worse, better, (0.0, -0.1, 0.1)),
    )
    assert [row.beats_random for row in rows] == [True, False, False]
    shown = shown_faithfulness(Faithfulness(rows, (0.0, 0.0), 5, 1, "logit"))
    table, _, rest = shown.partition("left out: ")
    assert "integrated gradients" in table and "occlusion" not in table and SUBJECTS[0] not in table
    assert "gradient × input does not beat random" in rest and "occlusion does not beat random" in rest
