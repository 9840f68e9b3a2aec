"""What a task says of itself in its settings is what it is: it ranks a catalogue, or it writes text."""

from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from helpers import task_config

from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.kinds import as_language_model, as_ranking

RANKING = {"retrieval", "reranker", "language_model_ranking", "sequence"}
WRITING = {"language_model", "choice", "dialogue", "question_answering", "summarization", "translation"}
OTHERS = {"classification", "multilabel", "regression", "token_classification", "similarity", "span", "multitask"}


@pytest.mark.parametrize("kind", sorted(RANKING | WRITING | OTHERS))
def test_kinds_of_tasks(kind: str, tmp_path: Path) -> None:
    config: Any = task_config(kind, tmp_path)
    network = "decoder" if kind in WRITING or kind == "language_model_ranking" else "encoder"
    task = config.build(TaskContext(byte_tokenizer(cls_token="<s>", sep_token="</s>"), 128, kind=network))
    ranking, writer = as_ranking(task), as_language_model(task)
    assert (ranking is task) == (kind in RANKING) == config.ranks_catalogue and ranking in (task, None)
    assert (writer is task) == (kind in WRITING or kind == "language_model_ranking") and writer in (task, None)
