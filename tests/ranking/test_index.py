"""Exact retrieval against NumPy brute force.

Whole-number vectors make scores exact, so that item numbers must agree bit for bit, ties included.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.ranking import index as topk
from instructrec_jax.ranking.index import ItemIndex


def brute_force(scores, k, exclude=None):
    """(ids, scores) by one stable sort of everything; -1 and -inf where nothing is left."""
    scores = np.array(scores, np.float32)
    for case, items in enumerate(exclude if exclude is not None else []):
        scores[case, [item for item in items if item >= 0]] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, 1)
    return np.where(best == -np.inf, -1, ids), best


def whole_numbers(rng, *shape):
    return rng.integers(-2, 3, shape).astype(np.float32)


def check(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].dtype == np.int32 and found[1].dtype == np.float32
    assert not np.signbit(found[1][found[1] == 0]).any()


MESHES = {"1": (MeshConfig(), 1), "3": (MeshConfig(), 3), "2x2x2": (MeshConfig(2, 2, 2), 8)}


@pytest.fixture(params=MESHES)
def mesh(request):
    config, devices = MESHES[request.param]
    return make_mesh(config, jax.devices()[:devices])


@pytest.mark.parametrize(
    ("items", "k"),
    [(1, 1), (7, 7), (129, 1), (700, 700), (1000, 130), (3001, 10)],
)
def test_equals_brute_force(mesh, items, k, monkeypatch):
    monkeypatch.setattr(topk, "BLOCK", 128)  # several blocks on each device, the last one overlapping
    monkeypatch.setattr(topk, "QUERIES", 8)
    topk.search_items.clear_cache()  # it was traced with another BLOCK, which is no argument
    rng = np.random.default_rng(items + k)
    vectors, queries = whole_numbers(rng, items, 5), whole_numbers(rng, 13, 5)
    bias = whole_numbers(rng, items)
    exclude = np.where(rng.random((13, 9)) < 0.3, -1, rng.integers(0, items, (13, 9)))
    plain = queries @ vectors.T
    check(ItemIndex(vectors, mesh=mesh).search(queries, k), brute_force(plain, k))
    index = ItemIndex(vectors, bias=bias, mesh=mesh)
    check(index.search(queries, k, exclude=exclude), brute_force(plain + bias, k, exclude))
    ragged = [row[: number % 4] for number, row in enumerate(exclude)]
    check(index.search(queries, k, exclude=ragged), brute_force(plain + bias, k, ragged))
    topk.search_items.clear_cache()


def test_equal_vectors_come_in_the_order_of_their_numbers(mesh):
    rng = np.random.default_rng(0)
    vectors = np.tile(rng.normal(size=(1, 6)).astype(np.float32), (500, 1))
    ids, _ = ItemIndex(vectors, mesh=mesh).search(rng.normal(size=(3, 6)), 20, exclude=[[0, 3], [], [499]])
    assert ids.tolist() == [[n for n in range(22) if n not in (0, 3)], list(range(20)), list(range(20))]


def test_several_blocks_of_the_real_size():
    rng = np.random.default_rng(0)
    items = 2 * topk.BLOCK + 77
    vectors, queries = whole_numbers(rng, items, 4), whole_numbers(rng, 3, 4)
    # The best items lie where blocks meet, and at both ends.
    for place in (0, topk.BLOCK - 1, topk.BLOCK, 2 * topk.BLOCK, items - 1):
        vectors[place] = 3 * np.sign(queries[0])
    found = ItemIndex(vectors, mesh=make_mesh(MeshConfig(), jax.devices()[:1])).search(queries, 12)
    check(found, brute_force(queries @ vectors.T, 12))
    assert found[0][0, :5].tolist() == [0, topk.BLOCK - 1, topk.BLOCK, 2 * topk.BLOCK, items - 1]


def test_real_numbers(mesh):
    """The scores are those of float64, and the items too, but for gaps that rounding closes."""
    rng = np.random.default_rng(1)
    vectors, queries = rng.normal(size=(2000, 32)).astype(np.float32), rng.normal(size=(20, 32)).astype(np.float32)
    ids, scores = ItemIndex(vectors, mesh=mesh).search(queries, 50)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, 1), atol=1e-5)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert all(len(set(row)) == 50 for row in ids.tolist())
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :51]
    gaps = -np.diff(np.take_along_axis(exact, wanted, 1), axis=1)
    clear = (gaps > 1e-5) & np.pad(gaps[:, :-1] > 1e-5, [(0, 0), (1, 0)], constant_values=True)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ids[clear], wanted[:, :50][clear])


def test_bfloat16_items_score_in_float32():
    rng = np.random.default_rng(2)
    vectors = np.asarray(jnp.asarray(rng.normal(size=(300, 16)), jnp.bfloat16))
    queries = rng.normal(size=(4, 16)).astype(np.float32)
    index = ItemIndex(vectors)
    ids, scores = index.search(queries, 5)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
    assert index.dtype == jnp.bfloat16


def test_fewer_items_left_than_asked_for(mesh):
    vectors, queries = np.arange(1, 6, dtype=np.float32)[:, None], np.ones((2, 1), np.float32)
    bias = np.array([0, 0, -np.inf, 0, 0])
    ids, scores = ItemIndex(vectors, bias=bias, mesh=mesh).search(queries, 4, exclude=[[4, 1, 1], [-1]])
    assert ids.tolist() == [[3, 0, -1, -1], [4, 3, 1, 0]]
    assert scores.tolist() == [[4, 1, -np.inf, -np.inf], [5, 4, 2, 1]]


def test_scores_of_all_queries_and_items_never_exist():
    items, k = 40_000, 10
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = [(items, 4), (items,), (topk.QUERIES, 4), (topk.QUERIES, 8)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.int32 if n == 3 else jnp.float32) for n, s in enumerate(shapes)]
    memory = topk.search_items.lower(*arguments, mesh=mesh, k=k).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * items * topk.QUERIES


def test_memory_mapped_vectors(tmp_path):
    vectors = whole_numbers(np.random.default_rng(3), 100, 4)
    np.save(tmp_path / "v.npy", vectors)
    found = ItemIndex(np.load(tmp_path / "v.npy", mmap_mode="r")).search(vectors[:3], 5)
    check(found, brute_force(vectors[:3] @ vectors.T, 5))


def test_no_queries():
    ids, scores = ItemIndex(np.ones((4, 2))).search(np.empty((0, 2)), 3, exclude=[])
    assert ids.shape == scores.shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(k=0), r"k .*6.* 0"),
        (dict(k=7), r"k .*6.* 7"),
        (dict(queries=np.ones((2, 4))), r"\[q, 3\]"),
        (dict(queries=np.array([[1, 1, 1], [1, np.nan, 1]])), "query 1 .*finite"),
        (dict(queries=np.full((2, 3), 2e38)), "query 0 .*float32"),
        (dict(exclude=[[1]]), "exclude"),
        (dict(exclude=[[1], [6]]), r"query 1 .*6.*0\.\.5"),
        (dict(exclude=[[-2], []]), r"query 0 .*-2"),
    ],
)
def test_bad_searches(arguments, words):
    index = ItemIndex(np.ones((6, 3)))
    with pytest.raises(ValueError, match=words):
        index.search(**dict(queries=np.ones((2, 3)), k=2) | arguments)


def test_bad_items(monkeypatch):
    vectors = np.ones((300, 2), np.float32)
    monkeypatch.setattr(topk, "BLOCK", 128)
    for value in (np.nan, np.inf):
        broken = vectors.copy()
        broken[201, 1] = value
        with pytest.raises(ValueError, match="item 201"):
            ItemIndex(broken)
    with pytest.raises(ValueError, match=r"\(300,\)"):
        ItemIndex(vectors[:, 0])
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        ItemIndex(vectors[:0])
    with pytest.raises(ValueError, match=r"bias.*\[300\]"):
        ItemIndex(vectors, bias=np.zeros(299))
    with pytest.raises(ValueError, match="bias of item 2"):
        ItemIndex(vectors, bias=np.where(np.arange(300) == 2, np.nan, 0))


def test_fixed_shapes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In few shapes, which are compiled before."""
    for name, steps in {"QUERY_STEPS": (1, 4), "BEST_STEPS": (4, 8), "HIDDEN_STEPS": (2, 6)}.items():
        monkeypatch.setattr(topk, name, steps)
    rng = np.random.default_rng(0)
    vectors, queries = whole_numbers(rng, 20, 3), whole_numbers(rng, 7, 3)
    index = ItemIndex(vectors, mesh=make_mesh(MeshConfig(), jax.devices()[:1]), fixed_shapes=True)
    index.compile(6)
    compiled = topk.search_items._cache_size()
    for count, k, hidden in ((1, 1, 0), (1, 6, 3), (4, 4, 20), (7, 5, 7), (3, 6, 2)):
        exclude = [rng.permutation(20)[: rng.integers(0, hidden + 1)] for _ in range(count)]
        check(index.search(queries[:count], k, exclude=exclude), brute_force(queries[:count] @ vectors.T, k, exclude))
    assert topk.search_items._cache_size() == compiled
