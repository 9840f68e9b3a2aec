"""llama.cpp's names are those of its package; layouts are inverses of each other."""

import numpy as np
import pytest

from instructrec_jax.backbones.llama_cpp.names import ARCHITECTURES, to_halves, to_neighbors

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_names_are_those_of_the_package(model_type: str) -> None:
    architecture = ARCHITECTURES[model_type]
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture.name], 2)
    for own, theirs in architecture.tensors.items():
        theirs = theirs.replace("{layer}", "1")
        assert names.get_name(theirs) == own.replace("{layer}", "1"), theirs
        for kind in ("weight", "bias"):
            assert architecture.from_hf(f"{theirs}.{kind}") == f"{own.replace('{layer}', '1')}.{kind}"
            assert architecture.to_hf(f"{own.replace('{layer}', '1')}.{kind}") == f"{theirs}.{kind}"
    assert architecture.to_hf("blk.0.ffn_gate_exps.weight") is None


def test_rotary_pairs_and_halves() -> None:
    # two heads of four rows: llama.cpp's rows are (first half 0, second half 0, first half 1, second half 1)
    rows = np.arange(8)[:, None]
    assert to_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert to_neighbors(to_halves(rows, 2), 2)[:, 0].tolist() == list(range(8))
