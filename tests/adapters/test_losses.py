"""The chunked loss over a vocabulary, against torch in float64 and against itself on eight devices."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.losses import linear_cross_entropy, token_losses
from instructrec_jax.distributed.mesh import batch_sharding, make_mesh, parameter_sharding
from instructrec_jax.distributed.mesh_config import MeshConfig

ROWS, LENGTH, WIDTH, VOCAB = 8, 13, 16, 40
OPTIONS = {
    "plain": {},
    "scale": dict(scale=0.3),
    "soft cap": dict(soft_cap=2.0),
    "smoothing": dict(label_smoothing=0.1),
    "z-loss": dict(z_loss=0.05),
    "all": dict(scale=0.7, soft_cap=3.0, label_smoothing=0.2, z_loss=0.01, chunk=4),
}


def inputs(rows: int = ROWS, length: int = LENGTH, width: int = WIDTH, vocab: int = VOCAB, seed: int = 0) -> Any:
    """hidden, table, bias, labels, weights: a third of the places has a weight, the second row has none."""
    rng = np.random.default_rng(seed)
    hidden, table, bias = (
        rng.normal(size=(rows, length, width)),
        rng.normal(size=(vocab, width)),
        rng.normal(size=vocab),
    )
    labels = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    weights = np.where(rng.random((rows, length)) < 1 / 3, rng.uniform(0.5, 2, (rows, length)), 0)
    weights[1 % rows] = 0
    return *(x.astype(np.float32) for x in (hidden, table, bias)), labels, weights.astype(np.float32)


def loss(hidden: Any, table: Any, bias: Any, labels: Any, weights: Any, **options: Any) -> jax.Array:
    return linear_cross_entropy(hidden, table, labels, weights, bias=bias, **options)


def torch_logits(hidden: Any, table: Any, bias: Any, scale: float = 1.0, soft_cap: float | None = None) -> torch.Tensor:
    z = scale * hidden @ table.T + (0 if bias is None else bias)
    return z if soft_cap is None else soft_cap * torch.tanh(z / soft_cap)


def oracle(
    hidden: Any,
    table: Any,
    bias: Any,
    labels: Any,
    weights: Any,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    **options: Any,
) -> tuple[float, list[np.ndarray]]:
    """Σ w ℓ and its gradients by torch in float64."""
    leaves = [
        torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (hidden, table, bias) if x is not None
    ]
    options.pop("chunk", None)
    z = torch_logits(*leaves[:2], leaves[2] if bias is not None else None, **options)
    each = torch.nn.functional.cross_entropy(
        z.flatten(0, 1), torch.tensor(labels).long().flatten(), reduction="none", label_smoothing=label_smoothing
    )
    each = each + z_loss * torch.logsumexp(z.flatten(0, 1), -1) ** 2
    total = (each * torch.tensor(np.asarray(weights, np.float64)).flatten()).sum()
    total.backward()
    return total.item(), [leaf.grad.numpy() for leaf in leaves]


def assert_equal(ours: Any, theirs: np.ndarray) -> None:
    """Up to the rounding of fp32, 16 units in the last place of the largest value."""
    np.testing.assert_allclose(ours, theirs, atol=16 * 2**-24 * max(1, np.abs(theirs).max()), rtol=0)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradients_equal_torch_in_float64(options: dict) -> None:
    given = inputs()
    expected, gradients = oracle(*given, **options)
    assert float(loss(*given, **options)) == pytest.approx(expected, rel=1e-6)  # the path without gradients
    total, found = jax.jit(lambda *a: jax.value_and_grad(loss, (0, 1, 2))(*a, **options))(*given)
    assert total.dtype == jnp.float32 and float(total) == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(found, gradients, strict=True):
        assert_equal(ours, theirs)


def excluding(number: int = 9) -> np.ndarray:
    """int32 [rows, length, number]: entries twice, labels and numbers outside the vocabulary among them."""
    found = np.random.default_rng(5).integers(-2, VOCAB + 3, (ROWS, LENGTH, number)).astype(np.int32)
    found[:, :, 0], found[:, :, 1] = inputs()[3], found[:, :, 2]
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_excluded_entries_are_in_no_softmax(options: dict) -> None:
    """Against torch in float64, position by position, over what is left of the vocabulary."""
    given, excluded = inputs(), excluding()
    value, gradients = jax.value_and_grad(partial(loss, excluded=excluded, **options), (0, 1, 2))(*given)
    hidden, table, bias, labels, weights = given
    total, expected = 0.0, [np.zeros(x.shape) for x in (hidden, table, bias)]
    for place in zip(*np.nonzero(weights), strict=True):
        left = np.setdiff1d(np.arange(VOCAB), np.setdiff1d(excluded[place], labels[place]))
        label = np.searchsorted(left, labels[place])
        own, (of_hidden, of_table, of_bias) = oracle(
            hidden[place][None, None], table[left], bias[left], label[None, None], weights[place][None, None], **options
        )
        total += own
        expected[0][place] += of_hidden[0, 0]
        expected[1][left] += of_table
        expected[2][left] += of_bias
    assert value == pytest.approx(total, rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 5, 13, 50, None])
def test_any_chunk_gives_the_same(chunk: int | None) -> None:
    hidden, table, _, labels, weights = inputs()
    expected, gradients = oracle(hidden, table, None, labels, weights)
    total, found = jax.value_and_grad(lambda h, t: linear_cross_entropy(h, t, labels, weights, chunk=chunk), (0, 1))(
        hidden, table
    )
    assert float(total) == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(found, gradients, strict=True):
        assert_equal(ours, theirs)


def test_bfloat16_sums_in_float32() -> None:
    """Within the rounding of bf16 inputs to the products; the table's gradient is a sum over many chunks."""
    hidden, table, bias, labels, weights = inputs(rows=4, length=256)
    hidden, table = (x.astype(jnp.bfloat16) for x in (hidden, table))
    expected, gradients = oracle(hidden, table, bias, labels, weights)
    total, found = jax.value_and_grad(loss, (0, 1, 2))(hidden, jnp.float32(table), bias, labels, weights, chunk=1)
    assert float(total) == pytest.approx(expected, rel=1e-6)  # of a sum of exact products
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for ours, theirs in zip(found, gradients, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()
        assert error < 2**-8  # half a unit in the last place of bf16 each for dz and the result
    assert loss(hidden, table, bias, labels, weights).dtype == jnp.float32


def test_the_incoming_cotangent_scales_the_gradients() -> None:
    given = inputs()
    plain = jax.grad(loss, (0, 1, 2))(*given)
    scaled = jax.grad(lambda *a: jnp.square(loss(*a)) / 7, (0, 1, 2))(*given)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one * 2 * loss(*given) / 7, other, rtol=1e-5, atol=1e-6)


