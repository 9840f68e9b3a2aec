"""Attention rollout (and `backbones.noted` under it) against the weights that PyTorch gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_cases
import torch
import transformers
from explained_runs import run_of
from task_cases import CASES, examples_of

from instructrec_jax.explanation.explain import Explainer, methods_of
from instructrec_jax.explanation.rollout import Rollout
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.objective import Choice

networks = task_cases.networks  # a fixture


def scores_of(run: Run, example: Any, choice: Choice) -> tuple[Any, Any, np.ndarray]:
    explainer = Explainer(run, ("rollout",))
    (encoded,) = explainer.asker.encode([run.task.unanswered(example)])[0]
    objective = run.task.objectives(explainer.asker.predict, encoded, choice)[0]
    (found,) = Rollout(run)([explainer.asked(objective, encoded)])
    return objective, encoded, found.tokens


@pytest.mark.parametrize("name", ["classification", "language_model"])
@pytest.mark.parametrize("rank", [0, 2])
def test_scores_are_those_of_pytorch(name: str, rank: int, networks: Any, tmp_path: Path) -> None:
    """An encoder that reads [CLS], and a decoder that reads the last token; a new LoRA changes nothing."""
    case = CASES[name]
    run = Run.open(run_of(name, networks, tmp_path, lora__rank=rank))
    objective, encoded, scores = scores_of(run, examples_of(name)[1], Choice())
    text = objective.text(encoded).text
    tokens = np.asarray(text.tokens)[None]
    network = transformers.AutoModel.from_pretrained(networks[case.network, False], attn_implementation="eager")
    network.eval()
    with torch.no_grad():
        found = network(torch.from_numpy(tokens.astype(np.int64)), output_attentions=True).attentions
    share = np.zeros(tokens.shape[1])
    weights = objective.weights(encoded)
    (read,) = [0] if name == "classification" else np.flatnonzero(weights.reshape(len(weights), -1).any(1))
    share[read] = 1
    for layer in reversed(found):
        weights = layer[0].mean(0).double().numpy()
        share = (share @ weights + share) / 2
    np.testing.assert_allclose(scores, share[: len(scores)], atol=1e-5)
    assert scores.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["regression", "token_classification", "retrieval", "similarity"])
def test_shares_add_up_to_one(name: str, networks: Any, tmp_path: Path) -> None:
    run = Run.open(run_of(name, networks, tmp_path))
    _, _, scores = scores_of(run, examples_of(name)[1], Choice())
    assert (scores >= 0).all() and scores.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["language_model, encoder–decoder", "language_model, bart"])
def test_encoder_decoders_are_those_of_pytorch(name: str, networks: Any, tmp_path: Path) -> None:
    """The share of the text in one written token; the rest is that of the tokens before."""
    run = Run.open(run_of(name, networks, tmp_path))
    objective, encoded, scores = scores_of(run, examples_of(name)[1], Choice())
    text, weights = objective.text(encoded).text, objective.weights(encoded)
    tokens, target = (torch.from_numpy(np.asarray(each, np.int64)[None]) for each in (text.tokens, text.target))
    network = transformers.AutoModel.from_pretrained(networks[CASES[name].network, False], attn_implementation="eager")
    network.eval()
    with torch.no_grad():
        found = network(input_ids=tokens, decoder_input_ids=target, output_attentions=True)
    own, cross, encoder = (
        [layer[0].mean(0).double().numpy() for layer in each]
        for each in (found.decoder_attentions, found.cross_attentions, found.encoder_attentions)
    )
    (read,) = np.flatnonzero(weights.reshape(len(weights), -1).any(1))
    written, share = np.eye(len(weights))[read], np.zeros(len(text.tokens))
    for mine, theirs in zip(reversed(own), reversed(cross), strict=True):
        share = share + written @ theirs / 2
        written = (written / 2 + written / 2 @ mine) / 2
    for layer in reversed(encoder):
        share = (share @ layer + share) / 2
    np.testing.assert_allclose(scores, share, atol=1e-5)
    assert 0 < scores.sum() == pytest.approx(1 - written.sum(), abs=1e-5)


def test_networks_of_images_have_none(networks: Any, tmp_path: Path) -> None:
    run = Run.open(run_of("classification, vit", networks, tmp_path))
    assert "rollout" not in methods_of(run) and "gradient" in methods_of(run)
    with pytest.raises(ValueError, match="networks of words alone: use another --method"):
        Explainer(run, ("rollout",))
