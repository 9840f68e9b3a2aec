from collections.abc import Callable
from functools import cache

import pytest
import tiny_networks


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tiny_networks.Network]:
    """network(kind, seed=0, codes=False) -> the same random weights in transformers and here."""

    @cache
    def make(kind: str, seed: int = 0, codes: bool = False) -> tiny_networks.Network:
        return tiny_networks.make(kind, tmp_path_factory.mktemp(kind), seed, codes=codes)

    return make
