"""Settings of the backbone: the values of each choice are those that the code knows."""

from typing import get_args

import pytest

from instructrec_jax.backbones.backbone_config import BackboneConfig, DType, Quantize, Remat
from instructrec_jax.runs.config import Config, parse

CHOICES = {"dtype": DType, "quantize": Quantize, "remat": Remat}


def parsed(setting: str, value: str) -> BackboneConfig:
    return parse(Config, ["--task.type", "classification", f"--backbone.{setting}", value]).backbone


@pytest.mark.parametrize("setting", sorted(CHOICES))
def test_each_choice_is_read_and_another_one_names_its_setting(setting: str) -> None:
    values = get_args(CHOICES[setting])
    assert getattr(BackboneConfig(), setting) == values[0]  # the first is the default
    assert getattr(parsed(setting, values[-1]), setting) == values[-1]
    with pytest.raises(ValueError, match=f"backbone.{setting}"):
        parsed(setting, "int3")


def test_two_configs_share_no_list() -> None:
    one, two = BackboneConfig(), BackboneConfig()
    one.freeze.append("x")
    assert two.freeze == []
