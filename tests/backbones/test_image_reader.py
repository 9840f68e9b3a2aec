"""Images between the words of a decoder: their vectors, their places, and what their tokens attend to."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructrec_jax.backbones.decoder import Decoder
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.image_reader import average
from instructrec_jax.backbones.layers import StackOptions
from instructrec_jax.backbones.reading import build_backbone, load_backbone
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.distributed.mesh import make_mesh, parameter_shardings
from instructrec_jax.distributed.mesh_config import MeshConfig

READERS = ("llava", "paligemma", "gemma3")
SUFFIX = "ForConditionalGeneration"


@pytest.fixture(scope="module")
def reader(make_checkpoint: Callable[..., Path]) -> Callable[[str], Decoder]:
    found: dict[str, Decoder] = {}

    def load(kind: str) -> Decoder:
        if kind not in found:
            module = load_backbone(make_checkpoint(kind, SUFFIX), rngs=nnx.Rngs(0)).module
            assert isinstance(module, Decoder)
            found[kind] = module
        return found[kind]

    return load


def texts(module: Decoder, counts: list[int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens [n], places [n] within its own images, pixels [images, ...]) of texts with a number of images each."""
    rng, vectors, size = np.random.default_rng(seed), module.image_vectors, module.image_size
    found = []
    for count in counts:
        places = np.full(4 + count * (vectors + 1), -1)
        for k in range(count):
            places[2 + k * (vectors + 1) :][:vectors] = k * vectors + np.arange(vectors)
        tokens = rng.integers(1, 50, len(places))
        found.append((tokens, places, rng.normal(size=(count, size, size, 3)).astype(np.float32)))
    return found


