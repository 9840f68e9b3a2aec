"""What settings of a method are refused; the methods' own tests have theirs."""

from dataclasses import dataclass

import pytest

from instructrec_jax.training.method_settings import check_ranges, is_chosen


@dataclass
class Config:
    method: str = "none"
    weight: float = 1.0
    steps: int = 2


OF = {"steps": ("climb",)}


def test_settings_have_an_effect_or_are_refused() -> None:
    assert not is_chosen(Config(), "group", OF)
    assert is_chosen(Config("climb", 2.0, 3), "group", OF) and is_chosen(Config("other", 2.0), "group", OF)
    with pytest.raises(ValueError, match="group.weight has no effect without group.method"):
        is_chosen(Config(weight=2.0), "group", OF)
    with pytest.raises(ValueError, match="group.steps has no effect with method: other"):
        is_chosen(Config("other", steps=3), "group", OF)


def test_a_setting_out_of_its_range_is_named() -> None:
    check_ranges(Config(), "group", {"weight": (True, "positive")})
    with pytest.raises(ValueError, match="group.weight is 1.0, but should be negative."):
        check_ranges(Config(), "group", {"steps": (True, "any"), "weight": (False, "negative")})
