"""The numbers of a plan, what is advised where it does not fit, and its text."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from instructrec_jax.distributed.chips import CHIPS
from instructrec_jax.planning.hlo import Traffic
from instructrec_jax.planning.plan_report import Plan, one_line, show, what_to_change
from instructrec_jax.runs.config import Config, parse
from instructrec_jax.tasks import LanguageModelConfig

CONFIG = Config(task=LanguageModelConfig())
PLAN = Plan(
    topology="v5e:2x4",
    chips=8,
    chip=CHIPS["v5e"],
    mesh={"data": 1, "fsdp": 8, "context": 1, "tensor": 1},
    tokens=2048,
    compile_seconds=3.0,
    parameters=10**9,
    teachers=0,
    optimizer=2 * 10**9,
    buffers=0,
    temporaries=4 * 10**9,
    peak=8 * 10**9,
    model_flops=50e12,
    hardware_flops=60e12,
    traffic=10**11,
    collectives=Traffic(Counter({"all-gather": 3}), Counter({"all-gather": 10**9}), Counter({"all-gather": 5 * 10**8})),
    between_slices=0,
    seconds={"compute": 0.25, "HBM": 0.5, "links": 0.1},
    compiler_seconds=None,
    advice=[],
)
BIG = replace(PLAN, peak=40 * 2**30)


def test_a_plan_fits_where_its_peak_does() -> None:
    hbm = CHIPS["v5e"].hbm
    assert replace(PLAN, peak=int(hbm)).fits and not replace(PLAN, peak=int(hbm) + 1).fits
    assert replace(BIG, chip=None).fits  # of a chip that is not known


def test_the_step_takes_as_long_as_its_slowest_part() -> None:
    assert PLAN.step_seconds == 0.5 and PLAN.mfu == pytest.approx(50e12 / 0.5 / 197e12)
    unknown = replace(PLAN, chip=None, seconds={})
    assert str(unknown.step_seconds) == str(unknown.mfu) == "nan"
    assert PLAN.rank == (0.85, 8 * 10**9) and PLAN.rank < BIG.rank < replace(PLAN, seconds={"compute": 1.0}).rank


def advised(plan: Plan, config: Config = CONFIG) -> list[str]:
    return [line.partition(" (")[0] for line in what_to_change(plan, config)]


def config_of(*args: str) -> Config:
    return parse(Config, ["--task.type", "language_model", *args], default=None)


@pytest.mark.parametrize(
    ("plan", "args", "advice"),
    [
        ({}, [], ["--backbone.remat attention", "--accumulation 2"]),
        ({}, ["--backbone.remat", "dots", "--accumulation", "4"], ["--backbone.remat full", "--accumulation 8"]),
        ({"temporaries": 10**9}, [], ["--accumulation 2"]),
        ({}, ["--backbone.remat", "full"], ["--accumulation 2"]),
    ],
)
def test_advice_on_activations(plan: dict[str, Any], args: list[str], advice: list[str]) -> None:
    found = advised(replace(PLAN, **plan), config_of(*args))
    assert [line for line in found if line.startswith(("--backbone", "--acc"))] == advice


def test_advice_on_the_state_that_is_kept() -> None:
    spread = {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
    state = replace(PLAN, mesh=spread, parameters=3 * 10**9, optimizer=3 * 10**9, temporaries=10**9)
    found = advised(state)
    assert found[0] == "--mesh.data 1 --mesh.fsdp 8" and "--lora.rank 16" in found
    assert "--optimizer.moments bfloat16" in found and not any("topology" in line for line in found)
    small = config_of("--lora.rank", "8", "--optimizer.moments", "bfloat16")
    assert not {"--lora.rank 16", "--optimizer.moments bfloat16"} & set(advised(state, small))
    assert any("topology" in line for line in advised(PLAN))  # all chips are used up


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, mesh=PLAN.mesh | {"data": 2, "fsdp": 4}, temporaries=0)])
def test_advice_is_options_that_settings_know(plan: Plan) -> None:
    lines = [line.partition(" (")[0] for line in what_to_change(plan, CONFIG)]
    options = [line for line in lines if line.startswith("--")]
    assert options
    for each in options:
        config_of(*each.split())


def test_the_text_of_a_plan() -> None:
    said = show(replace(PLAN, buffers=7 * 10**8, compiler_seconds=0.75, advice=["--accumulation 2"]))
    for words in ("v5e:2x4: 8 chips", "fsdp 8", "2,048 tokens", "buffers", "8.00 of 17.2", "all-gather", "0.750 s"):
        assert words in said
    assert "--accumulation 2" in said and "DOES NOT FIT" not in said and "DOES NOT FIT" in show(BIG)
    plain = show(replace(PLAN, chip=None, seconds={}))
    assert "roofline" not in plain and "buffers" not in plain and "compiler" not in plain


def test_a_plan_on_one_line() -> None:
    assert one_line(PLAN).split()[:2] == ["8.0", "GB"] and one_line(PLAN).endswith("fsdp 8")
    alone = replace(PLAN, chips=1, mesh=dict.fromkeys(PLAN.mesh, 1))
    assert one_line(alone).endswith("one chip")