def test_tied_table_gets_both_gradients() -> None:
    """Tied embeddings: hidden is computed from the same table."""
    _, table, bias, labels, weights = inputs()
    ids = labels[:, ::-1]
    _, by_hidden = oracle(table[ids], table, bias, labels, weights)
    expected = by_hidden[1].copy()
    np.add.at(expected, ids, by_hidden[0])
    found = jax.grad(lambda t: loss(t[ids], t, bias, labels, weights, chunk=4))(table)
    assert_equal(found, expected)


def test_token_losses_equal_torch() -> None:
    hidden, table, bias, labels, weights = inputs()
    options = dict(scale=0.7, soft_cap=3.0)
    labels[0, :3] = torch_logits(*map(torch.tensor, (hidden, table, bias)), **options).argmax(-1)[0, :3]  # some hits
    z = torch_logits(*(torch.tensor(x, dtype=torch.float64) for x in (hidden, table, bias)), **options)
    expected = torch.nn.functional.cross_entropy(z.transpose(1, 2), torch.tensor(labels).long(), reduction="none")
    hits = z.argmax(-1).numpy() == labels
    for chunk in (4, None):
        each, hit = token_losses(hidden, table, labels, bias=bias, chunk=chunk, **options)
        np.testing.assert_allclose(each, expected, atol=5e-6, rtol=0)
        np.testing.assert_array_equal(hit, hits)
        each, hit = token_losses(hidden, table, labels, weights, bias=bias, chunk=chunk, **options)
        np.testing.assert_allclose(each, np.where(weights > 0, expected, 0), atol=5e-6, rtol=0)
        np.testing.assert_array_equal(hit, hits & (weights > 0))
    assert 3 <= hits.sum() < hits.size


# ---------------------------------------------------------------- what has no weight


def test_without_weights_all_is_zero() -> None:
    hidden, table, bias, labels, weights = inputs()
    total, found = jax.value_and_grad(loss, (0, 1, 2))(hidden, table, bias, labels, weights * 0, chunk=4)
    assert float(total) == 0 and all((np.asarray(x) == 0).all() for x in found)


