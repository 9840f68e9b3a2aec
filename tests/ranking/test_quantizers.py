"""Quantizers: finite scalar quantization by hand, projections in a file, and what all of them promise."""

import numpy as np
import pytest
from scipy.stats import norm

from instructrec_jax.ranking.quantizers import Projection, factors, fit_fsq, fit_kmeans
from instructrec_jax.ranking.semantic_ids import QuantizerName, SemanticIds, fit

RNG = np.random.default_rng(1)
MIDDLES = 4 * RNG.normal(size=(6, 10))
VECTORS = np.concatenate([middle + RNG.normal(size=(20, 10)) for middle in MIDDLES])
ITEMS = [f"item {number}" for number in range(len(VECTORS))]
NAMES: tuple[QuantizerName, ...] = ("kmeans", "fsq", "rqvae")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> QuantizerName:
    return request.param


@pytest.fixture(scope="module")
def ids(name: QuantizerName) -> SemanticIds:
    return fit(ITEMS, VECTORS, levels=2, codes=8, seed=0, quantizer=name)


def test_the_same_seed_gives_the_same_bytes_and_they_come_back(
    ids: SemanticIds, name: QuantizerName, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    ids.save(one)
    fit(ITEMS, VECTORS, levels=2, codes=8, seed=0, quantizer=name).save(two)
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}
    back = SemanticIds.load(one)
    assert (back.codes == ids.codes).all() and back.sizes == ids.sizes and (len(back.sizes) == 3)
    assert (back.quantizer.codes(VECTORS)[0] == ids.codes[:, :-1]).all()


def test_new_items_get_the_first_codes_of_an_equal_one(ids: SemanticIds) -> None:
    """By what was kept alone: a nearby vector has the codes that the quantizer gives it, and each has its own."""
    near = VECTORS[::7] + 1e-9
    new = ids.with_new([f"new {n}" for n in range(len(near))], near)
    assert (new.codes[len(ITEMS) :, 0] == ids.codes[::7, 0]).all()
    assert len(np.unique(new.codes, axis=0)) == len(new.codes) and (new.codes[: len(ITEMS)] == ids.codes).all()
    with pytest.raises(ValueError, match="not finite"):
        ids.with_new(["broken"], np.full((1, 10), np.nan))


def test_similar_items_share_codes_more_often(ids: SemanticIds) -> None:
    first = ids.codes[:, 0].reshape(6, 20)
    within = np.mean([(row[:, None] == row).mean() for row in first])
    across = (ids.codes[:, :1] == ids.codes[:, 0]).mean()
    assert within > 1.5 * across


def test_fsq_is_a_grid_over_principal_components() -> None:
    """Against the covariance's eigenvectors: value k of a number holds the normal's quantiles from k/n to (k+1)/n."""
    fitted = fit_fsq(VECTORS, levels=2, codes=6, seed=0)  # one number of 6 values a level
    codes, _ = fitted.codes(VECTORS)
    values, axes = np.linalg.eigh(np.cov(VECTORS.T, bias=True))
    for level in range(2):
        axis = axes[:, -1 - level] * np.sign(axes[np.abs(axes[:, -1 - level]).argmax(), -1 - level])
        number = (VECTORS - VECTORS.mean(0)) @ axis / np.sqrt(values[-1 - level])
        np.testing.assert_array_equal(codes[:, level], np.floor(norm.cdf(number) * 6))


def test_fsq_takes_several_numbers_for_many_codes() -> None:
    fitted = fit_fsq(VECTORS, levels=2, codes=16, seed=0)
    assert [book.shape for book in fitted.codebooks] == [(16, 4)] * 2
    z = fitted.projection(VECTORS)
    expected = [8 * 0, 8 * 0]  # levels of two numbers: 8 values, then 2
    for level in range(2):
        high, low = np.floor(z[:, 2 * level] * 8), np.floor(z[:, 2 * level + 1] * 2)
        np.testing.assert_array_equal(fitted.codes(VECTORS)[0][:, level] - (2 * high + low), expected[level])


@pytest.mark.parametrize(("codes", "expected"), [(64, [8, 8]), (256, [8, 8, 4]), (22, [2, 11]), (13, [13]), (2, [2])])
def test_factors(codes: int, expected: list[int]) -> None:
    assert factors(codes) == expected and np.prod(expected) == codes


def test_fsq_needs_as_many_components_as_it_rounds() -> None:
    flat = VECTORS @ np.eye(10)[:, :3] @ np.eye(10)[:3]
    with pytest.raises(ValueError, match="2 levels of 64 codes need 4 principal components, but the vectors have 3"):
        fit_fsq(flat, levels=2, codes=64, seed=0)


def test_a_projection_is_layers_with_relu_between_them() -> None:
    layers = [(RNG.normal(size=(10, 4)), RNG.normal(size=4)), (RNG.normal(size=(4, 3)), RNG.normal(size=3))]
    projection = Projection([(kernel.astype(np.float32), bias.astype(np.float32)) for kernel, bias in layers])
    expected = np.maximum(VECTORS @ layers[0][0] + layers[0][1], 0) @ layers[1][0] + layers[1][1]
    np.testing.assert_allclose(projection(VECTORS), expected, atol=1e-5)
    back = Projection.of(projection.arrays())
    assert (back(VECTORS) == projection(VECTORS)).all() and not back.bounded
    assert fit_kmeans(VECTORS, levels=1, codes=3, seed=0).projection.arrays() == {}