def run(module: Decoder, rows: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Hidden states of all tokens, [tokens, hidden], of rows that hold one or several texts."""
    length = max(sum(len(tokens) for tokens, _, _ in row) for row in rows) + 2
    shape = (len(rows), length)
    tokens, segments, positions, types = (np.zeros(shape, np.int32) for _ in range(4))
    places = np.full(shape, -1, np.int32)
    most, size = max(sum(len(pixels) for _, _, pixels in row) for row in rows), module.image_size
    images = np.zeros((len(rows), most, size, size, 3), np.float32)
    for r, row in enumerate(rows):
        at = seen = 0
        for number, (ids, where, pixels) in enumerate(row, 1):
            here = slice(at, at + len(ids))
            tokens[r, here], segments[r, here], positions[r, here] = ids, number, np.arange(len(ids))
            types[r, here] = module.prompt_type * (np.arange(len(ids)) < len(ids) - 2)
            places[r, here] = np.where(where < 0, -1, where + seen * module.image_vectors)
            images[r, seen : seen + len(pixels)] = pixels
            at, seen = at + len(ids), seen + len(pixels)
    hidden = nnx.jit(lambda module, *x, images: module(*x, images=images))(
        module, tokens, segments, positions, types, images=RowImages(jnp.asarray(images), jnp.asarray(places))
    )
    return np.concatenate([np.asarray(hidden[r])[segments[r] > 0] for r in range(len(rows))])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", READERS)
def test_packed_texts_with_images_are_those_alone(reader: Callable[[str], Decoder], kind: str) -> None:
    """Several images of several texts in a row, one with none, rows with fewer images than others."""
    module = reader(kind)
    a, b, c, d = texts(module, [1, 0, 2, 1])
    alone = run(module, [[a], [b], [c], [d]])
    np.testing.assert_allclose(run(module, [[a, b, c], [d]]), alone, atol=2e-5)
    changed = run(module, [[(a[0], a[1], a[2] + 1), b, c], [d]])
    assert np.abs(changed - alone)[: len(a[0])].max() > 1e-2
    np.testing.assert_allclose(changed[len(a[0]) :], alone[len(a[0]) :], atol=2e-5)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", READERS)
def test_without_images_it_is_the_decoder(
    reader: Callable[[str], Decoder], make_checkpoint: Callable[..., Path], kind: str
) -> None:
    module, ids = reader(kind), np.arange(1, 10)[None]
    ones, zeros, positions = np.ones_like(ids), np.zeros_like(ids), np.arange(9)[None]
    config = read_config(make_checkpoint(kind, SUFFIX)).text_config
    config.use_bidirectional_attention = None
    alone = build_backbone(config, rngs=nnx.Rngs(0))
    nnx.update(alone, nnx.filter_state(nnx.state(module), lambda path, _: path[0] != "reader"))
    expected = alone(ids, ones, positions, zeros)
    np.testing.assert_array_equal(module(ids, ones, positions, zeros), expected)
    none = RowImages(jnp.zeros((1, 0, module.image_size, module.image_size, 3)), jnp.full((1, 9), -1))
    np.testing.assert_array_equal(module(ids, ones, positions, zeros, images=none), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llava", None), ("gemma3", [0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0]), ("paligemma", [1] * 11 + [0, 0])],
)
def test_which_tokens_attend_to_each_other(
    reader: Callable[[str], Decoder], kind: str, expected: list[int] | None
) -> None:
    """LLaVA: none. Gemma 3: those of an image. PaliGemma: those of the prompt."""
    module = reader(kind)
    assert module.reader is not None
    count = module.image_vectors if kind == "gemma3" else 4
    places = jnp.asarray([[-1, -1, *range(count), -1, *range(count, 2 * count), -1, -1]])
    types = jnp.asarray([[module.prompt_type] * 11 + [0, 0]])
    groups = module.reader.groups(types, RowImages(jnp.zeros((1, 2, 21, 21, 3)), places))
    assert (None if groups is None else groups[0].tolist()) == expected


def test_averages_of_neighbors() -> None:
    x = np.random.default_rng(0).normal(size=(2, 36, 5))
    found = np.asarray(average(jnp.asarray(x), 2)).reshape(2, 2, 2, 5)
    grid = x.reshape(2, 6, 6, 5)
    np.testing.assert_allclose(found[:, 1, 0], grid[:, 3:, :3].mean((1, 2)), atol=1e-6)


def test_an_image_of_another_size_is_named(reader: Callable[[str], Decoder]) -> None:
    module = reader("llava")
    ids = np.ones((1, 3), np.int32)
    images = RowImages(jnp.zeros((1, 1, 18, 17, 3)), jnp.full((1, 3), -1))
    with pytest.raises(ValueError, match="18 × 17 pixels.*17 × 17.*image_size"):
        module(ids, ids, ids * 0, ids * 0, images=images)


def test_a_place_beyond_the_images_gives_no_number(reader: Callable[[str], Decoder]) -> None:
    module = reader("llava")
    ids = np.ones((1, 3), np.int32)
    images = RowImages(jnp.zeros((1, 1, 17, 17, 3)), jnp.asarray([[-1, module.image_vectors, -1]]))
    assert np.isnan(module(ids, ids, np.arange(3)[None], ids * 0, images=images)[0, 1:]).all()


def test_a_network_without_a_reader_refuses_images(make_checkpoint: Callable[..., Path]) -> None:
    module = load_backbone(make_checkpoint("llama"), rngs=nnx.Rngs(0)).module
    assert module.image_vectors == 0 and module.image_token_id is None
    ids = np.ones((1, 3), np.int32)
    with pytest.raises(ValueError, match="reads no images"):
        module(ids, ids, ids * 0, ids * 0, images=RowImages(jnp.zeros((1, 1, 17, 17, 3)), ids))


@pytest.mark.usefixtures("exact")
def test_rows_over_devices(reader: Callable[[str], Decoder]) -> None:
    """Rows with their images over four devices, and parameters over two: the same numbers."""
    module = reader("gemma3")
    rows = [[each] for each in texts(module, [1, 2, 0, 1])]
    expected = run(module, rows)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    graphdef, state = nnx.split(module)
    spread = jax.device_put(nnx.to_pure_dict(state), parameter_shardings(mesh, module))
    with mesh.tracing():
        found = run(nnx.merge(graphdef, nnx.State(spread)), rows)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", READERS)
def test_gradients_reach_what_the_vectors_come_from(make_checkpoint: Callable[..., Path], kind: str) -> None:
    """Also with gradient checkpointing, which changes nothing. LLaVA leaves out the last layer of its image network."""
    folder = make_checkpoint(kind, SUFFIX)

    def gradients(remat: str) -> dict[str, np.ndarray]:
        module = load_backbone(folder, stack=StackOptions(remat=remat), rngs=nnx.Rngs(0)).module
        assert isinstance(module, Decoder)
        ((tokens, places, pixels),) = texts(module, [2])
        images, ids = RowImages(jnp.asarray(pixels[None]), jnp.asarray(places[None])), tokens[None]
        positions = np.arange(len(tokens))[None]

        def loss(module: Decoder) -> jax.Array:
            hidden = module(ids, positions * 0 + 1, positions, positions * 0, images=images)
            return jnp.sum(hidden * jnp.sin(jnp.arange(hidden.size)).reshape(hidden.shape))

        flat = nnx.to_flat_state(nnx.jit(nnx.grad(loss))(module))
        return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}

    plain, again = gradients("none"), gradients("full")
    for path, gradient in plain.items():
        np.testing.assert_allclose(again[path], gradient, atol=1e-4, rtol=1e-4, err_msg=path)
    assert all(np.abs(plain[path]).max() > 0 for path in plain if path.startswith("reader.projector"))
    layers = np.abs(plain["reader.vision.layers.block0.mlp.inner.kernel"]).max((1, 2)) > 0
    assert layers.tolist() == ([True, True, False] if kind == "llava" else [True, True])
