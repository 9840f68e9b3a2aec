"""What an evaluation will need is checked before training begins: `Task.check`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import examples, task_config
from transformers import AutoConfig, AutoTokenizer

from instructrec_jax.backbones.folder import find_family
from instructrec_jax.data.example import Example
from instructrec_jax.tasks import ChoiceConfig, QuestionAnsweringConfig
from instructrec_jax.tasks.base import Task, TaskContext, check_cases

QUESTION = Example(instruction="what is it", input="the old film. " * 6, output=("old",), id="q-7")


def open_task(config: Any, folder: Path, **context: Any) -> Task:
    network = AutoConfig.from_pretrained(folder)
    settings: dict[str, Any] = dict(max_length=64, kind=find_family(network.model_type).kind, folder=folder)
    settings["decoder_start_token_id"] = getattr(network, "decoder_start_token_id", None)
    return config.build(TaskContext(AutoTokenizer.from_pretrained(folder), **settings | context))


def test_a_prompt_that_leaves_no_room_for_the_answer(language_models: dict[str, Path]) -> None:
    """The network reads 128 tokens; an encoder–decoder's T5 has no longest text."""
    for network, new, refused in (("gpt2", 8, False), ("gpt2", 120, True), ("t5", 120, False)):
        config = QuestionAnsweringConfig(template="plain", max_new_tokens=new)
        task = open_task(config, language_models[network], max_length=128)
        encoded = task.encode([QUESTION])
        if refused:
            with pytest.raises(ValueError, match="q-7.*max_new_tokens"):
                check_cases(task, encoded)
        else:
            check_cases(task, encoded)


def test_counts_stay_those_of_the_data(language_models: dict[str, Path]) -> None:
    """What the check cuts is cut, and counted, by the evaluation."""
    config = QuestionAnsweringConfig(template="plain", max_new_tokens=4)
    task = open_task(config, language_models["llama"], max_length=24, truncate="left")
    encoded = task.encode([QUESTION])
    before = dict(task.context.counts)
    check_cases(task, encoded)
    assert task.context.counts == before


def test_candidates_that_cannot_be_drawn(checkpoint: Path, tmp_path: Path) -> None:
    config = replace(task_config("retrieval", tmp_path / "catalogue"), protocols=["full", "uni50"])  # of 12 items
    task = open_task(config, checkpoint)
    with pytest.raises(ValueError, match="uni50"):
        check_cases(task, task.encode(examples("retrieval", 4)))


@pytest.mark.parametrize("form", ["likelihood", "choice", "yes_no", "pairwise"])
def test_candidates_too_long_beside_their_prompt(language_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    config = task_config("language_model_ranking", tmp_path / "catalogue", form=form)
    made = [e for e in examples("language_model_ranking", 8) if e.history][:2]
    task = open_task(config, language_models["llama"], max_length=128)
    encoded = task.encode(made)
    check_cases(task, encoded)
    task.context.max_length = 4
    with pytest.raises(ValueError, match="data.max_length"):
        check_cases(task, encoded)


def test_options_too_long_beside_their_question(language_models: dict[str, Path]) -> None:
    task = open_task(ChoiceConfig(template="plain"), language_models["llama"], max_length=128)
    asked = Example(instruction="what is it", output="old", candidates=("old", "new"), id="c-1")
    encoded = task.encode([asked])
    check_cases(task, encoded)
    task.context.max_length = 4
    with pytest.raises(ValueError, match="data.max_length"):
        check_cases(task, encoded)


def test_multitask_checks_each_task_with_its_own_cases(checkpoint: Path, tmp_path: Path) -> None:
    task: Any = open_task(task_config("multitask", tmp_path), checkpoint)
    encoded = task.encode(examples("multitask", 6))
    seen: dict[str, set[str]] = {}
    for name, part in task.tasks.items():
        part.check = lambda own, name=name: seen.update({name: {e.example.task for e in own}})
    check_cases(task, encoded)
    assert seen == {name: {name} for name in task.tasks}
    assert np.sum([len(names) for names in seen.values()]) == 3
