"""AdamW with decoupled weight decay on the backbone (θ) and the head (ω)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["cosine", "linear", "constant"]
Moments = Literal["float32", "bfloat16"]


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 1e-3  # peak learning rate
    head_learning_rate: float | None = None  # peak learning rate of the head; null: the same
    layer_decay: float = 1.0  # learning rate of a layer as a share of that of the one above; 1: all alike
    weight_decay: float = 0.01  # decoupled: each step subtracts learning_rate * weight_decay * parameter
    decay_exclude: list[str] = field(  # parameters whose path matches one of these (regular expressions) don't decay
        default_factory=lambda: ["bias$", "scale$", "norm", "temperature$"]
    )
    beta1: float = 0.9  # decay of the gradient's running mean
    beta2: float = 0.999  # decay of the gradient's running square
    epsilon: float = 1e-8  # added to the root of the running square
    moments: Moments = "float32"  # how the running means are kept; bfloat16 takes half the memory
    clip_norm: float | None = 1.0  # gradients are scaled down to this global norm; null: never
    schedule: Schedule = "cosine"  # what follows the warm-up
    warmup: float = 0.1  # share of the steps over which the learning rate rises from 0
    final_ratio: float = 0.0  # what the learning rate falls towards, as a share of the peak
    max_nonfinite: int = 5  # training stops after this many updates in a row with NaN or infinity


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path as text: 'backbone/layers/attention/query/kernel'."""
    return "/".join(str(getattr(part, "key", part)) for part in path)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the backbone as a function of the number of updates made."""
    peak, final = config.learning_rate, config.learning_rate * config.final_ratio
    warmup = round(config.warmup * steps)
    rest = max(1, steps - warmup)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_ratio),
        "linear": optax.linear_schedule(peak, final, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return after
    # The first update should move: the ramp starts at peak / warmup.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def with_bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with both moments kept as bfloat16, by stochastic rounding (Zamirai et al., 2020).

    To the nearest, bfloat16 would swallow what one step adds to a running square: with beta2 0.999 less than 1/256.
    """

    def widened(state: Any) -> Any:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
        return state._replace(mu=wide[0], nu=wide[1])

    def narrowed(state: Any) -> Any:
        leaves, form = jax.tree.flatten((state.mu, state.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
        mu, nu = jax.tree.unflatten(form, [to_bfloat16(x, key) for x, key in zip(leaves, keys, strict=True)])
        return state._replace(mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, wide = adam.update(updates, widened(state), params)
        return updates, narrowed(wide)

    return optax.GradientTransformation(lambda params: narrowed(adam.init(params)), update)


def to_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, up or down at random, so that the expected value is x itself."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    cut = jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), cut, x.astype(jnp.bfloat16))


def make_optimizer(
    config: OptimizerConfig, steps: int, factors: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019): p ← p − η (m̂ / (√v̂ + ε) + λ p), for θ and ω alike.

    η follows the schedule, times `head_learning_rate / learning_rate` for parameters below 'head', times the factor of
    the parameter's path in `factors` (a number, or an array [layers] for a stacked parameter).
    """
    if config.learning_rate <= 0:
        raise ValueError(f"optimizer.learning_rate must be above 0, but is {config.learning_rate}.")
    for name in ("warmup", "final_ratio"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"optimizer.{name} is a share, from 0 to 1, but is {getattr(config, name)}.")
    if config.clip_norm is not None and config.clip_norm <= 0:
        raise ValueError(f"optimizer.clip_norm must be above 0 (null: no clipping), but is {config.clip_norm}.")
    if not 0 < config.layer_decay <= 1:
        raise ValueError(f"optimizer.layer_decay must lie above 0 and at most at 1, but is {config.layer_decay}.")
    head_factor = 1.0 if config.head_learning_rate is None else config.head_learning_rate / config.learning_rate
    try:
        excluded = [re.compile(pattern) for pattern in config.decay_exclude]
    except re.error as error:
        raise ValueError(f"optimizer.decay_exclude: {error.pattern!r} is no regular expression ({error}).") from error

    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(pattern.search(path_name(path)) for pattern in excluded), params
        )

    def scale(updates: Any, params: Any) -> Any:
        def scaled(path: Any, update: jax.Array) -> jax.Array:
            name = path_name(path)
            factor = jnp.asarray((factors or {}).get(name, 1.0), update.dtype)
            factor = factor * (head_factor if name.startswith("head/") else 1.0)
            return update * factor.reshape(*factor.shape, *(1,) * (update.ndim - factor.ndim))

        return jax.tree_util.tree_map_with_path(scaled, updates)

    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    return optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        adam if config.moments == "float32" else with_bfloat16_moments(adam),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
        optax.identity() if head_factor == 1.0 and not factors else optax.stateless(scale),
    )
