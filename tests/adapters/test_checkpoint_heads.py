"""The size of a retrieval head's vectors, from the setting and the checkpoint's own projection."""

from pathlib import Path

import pytest

from instructrec_jax.adapters.checkpoint_heads import vector_size
from instructrec_jax.backbones.folder import Projection


def test_the_checkpoints_projection_decides_and_the_setting_may_only_agree() -> None:
    own = Projection(Path("model/2_Dense"), 32, 16)
    assert [vector_size(None, None), vector_size(8, None)] == [None, 8]
    assert [vector_size(None, own), vector_size(16, own)] == [16, 16]
    with pytest.raises(ValueError, match="task.projection.*2_Dense.*16"):
        vector_size(8, own)
