"""Influence and losses of layers, against transformers' hidden states and networks without these layers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from helpers import Setup
from transformers import BertModel

from instructrec_jax.compression.calibration_rows import full_rows
from instructrec_jax.compression.importance import LayerLosses, energies, layers_to_keep, parts_to_keep
from instructrec_jax.data.batch import Text


@pytest.fixture(scope="module")
def setup(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Setup("classification", checkpoint, tmp_path_factory.mktemp("importance"))


def test_influence_is_one_less_the_cosine_of_input_and_output(setup: Any, checkpoint: Path) -> None:
    losses = LayerLosses(setup.task, setup.model, setup.mesh, [setup.batch()])
    network = BertModel.from_pretrained(checkpoint).eval()
    sums, tokens = np.zeros(2), 0
    for encoded in setup.encoded:
        with torch.no_grad():
            ids = torch.tensor(encoded.text.tokens[None].astype(int))
            states = [each[0].double().numpy() for each in network(ids, output_hidden_states=True).hidden_states]
        for layer, (a, b) in enumerate(zip(states, states[1:], strict=False)):
            sums[layer] += (1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).sum()
        tokens += len(encoded.text.tokens)
    np.testing.assert_allclose(losses.influence, sums / tokens, rtol=1e-4)
    assert layers_to_keep(losses, 1, "influence", 0) == (int(np.argmax(sums)),)
    least = min((losses.of((layer,)), layer) for layer in (0, 1))[1]
    assert layers_to_keep(losses, 1, "loss", 0) == (least,)
    assert {layers_to_keep(losses, 1, "random", seed)[0] for seed in range(9)} == {0, 1}


def test_energies_are_those_of_the_inputs_and_the_weights(setup: Any, checkpoint: Path) -> None:
    texts = [Text(np.arange(10, 26, dtype=np.int32))]
    found = energies(setup.model, setup.mesh, full_rows(texts, 16, 1), "layers.{layer}.mlp_out")
    network, seen = BertModel.from_pretrained(checkpoint).eval(), []
    for layer in network.encoder.layer:
        layer.output.dense.register_forward_hook(lambda module, inputs, _: seen.append((module, inputs[0][0])))
    with torch.no_grad():
        network(torch.arange(10, 26)[None])
    for row, (module, x) in zip(found, seen, strict=True):
        expected = x.square().sum(0) * module.weight.square().sum(0)
        np.testing.assert_allclose(row, expected.detach().numpy(), rtol=2e-4)


def test_parts_with_the_most_energy_are_kept() -> None:
    energy = np.array([[1.0, 1, 5, 0, 2, 2], [9, 0, 0, 0, 1, 0]])
    assert [own.tolist() for own in parts_to_keep(energy, 3, 2, "influence", 0)] == [[1, 2], [0, 2]]
    drawn = parts_to_keep(energy, 3, 2, "random", 1)
    assert all(len(own) == 2 and (np.diff(own) > 0).all() for own in drawn)
    assert jax.tree.map(np.array_equal, drawn, parts_to_keep(energy, 3, 2, "random", 1)) == [True, True]
