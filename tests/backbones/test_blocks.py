import pytest

from instructrec_jax.backbones.blocks import plan_blocks


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("aaaa", [[(0, 1, 4)]]),
        ("a", [[(0, 1, 1)]]),
        ("fllgllgl", [[(0, 1, 1)], [(1, 3, 2), (2, 3, 2), (3, 3, 2)], [(7, 1, 1)]]),
        ("abab", [[(0, 2, 2), (1, 2, 2)]]),
        ("abc", [[(0, 3, 1), (1, 3, 1), (2, 3, 1)]]),
    ],
)
def test_plan_finds_the_repeating_pattern(kinds, expected):
    groups = plan_blocks(tuple(kinds))
    assert [[(b.first, b.step, b.count) for b in group] for group in groups] == expected
    assert sorted(i for group in groups for b in group for i in b.layers) == list(range(len(kinds)))
