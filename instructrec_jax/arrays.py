"""The type of arrays that are NumPy's on the host and jax's on the devices, such as those of a batch."""

from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