def test_chunks_without_weight_are_left_out() -> None:
    """Every row has two places with weight; NaN at the others would reach the table if they were computed."""
    hidden, table, bias, labels, weights = inputs()
    for row in range(ROWS):
        weights[row] = 0
        weights[row, [row % 5, 9]] = 1
    expected, gradients = oracle(hidden, table, bias, labels, weights)
    hidden[weights == 0] = np.nan
    for chunk in (1, 2):
        total, found = jax.value_and_grad(loss, (0, 1, 2))(hidden, table, bias, labels, weights, chunk=chunk)
        assert float(total) == pytest.approx(expected, rel=1e-6)
        for ours, theirs in zip(found, gradients, strict=True):
            assert_equal(ours, theirs)


@pytest.mark.parametrize("label", [-100, -1, VOCAB])
def test_a_label_outside_the_vocabulary_is_nan_where_it_counts(label: int) -> None:
    hidden, table, bias, labels, weights = inputs()
    expected = float(loss(hidden, table, bias, labels, weights))
    labels[weights == 0] = label
    assert float(loss(hidden, table, bias, labels, weights)) == expected
    each, hit = token_losses(hidden, table, labels, bias=bias)
    np.testing.assert_array_equal(np.isnan(each), weights == 0)
    assert not np.asarray(hit)[weights == 0].any()
    labels[2, np.flatnonzero(weights[2])[0]] = label
    total, found = jax.value_and_grad(loss, (0, 1, 2))(hidden, table, bias, labels, weights)
    assert np.isnan(total) and all(np.isnan(x).any() for x in found)


# ---------------------------------------------------------------- memory


def arrays_in(jaxpr: Any) -> list[Any]:
    """The shape and dtype of every value in a jaxpr and those inside it."""
    found = [v.aval for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "shape")]
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            found += arrays_in(inner) if hasattr(inner, "eqns") else []
    return found


def test_no_array_of_all_logits() -> None:
    rows, length, width, vocab = 4, 128, 16, 1000
    given = inputs(rows, length, width, vocab)
    whole = 4 * rows * length * vocab

    def plain(hidden: Any, table: Any, bias: Any, labels: Any, weights: Any) -> jax.Array:
        return jnp.sum(losses.cross_entropy(jnp.einsum("rlh,vh->rlv", hidden, table) + bias, labels) * weights)

    def evaluated(hidden: Any, table: Any, bias: Any, labels: Any, weights: Any) -> Any:
        return token_losses(hidden, table, labels, bias=bias, chunk=4)

    def temporaries(function: Any) -> int:
        return jax.jit(function).lower(*given).compile().memory_analysis().temp_size_in_bytes

    def largest(function: Any) -> int:
        return max(x.size for x in arrays_in(jax.make_jaxpr(function)(*given).jaxpr))

    chunked = jax.value_and_grad(lambda *a: loss(*a, chunk=4), (0, 1, 2))
    assert temporaries(jax.value_and_grad(plain, (0, 1, 2))) >= whole  # what the measure sees
    assert largest(jax.value_and_grad(plain, (0, 1, 2))) == rows * length * vocab
    for function in (chunked, evaluated):
        assert temporaries(function) < whole / 4
        assert largest(function) < rows * length * vocab / 4


def test_the_default_chunk_keeps_logits_within_the_bound() -> None:
    for rows, length, vocab in [(4, 2048, 32_000), (1, 8192, 128_256), (64, 512, 30_522), (2, 7, 50), (4096, 3, 10**6)]:
        size = losses.chunk_size(rows, length, vocab, None)
        assert 1 <= size <= length
        assert size == 1 or 4 * rows * size * vocab <= losses.CHUNK_BYTES


