"""AdamW and its schedules, against the formulas written out in float64."""

import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructrec_jax.training.optimizer import (
    check_optimizer,
    learning_rate_schedule,
    make_optimizer,
    path_name,
    to_bfloat16,
)
from instructrec_jax.training.training_config import OptimizerConfig

NUMBERS = (
    *("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm"),
    *("warmup", "final_ratio", "decay"),
)


def expected_rate(config: OptimizerConfig, steps: int, update: int) -> float:
    """The learning rate of an update, by hand."""
    assert config.learning_rate is not None
    warmup = round(config.warmup * steps)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    share = min(1.0, (update - warmup) / max(1, steps - warmup))
    high, low = config.learning_rate, config.learning_rate * config.final_ratio
    if config.schedule == "constant":
        return high
    if config.schedule == "linear":
        return high + (low - high) * share
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def test_wsd_is_constant_and_then_falls_and_can_be_prolonged() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="wsd", warmup=0.0, decay=0.25, final_ratio=0.5)
    short, long = learning_rate_schedule(config, 40), learning_rate_schedule(config, 80)
    expected = [2.0] * 30 + [2.0 - 0.1 * step for step in range(10)] + [1.0]
    np.testing.assert_allclose([short(step) for step in range(41)], expected, rtol=1e-6)
    assert [float(long(step)) for step in range(30)] == [float(short(step)) for step in range(30)]
    np.testing.assert_allclose([long(step) for step in (59, 60, 70, 80)], [2.0, 2.0, 1.5, 1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="optimizer.decay"):
        check_optimizer(OptimizerConfig(learning_rate=1.0, decay=0.5))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "final_ratio", "steps"), [(0.1, 0.0, 40), (0.0, 0.1, 17), (0.025, 0.5, 40)])
def test_schedules(schedule: Any, warmup: float, final_ratio: float, steps: int) -> None:
    final_ratio = 0.0 if schedule == "constant" else final_ratio
    config = OptimizerConfig(learning_rate=3e-3, schedule=schedule, warmup=warmup, final_ratio=final_ratio)
    rate = learning_rate_schedule(config, steps)
    rates = [float(rate(update)) for update in range(steps + 5)]
    np.testing.assert_allclose(rates, [expected_rate(config, steps, n) for n in range(steps + 5)], rtol=2e-5, atol=1e-9)
    assert rates[0] > 0 and max(rates) == pytest.approx(3e-3)
    end = 3e-3 if schedule == "constant" else 3e-3 * final_ratio
    assert rates[steps] == pytest.approx(end, abs=1e-9) and rates[steps + 4] == pytest.approx(end, abs=1e-9)


def test_the_ramp_climbs_evenly_to_the_peak() -> None:
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup=0.4, schedule="linear"), 10)
    np.testing.assert_allclose([rate(n) for n in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6], rtol=1e-6)


def parameters() -> dict[str, Any]:
    """Named as the networks name theirs; stacked layers have a leading dimension, also on biases and norms."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "backbone": {
            "word_embeddings": {"table": array(6, 4)},
            "layers": {
                "block0": {
                    "query": {"kernel": array(2, 4, 4), "bias": array(2, 4)},
                    "mlp_norm": {"scale": array(2, 4), "bias": array(2, 4)},
                }
            },
            "final_norm": {"scale": array(4)},
        },
        "head": {"output": {"kernel": array(4, 3), "bias": array(3)}, "log_temperature": array()},
    }


DECAYING = {"backbone/word_embeddings/table", "backbone/layers/block0/query/kernel", "head/output/kernel"}


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def adamw(config: OptimizerConfig, steps: int, gradients: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Loshchilov & Hutter (2019), algorithm 2, with clipping by global norm, in float64."""
    assert config.learning_rate is not None
    params = {name: p.astype(np.float64) for name, p in flat(parameters()).items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for number, gradient in enumerate(gradients):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradient.values()))
        factor = 1.0 if config.clip_norm is None or norm < config.clip_norm else config.clip_norm / norm
        for name in params:
            g = gradient[name].astype(np.float64) * factor
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            mean = first[name] / (1 - config.beta1 ** (number + 1))
            square = second[name] / (1 - config.beta2 ** (number + 1))
            rate = expected_rate(config, steps, number)
            if name.startswith("head/") and config.head_learning_rate is not None:
                rate *= config.head_learning_rate / config.learning_rate
            decay = config.weight_decay if name in DECAYING else 0.0
            params[name] -= rate * (mean / (np.sqrt(square) + config.epsilon) + decay * params[name])
    return params


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(learning_rate=0.05, weight_decay=0.3, warmup=0.4),
        OptimizerConfig(learning_rate=0.05, head_learning_rate=0.2, weight_decay=0.3, clip_norm=None, beta2=0.95),
        OptimizerConfig(learning_rate=0.05, head_learning_rate=0.0, schedule="linear", final_ratio=0.5),
    ],
)
def test_five_updates_equal_adamw_by_hand(config: OptimizerConfig) -> None:
    params, rng = parameters(), np.random.default_rng(1)
    optimizer = make_optimizer(config, 5)
    state, gradients = optimizer.init(params), []
    for number in range(5):
        # Norms below and above the clipping norm.
        size = 0.01 if number % 2 else 2.0
        gradient = jax.tree.map(lambda p, s=size: (s * rng.normal(size=p.shape)).astype(np.float32), params)
        gradients.append(flat(gradient))
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    for name, value in adamw(config, 5, gradients).items():
        np.testing.assert_allclose(flat(params)[name], value, rtol=0, atol=2e-6, err_msg=name)
    if config.head_learning_rate == 0.0:
        np.testing.assert_array_equal(params["head"]["output"]["kernel"], parameters()["head"]["output"]["kernel"])


