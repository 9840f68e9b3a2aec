"""R-Drop, noise on word embeddings and FreeLB within the step: against PyTorch, and over all tasks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases
import torch
from helpers import Setup, assert_close
from task_cases import CASES, SLOW, after_one_step, alone, packed, texts_of
from transformers import BertForSequenceClassification

from instructrec_jax.adapters.soft_targets import agreement_loss
from instructrec_jax.data.batch import Batch, Rows, lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import fit, unpacked
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.distillation import Arrays, Teachers, distilled
from instructrec_jax.training.robust_training import (
    agreeing,
    by_text,
    check_robust_training,
    climbed,
    has_dropout,
    random_noise,
    twice,
)
from instructrec_jax.training.state import create_state, split_params, state_shardings
from instructrec_jax.training.step import batch_dropout_keys, make_train_step
from instructrec_jax.training.training_config import DistilConfig, RobustTrainingConfig

networks = task_cases.networks  # a fixture

R_DROP = RobustTrainingConfig("r_drop", weight=0.7)
FREELB = RobustTrainingConfig("freelb", noise=1.0, ascent_steps=3, step_size=0.5, max_norm=0.8)
METHODS = {
    "r_drop": replace(R_DROP, noise=2.0),
    "noise": RobustTrainingConfig("noise", distribution="gaussian"),
    # Each step multiplies rounding by about eight, as it goes along a gradient of length 1, and noise beside word
    # embeddings of length 0.1 by more: two steps here, without the bound, which the test against PyTorch has.
    "freelb": replace(FREELB, ascent_steps=2, max_norm=None),
}
# The others with -m slow: what a task adds to the step is in tests/tasks/test_properties.py.
FAST = {("classification", "r_drop"), ("classification", "freelb"), ("language_model", "freelb")}


@pytest.fixture(scope="module")
def setup(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Setup("classification", checkpoint, tmp_path_factory.mktemp("robust"))


# ---------------------------------------------------------------- over all tasks


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=() if (name, method) in FAST else SLOW)
        for name in CASES
        for method in METHODS
        if method != "noise" or name in ("multitask", "retrieval", "language_model, encoder–decoder")
    ],
)
def test_packed_split_and_spread_as_one_batch(name: str, method: str, networks: Any, tmp_path: Path) -> None:
    """One text in a row on one device = several in a row, in two micro-batches on eight devices; or a named error."""
    case, how, found = CASES[name], METHODS[method], {}
    for parts, mesh in ((1, (1, 1, 1)), (2, case.mesh)):
        made = alone(name, networks, tmp_path, dropout=True, lora=case.lora, mesh=mesh)
        if refused(how, made):
            assert made.task.context.pixels is not None or name.startswith("sequence")
            how = R_DROP
            if method != "r_drop" or refused(how, made):
                return
        texts = texts_of(made.task, made.encoded)
        lengths, targets = lengths_of(texts.texts)
        plain = unpacked(lengths, made.config.data.max_length, 1, None if targets is None else 32)
        batch = lay_out(texts, plain) if parts == 1 else packed(made, texts, parts * data_shards(made.mesh))
        try:
            found[parts] = after_one_step(made, batch, parts, robust=how)
        except ValueError as error:
            assert "robust_training.method: r_drop compare" in str(error)
            assert name.partition(",")[0] in ("preference", "contrastive", "image_tokenization", "setfit")
            return
        if parts == 1:
            loss, weight, _ = after_one_step(made, batch)
            assert weight == pytest.approx(found[1][1]) and abs(loss - found[1][0]) > 1e-6 * abs(loss)
    assert found[2][:2] == pytest.approx(found[1][:2], rel=5e-5)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - np.asarray(old)).max()), found[1][2], trained(made))
    # of the largest gradient, which is that of cosines over a temperature
    assert_close(found[2][2], found[1][2], atol=2e-5 * max(1.0, *jax.tree.leaves(moved)))


def trained(made: Any) -> Any:
    """The trained parameters before the step."""
    return split_params(made.model.params, made.model.is_frozen)[0]


def refused(how: RobustTrainingConfig, made: Any) -> bool:
    """Whether the settings are refused for this network, by name."""
    rates = {"config": made.model.source.config.to_dict(), "task": vars(made.config.task)}
    try:
        check_robust_training(how, made.task, made.config.task.name, made.model.network, rates)
    except ValueError as error:
        assert "reads none" in str(error) or "has no dropout" in str(error)
        return True
    return False


# ---------------------------------------------------------------- against PyTorch


def test_freelb_equals_pytorch(checkpoint: Path, networks: Any, tmp_path: Path) -> None:
    """The loss and the gradients of the step from the same first noise: Zhu et al., 2020, algorithm 1, on BERT."""
    made = alone("classification", networks, tmp_path, dropout=False, lora=False)
    batch = lay_out(texts_of(made.task, made.encoded), unpacked_plan(made))
    state = create_state(made.model.params, optax.sgd(1.0), task_cases.SEED)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    keys = batch_dropout_keys(jax.random.bits(key, dtype=jnp.uint32), batch)
    first = np.asarray(random_noise(FREELB, made.model.network, batch, keys))
    total, weight, params = after_one_step(made, batch, robust=FREELB)

    theirs = BertForSequenceClassification.from_pretrained(networks["bert", False], num_labels=5).eval()
    head = made.model.params["head"]
    with torch.no_grad():
        theirs.classifier.weight.copy_(torch.tensor(np.asarray(head["output"]["kernel"]).T))
        theirs.classifier.bias.copy_(torch.tensor(np.asarray(head["output"]["bias"])))
    tokens = torch.tensor(np.asarray(batch.texts.tokens)).long()
    mask = torch.tensor(np.asarray(batch.texts.segment_ids) > 0)
    targets = torch.tensor(np.asarray(batch.own.targets)[:, 0]).long()
    noise, losses, norms = torch.tensor(first), [], []
    for _ in range(FREELB.ascent_steps):
        noise = noise.detach().requires_grad_()
        embedded = theirs.bert.embeddings.word_embeddings(tokens) + noise
        logits = theirs(inputs_embeds=embedded, attention_mask=mask.long()).logits
        loss = torch.nn.functional.cross_entropy(logits, targets)
        (loss / FREELB.ascent_steps).backward()
        losses.append(loss.item())
        slope = noise.grad * mask[..., None]
        moved = noise.detach() + FREELB.step_size * slope / slope.flatten(1).norm(dim=1)[:, None, None]
        size = moved.flatten(1).norm(dim=1)[:, None, None]
        norms.append(size.max().item())
        noise = moved * torch.clamp(FREELB.max_norm / size, max=1)
    assert max(norms) > FREELB.max_norm, "the bound is met"
    assert losses[0] < losses[1] and total / weight == pytest.approx(np.mean(losses), rel=1e-5)
    grads = jax.tree.map(lambda before, after: np.asarray(before) - after, made.model.params, params)
    table = theirs.bert.embeddings.word_embeddings.weight.grad.numpy()
    np.testing.assert_allclose(grads["backbone"]["word_embeddings"]["table"], table, atol=1e-5)
    query = torch.stack([layer.attention.self.query.weight.grad.T for layer in theirs.bert.encoder.layer])
    block = grads["backbone"]["layers"]["block0"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(block, query.numpy(), atol=1e-5)


def unpacked_plan(made: Any) -> Any:
    lengths, _ = lengths_of(texts_of(made.task, made.encoded).texts)
    return unpacked(lengths, made.config.data.max_length, 1)


def test_r_drop_equals_pytorch(setup: Any) -> None:
    """Half of equation 4 with α = 2 weight, of the logits of both draws of dropout."""
    batch = setup.batch()
    seen = []

    def loss(model: Any, batch: Batch, inputs: LossInputs) -> Any:
        seen.append(setup.task.soft_outputs(setup.task.view(model), batch, inputs)[0])
        return setup.task.loss(setup.task.view(model), batch, inputs)

    keys = batch_dropout_keys(jnp.uint32(3), batch)
    total, weight = agreeing(R_DROP, setup.task, loss)(setup.model.network, batch, LossInputs(keys))
    there = np.asarray(seen[0].weights) > 0
    p, q = (torch.tensor(np.asarray(each.values)[there]).double() for each in seen)
    assert not torch.equal(p, q)
    targets = torch.tensor(np.asarray(seen[0].targets)[there]).long()
    entropy, kl = torch.nn.functional.cross_entropy, torch.nn.functional.kl_div
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    own = entropy(p, targets) + entropy(q, targets)
    apart = kl(log_q, log_p, log_target=True, reduction="batchmean")
    apart = (apart + kl(log_p, log_q, log_target=True, reduction="batchmean")) / 2
    expected = (own + 2 * R_DROP.weight * apart) / 2
    assert float(total / weight) == pytest.approx(expected.item(), rel=1e-5)


def test_r_drop_goes_with_a_teacher(setup: Any) -> None:
    """Both draws learn from it; hidden states of each draw are computed once, though two losses ask for them."""
    batch = setup.batch()
    arrays = [Arrays(params=setup.model.params, buffers={})]
    teachers = Teachers(DistilConfig(["a"], hidden=0.5), [setup.model.graphdef], arrays)
    own = distilled(setup.task, teachers, arrays, setup.model.network, batch, {})
    keys = batch_dropout_keys(jnp.uint32(3), batch)
    total, weight = agreeing(R_DROP, setup.task, own)(setup.model.network, batch, LossInputs(keys))
    draws = [LossInputs(each) for each in twice(keys)]
    losses = [own(setup.model.network, batch, draw)[0] for draw in draws]
    outputs = [setup.task.soft_outputs(setup.task.view(setup.model.network), batch, draw)[0] for draw in draws]
    expected = sum(losses) / 2 + R_DROP.weight * agreement_loss(*outputs)
    assert losses[0] != losses[1] and float(total) == pytest.approx(float(expected), rel=1e-5)
    assert float(weight) == len(setup.encoded)


# ---------------------------------------------------------------- noise


def rows_of(segments: list[list[int]]) -> Batch[None]:
    ids = np.array(segments, np.int32)
    positions = np.zeros_like(ids)
    for row, column in zip(*np.nonzero(ids), strict=True):
        positions[row, column] = (ids[row, :column] == ids[row, column]).sum()
    numbers = np.arange(ids.max() * len(ids), dtype=np.int32).reshape(len(ids), -1)
    return Batch(Rows(ids, ids, positions), np.zeros_like(ids), numbers, None, None)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_the_noise_of_a_text_has_its_own_size(distribution: Any, setup: Any) -> None:
    """Variance noise² / (3 L d) of a text of L tokens, zero at padding; other bits for each token and seed."""
    how = RobustTrainingConfig("noise", noise=3.0, distribution=distribution)
    batch = rows_of([[1] * 300 + [2] * 20 + [0] * 180, [1] * 500])
    found = [
        np.asarray(random_noise(how, setup.model.network, batch, batch_dropout_keys(jnp.uint32(seed), batch)))
        for seed in (1, 2)
    ]
    assert found[0].shape == (2, 500, 32) and not np.array_equal(*found)
    ids = np.asarray(batch.texts.segment_ids)
    assert not found[0][ids == 0].any()
    for row, segment, length in ((0, 1, 300), (0, 2, 20), (1, 1, 500)):
        own = found[0][row][ids[row] == segment] * np.sqrt(3 * length * 32) / 3.0
        assert own.std() == pytest.approx(1, rel=0.07) and abs(own.mean()) < 0.1
        assert len(np.unique(own[:, 0])) > 0.99 * length
        assert (np.abs(own).max() <= 3**0.5) == (distribution == "uniform")


def test_sums_by_text() -> None:
    batch = rows_of([[1, 1, 2, 0], [1, 2, 3, 3]])
    values = jnp.asarray([[1.0, 2, 4, 8], [1, 2, 3, 4]])
    assert by_text(batch, values).tolist() == [[3, 3, 4, 8], [1, 2, 7, 7]]


def test_a_text_without_a_gradient_keeps_its_noise() -> None:
    """Its norm is 0, by which nothing is divided; the bound holds for each text."""
    batch, how = rows_of([[1, 2, 2, 0]]), RobustTrainingConfig("freelb", ascent_steps=2, step_size=2.0, max_norm=1.5)
    slope = jnp.asarray([[[0.0, 0], [3, 4], [0, 0], [7, 7]]])
    seen = []

    def gradient(noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.square(noise).sum((1, 2)), slope

    first = jnp.asarray([[[0.5, 0], [0, 0], [0, 0], [0, 0]]])
    seen = climbed(how, batch, first, gradient)
    np.testing.assert_allclose(seen, [(0.25 + 0.25 + 1.5**2) / 2], rtol=1e-6)


# ---------------------------------------------------------------- the step


def stepper(setup: Any, how: RobustTrainingConfig | None) -> tuple[Any, Any, Any]:
    optimizer = optax.adam(1e-3)
    state = create_state(jax.tree.map(jnp.copy, setup.model.params), optimizer, 0)
    shardings = state_shardings(state, setup.model.shardings, setup.mesh)
    settings: Any = dict(mesh=setup.mesh, shardings=shardings, robust_training=how)
    step = make_train_step(setup.task, setup.model.graphdef, optimizer, **settings)
    return step, jax.device_put(state, shardings), shardings


def test_a_step_is_a_function_of_the_state(setup: Any) -> None:
    """So a resumed run has the bits of one that was never interrupted."""
    step, state, shardings = stepper(setup, FREELB)
    batch = to_devices(setup.batch(), setup.mesh)
    kept, _ = step(state, batch)
    kept = jax.device_get(kept)
    found = [jax.device_get(step(jax.device_put(kept, shardings), batch)[0]) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert int(found[0].step) == 2


def test_without_a_method_the_program_is_that_of_before(setup: Any) -> None:
    batch = to_devices(setup.batch(), setup.mesh)
    texts = []
    for how in (None, RobustTrainingConfig(), R_DROP):
        step, state, _ = stepper(setup, how)
        texts.append(step.lower(state, batch).as_text())
    assert texts[0] == texts[1] != texts[2]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="none", weight=2.0), "robust_training.weight has no effect without robust_training.method"),
        (dict(method="freelb", weight=2.0), "weight has no effect with method: freelb"),
        (dict(method="r_drop", max_norm=2.0), "max_norm has no effect with method: r_drop"),
        (dict(method="noise", step_size=2.0), "step_size has no effect with method: noise"),
        (dict(method="r_drop", weight=float("nan")), "robust_training.weight is nan, but should be positive"),
        (dict(method="r_drop", weight=-1.0), "robust_training.weight is -1.0"),
        (dict(method="noise", noise=float("inf")), "robust_training.noise is inf"),
        (dict(method="noise", noise=0.0), "robust_training.noise is 0, so method: noise has no effect"),
        (dict(method="r_drop", distribution="gaussian"), "distribution has no effect without robust_training.noise"),
        (dict(method="freelb", ascent_steps=0), "robust_training.ascent_steps is 0"),
        (dict(method="freelb", ascent_steps=1, noise=0.0), "no noise is added"),
        (dict(method="freelb", max_norm=0.0), "robust_training.max_norm is 0.0"),
        (dict(method="r_drop"), "the network has no dropout"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: Any, message: str, setup: Any) -> None:
    how = RobustTrainingConfig(**settings)
    with pytest.raises(ValueError, match=message):
        check_robust_training(how, setup.task, "classification", setup.model.network, {})
    check_robust_training(RobustTrainingConfig(), setup.task, "classification", setup.model.network, {})


def test_where_dropout_is_found() -> None:
    assert has_dropout({"config.json": {"text_config": {"attention_dropout": 0.1}}})
    assert not has_dropout({"hidden_dropout_prob": 0.0, "dropout": None, "drop": "0.1", "lora": {"rank": 8}})


def test_packing_leaves_the_noise_of_a_text(setup: Any) -> None:
    """Bits are those of the text's number and the token's position; norms those of the text."""
    texts = setup.parts()
    lengths, _ = lengths_of(texts.texts)
    found = []
    for plan in (unpacked(lengths, 64, 1), fit(lengths, 64)):
        batch = lay_out(texts, plan)
        noise = np.asarray(random_noise(FREELB, setup.model.network, batch, batch_dropout_keys(jnp.uint32(5), batch)))
        found.append([noise[r, s : s + n] for r, s, n in zip(plan.row, plan.start, lengths, strict=True)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