def test_only_the_gradients_asked_for_are_made() -> None:
    given = inputs()

    def shapes(by: Any) -> set[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(jax.grad(lambda *a: loss(*a, chunk=4), by))(*given).jaxpr
        return {x.shape for x in arrays_in(jaxpr)}

    table = (VOCAB, WIDTH)
    assert table in shapes((0, 1))
    assert table not in shapes((0,))  # a frozen table
    assert (ROWS, 16, WIDTH) in shapes((0,)) and (ROWS, 16, WIDTH) not in shapes((1,))


# ---------------------------------------------------------------- inside larger programs


@pytest.mark.parametrize("mesh_shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)], ids=str)
def test_eight_devices_equal_one(mesh_shape: tuple[int, int, int]) -> None:
    given = inputs()
    mesh = make_mesh(MeshConfig(*mesh_shape))
    rows = batch_sharding(mesh, ROWS)
    table, bias = (
        parameter_sharding(mesh, x.shape, a) for x, a in ((given[1], ("vocab", "embed")), (given[2], ("vocab",)))
    )
    where = (rows, table, bias, rows, rows)
    spread = [jax.device_put(x, s) for x, s in zip(given, where, strict=True)]
    excluded = excluding()
    both = [jax.jit(partial(loss, chunk=4))(*each, excluded=excluded) for each in (given, spread)]
    assert float(both[1]) == pytest.approx(float(both[0]), rel=1e-6)
    step = jax.jit(
        lambda *a: jax.value_and_grad(lambda *b: loss(*b, chunk=4, label_smoothing=0.1), (0, 1, 2))(*a),
        out_shardings=(None, where[:3]),
    )
    expected, gradients = oracle(*given, label_smoothing=0.1)
    total, found = step(*spread)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(found, gradients, strict=True):
        assert_equal(ours, theirs)
    hidden, table, bias, labels, weights = spread
    alone = token_losses(*given[:2], given[3], given[4], bias=given[2])
    for one, eight in zip(alone, jax.jit(token_losses)(hidden, table, labels, weights, bias=bias), strict=True):
        np.testing.assert_allclose(one, eight, atol=5e-6)
        assert eight.sharding.is_equivalent_to(rows, 2)

    # Gradients meet once, not in every chunk: in the loop there is nothing of the table's width.
    program = step.lower(*spread).compile().as_text()
    loop, main = program.split("\nENTRY ")
    collective = re.compile(
        r" = (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    )
    inside = [shape for line in loop.splitlines() for shape in collective.findall(line)]
    split = VOCAB // mesh_shape[2]
    assert not any(f"[{split},{WIDTH}]" in shape or f"[{VOCAB}," in shape for shape in inside), inside
    assert bool(inside) == (mesh_shape[2] > 1)
    assert bool(collective.search(main)) == (mesh_shape[2] < 8)


def test_rows_that_do_not_divide_over_the_devices() -> None:
    given = inputs(rows=3)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    everywhere = batch_sharding(mesh, 3)
    table = parameter_sharding(mesh, given[1].shape, ("vocab", "embed"))
    spread = [jax.device_put(x, table if x is given[1] else everywhere) for x in given]
    expected, gradients = oracle(*given)
    total, found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*spread)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(found, gradients, strict=True):
        assert_equal(ours, theirs)


def test_under_scan_and_checkpoint_on_a_mesh() -> None:
    """As in accumulation: gradients of micro-batches, rematerialized, summed in a scan."""
    hidden, table, bias, labels, weights = given = inputs(rows=16)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def total(table: Any, part: Any) -> jax.Array:
        hidden, labels, weights = part
        return jax.checkpoint(lambda t: loss(jnp.tanh(hidden), t, bias, labels, weights, chunk=4))(table)

    @jax.jit
    def run(table: Any, *batch: Any) -> Any:
        parts = [jnp.moveaxis(x.reshape(8, 2, *x.shape[1:]), 1, 0) for x in batch]

        def add(sums: Any, part: Any) -> Any:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(table, part)), None

        return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros_like(table)), parts)[0]

    expected, gradients = oracle(np.tanh(hidden), *given[1:])
    rows = batch_sharding(mesh, 16)
    spread = [jax.device_put(x, rows) for x in (hidden, labels, weights)]
    found, gradient = run(jax.device_put(table, parameter_sharding(mesh, table.shape, ("vocab", "embed"))), *spread)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert_equal(gradient, gradients[1])


# ---------------------------------------------------------------- errors


def test_bad_input_is_named() -> None:
    hidden, table, bias, labels, weights = inputs()
    for changed, message in [
        (dict(label_smoothing=1.0), "label_smoothing"),
        (dict(z_loss=-1.0), "z_loss"),
        (dict(soft_cap=0.0), "soft_cap"),
        (dict(chunk=0), "chunk"),
        (dict(bias=bias[1:]), r"bias \[39\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(hidden, table, labels, weights, **changed)
    with pytest.raises(ValueError, match=r"table \[16, 40\]"):
        linear_cross_entropy(hidden, table.T, labels, weights)
    with pytest.raises(ValueError, match=r"labels \[8, 12\]"):
        token_losses(hidden, table, labels[:, 1:])
    with pytest.raises(ValueError, match="labels.*float32"):
        token_losses(hidden, table, labels.astype(np.float32))


def test_weights_have_no_gradient() -> None:
    hidden, table, _, labels, weights = inputs()
    with pytest.raises(ValueError, match="weights"):
        jax.grad(lambda w: linear_cross_entropy(hidden, table, labels, w))(weights)