def test_decay_goes_by_path() -> None:
    """With zero gradients only the decay moves parameters: a stacked bias is 2-D and stays all the same."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup=0.0, schedule="constant")
    params = parameters()
    optimizer = make_optimizer(config, 3)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    before = flat(params)
    for name, update in flat(updates).items():
        expected = -0.1 * 0.5 * before[name] if name in DECAYING else np.zeros_like(before[name])
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)


def test_decay_exclude_is_a_setting() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup=0.0, decay_exclude=["^head/", "table$"])
    params = parameters()
    optimizer = make_optimizer(config, 3)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    moved = {name for name, update in flat(updates).items() if np.any(update)}
    assert moved == {name for name in flat(params) if not name.startswith("head/") and not name.endswith("table")}


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.0), ("learning_rate", -1e-3), ("warmup", 100), ("warmup", -0.1), ("final_ratio", 2.0)]
    + [("clip_norm", 0.0), ("beta1", 1.0), ("beta2", 1.0), ("beta1", -0.1), ("epsilon", 0.0), ("layer_decay", 0.0)]
    + [("layer_decay", 1.5), ("weight_decay", -0.1), ("head_learning_rate", -1.0), ("max_nonfinite", 0)]
    + [(name, value) for name in NUMBERS for value in (math.nan, math.inf, -math.inf)],
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{name} .*{value}"):
        make_optimizer(OptimizerConfig(**{"learning_rate": 1e-3, name: value}), 10)  # type: ignore[arg-type]


def test_all_numbers_are_checked() -> None:
    """A number that is added to the settings gets a range too."""
    kinds = typing.get_type_hints(OptimizerConfig)
    numbers = {name for name, kind in kinds.items() if kind is float or float in typing.get_args(kind)}
    assert numbers == set(NUMBERS)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("final_ratio", dict(schedule="constant", final_ratio=0.1)),
        ("decay_exclude", dict(weight_decay=0.0, decay_exclude=["^head/"])),
        ("decay_exclude", dict(decay_exclude=["bias", "tabel$"])),
        ("decay_exclude", dict(decay_exclude=["("])),
        ("learning_rate", dict(learning_rate=None)),
    ],
)
def test_a_setting_without_an_effect_is_named(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{name}"):
        make_optimizer(OptimizerConfig(**{"learning_rate": 1e-3, **settings}), 10).init(parameters())


# ---------------------------------------------------------------- moments in bfloat16


def test_stochastic_rounding_is_right_on_average() -> None:
    x = np.float32([1.0, 1.001, -3.3333, 1e-30, 6.1e4, 0.0])
    draws = np.stack([np.asarray(to_bfloat16(jnp.asarray(x), jax.random.key(n)), np.float64) for n in range(4000)])
    step = np.float64(np.spacing(np.abs(x))) * 2**16  # between neighbours in bfloat16
    assert (np.abs(draws - x) < step).all()
    assert (np.abs(draws.mean(0) - x) <= 4 * step / 2 / 4000**0.5).all()
    assert (draws[:, 0] == 1).all() and (draws[:, 5] == 0).all()
    assert np.isnan(float(to_bfloat16(jnp.float32(np.nan), jax.random.key(0))))
    assert float(to_bfloat16(jnp.float32(np.inf), jax.random.key(0))) == np.inf


def test_a_running_square_falls_also_in_bfloat16() -> None:
    """After one large gradient; to the nearest, 0.999 of it would be the same number again."""
    params = {"backbone": {"kernel": np.zeros((64, 64), np.float32)}}
    config = OptimizerConfig(1e-3, schedule="constant", warmup=0.0, clip_norm=None, moments="bfloat16")
    optimizer = make_optimizer(config, 10)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for number in range(300):
        gradient = np.full((64, 64), 30.0 if number == 0 else 0.0, np.float32)
        _, state = update({"backbone": {"kernel": gradient}}, state, params)
    adam = next(s for s in state if hasattr(s, "nu"))
    mu, nu = adam.mu["backbone"]["kernel"], adam.nu["backbone"]["kernel"]
    assert mu.dtype == nu.dtype == jnp.bfloat16
    assert float(nu.astype(jnp.float32).mean()) == pytest.approx(0.9 * 0.999**299, rel=2e-3)


def test_zeros_stay_zero() -> None:
    """Of kernels of the backbone; with decay, clipping and moments as if the zeros were no parameters."""
    config = OptimizerConfig(learning_rate=0.1, keep_zeros=True, warmup=0.0)
    kernel = jnp.array([[0.0, 2.0], [-1.0, 0.0]])
    params = {"backbone": {"layer": {"kernel": kernel, "bias": jnp.zeros(2)}}}
    gradients = jax.tree.map(lambda x: jnp.ones_like(x) * 5, params)
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    layer = params["backbone"]["layer"]
    np.testing.assert_array_equal(layer["kernel"] == 0, kernel == 0)
    assert (layer["kernel"] != kernel)[kernel != 0].all() and (layer["bias"] != 0).all()
    with pytest.raises(ValueError, match="no linear layer of the backbone is trained"):
        head = {"head": {"kernel": kernel}}
        optimizer.update(head, optimizer.init(head), head)
