"""A random projection of gradients that keeps their inner products on average: a count-sketch, computed block by block.

Each parameter's gradient is cut into blocks of as many numbers as the projection has. A block is multiplied by random
signs, rotated by a random number of places, and added to the sum: S x = Σ_b rotate_b(sign_b · x_b). The signs are
independent, so E⟨S x, S y⟩ = ⟨x, y⟩ over seeds. The variance is at most (|x|² |y|² + ⟨x, y⟩²) / dimension (Charikar et
al., 2002; Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning", lemma 2).

Why not the dense random matrix of TRAK (Park et al., 2023): it costs `dimension` operations per parameter, this one
costs one. Of the matrix only the signs of one block exist at a time.
"""

import math

import jax
import jax.numpy as jnp

from instructrec_jax.training.state import Tree

WORD = 32  # signs of one random number


def check_dimension(dimension: int) -> None:
    """Raises ValueError for a dimension that is no multiple of 32; 0 stands for no projection."""
    if dimension < 0 or dimension % WORD:
        raise ValueError(f"--projection is {dimension}, but should be a multiple of {WORD}, or 0 for whole gradients.")


def projected(gradient: Tree, dimension: int, seed: int) -> jax.Array:
    """The projection of a gradient, float32 [dimension]; of dimension 0 all of its numbers, end to end.

    Args:
      gradient: nested dicts of arrays; its parameters are numbered in the order of their names.
    """
    leaves = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(gradient)]
    if not dimension:
        return jnp.concatenate(leaves)
    key, total = jax.random.key(seed), jnp.zeros(dimension, jnp.float32)
    for number, leaf in enumerate(leaves):
        blocks = math.ceil(leaf.size / dimension)
        rows = jnp.pad(leaf, (0, blocks * dimension - leaf.size)).reshape(blocks, dimension)
        own = jax.random.fold_in(key, number)

        def add(block: jax.Array, sums: jax.Array, own: jax.Array = own, rows: jax.Array = rows) -> jax.Array:
            signs, places = jax.random.split(jax.random.fold_in(own, block))
            bits = jax.random.bits(signs, (dimension // WORD, 1), jnp.uint32) >> jnp.arange(WORD, dtype=jnp.uint32)
            signed = jnp.where(bits.reshape(-1) & 1, rows[block], -rows[block])
            return sums + jnp.roll(signed, jax.random.randint(places, (), 0, dimension))

        total = jax.lax.fori_loop(0, blocks, add, total)
    return total
