"""Images of packed rows are one pytree, which programs take and devices split by rows."""

import jax
import numpy as np

from instructrec_jax.backbones.row_images import RowImages


def test_rows_are_the_first_axis_of_every_array() -> None:
    images = RowImages(np.zeros((4, 2, 5, 5, 3), np.float32), np.full((4, 9), -1, np.int32))
    halves = jax.jit(lambda images: jax.tree.map(lambda x: x[:2], images))(images)
    assert isinstance(halves, RowImages)
    assert halves.pixels.shape == (2, 2, 5, 5, 3) and halves.places.shape == (2, 9)
