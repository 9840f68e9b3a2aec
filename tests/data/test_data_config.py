"""Settings of the data: what a batch is if one of its sizes is set."""

import pytest

from instructrec_jax.data.data_config import DEFAULT_BATCH_SIZE, DataConfig
from instructrec_jax.runs.config import Config, parse


@pytest.mark.parametrize(
    ("settings", "examples"),
    [({}, DEFAULT_BATCH_SIZE), ({"batch_size": 7}, 7), ({"batch_rows": 4}, None)],
)
def test_examples_per_step(settings: dict[str, int], examples: int | None) -> None:
    assert DataConfig(**settings).examples_per_step == examples  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("truncate", "cut"), ("on_bad_example", "ignore"), ("batch_size", "many"), ("max_length", "1.5")],
)
def test_a_value_that_is_none_names_its_setting(setting: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"data.{setting}"):
        parse(Config, ["--task.type", "classification", f"--data.{setting}", value])


def test_two_configs_share_no_list() -> None:
    one, two = DataConfig(), DataConfig()
    one.train.append(None)  # type: ignore[arg-type]
    one.hold_out.templates.append("t")
    assert two.train == [] and two.hold_out.templates == []
