"""AdamW with decoupled weight decay on the backbone (θ) and the head (ω)."""

import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructrec_jax.training.training_config import NO_DECAY, OptimizerConfig

DEFAULT_RATES = {"pretrained": 5e-5, "lora": 2e-4, "new": 1e-3}


def path_name(path: Sequence[object]) -> str:
    """A parameter's path as text: 'backbone/layers/attention/query/kernel'."""
    return "/".join(str(getattr(part, "key", part)) for part in path)


def peak_learning_rate(config: OptimizerConfig) -> float:
    """The peak learning rate. Raises ValueError where none is set yet (see `parameters.with_learning_rate`)."""
    if config.learning_rate is None:
        raise ValueError("optimizer.learning_rate is not set: set it, for example to 5e-5 for full tuning.")
    return config.learning_rate


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the backbone as a function of the number of updates so far.

    wsd: Hu et al., "MiniCPM", 2024, with the linear decay of Hägele et al., "Scaling Laws and Compute-Optimal Training
    Beyond Fixed Training Durations", 2024.
    """
    peak = peak_learning_rate(config)
    final = peak * config.final_ratio
    warmup = round(config.warmup * steps)
    rest = max(1, steps - warmup)
    falling = min(rest, max(1, round(config.decay * steps)))
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_ratio),
        "linear": optax.linear_schedule(peak, final, rest),
        "constant": optax.constant_schedule(peak),
        "wsd": optax.linear_schedule(peak, final, falling, transition_begin=rest - falling),
    }[config.schedule]
    if not warmup:
        return after
    # The warm-up starts at peak / warmup instead of 0, so that the first update has an effect.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def with_bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam with both moments stored as bfloat16, by stochastic rounding (Zamirai et al., 2020).

    Rounding to nearest would lose the relative change of the second moment per step: 0.001 with beta2 0.999, below
    bfloat16's 1/256.
    """

    def widened(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
        return state._replace(mu=wide[0], nu=wide[1])

    def narrowed(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        leaves, form = jax.tree.flatten((state.mu, state.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
        mu, nu = jax.tree.unflatten(form, [to_bfloat16(x, key) for x, key in zip(leaves, keys, strict=True)])
        return state._replace(mu=mu, nu=nu)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByAdamState)
        updates, wide = adam.update(updates, widened(state), params)
        return updates, narrowed(wide)

    return optax.GradientTransformation(lambda params: narrowed(adam.init(params)), update)


def to_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16 by stochastic rounding: the expected value is x."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    cut = jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), cut, x.astype(jnp.bfloat16))


def check_optimizer(config: OptimizerConfig) -> None:
    """Checks the ranges of the settings. Raises ValueError for one out of range or without effect."""
    # name: (minimum, maximum, minimum allowed, maximum allowed)
    ranges: dict[str, tuple[float, float, bool, bool]] = {
        "learning_rate": (0, math.inf, False, False),
        "head_learning_rate": (0, math.inf, True, False),
        "layer_decay": (0, 1, False, True),
        "decay": (0, 1, False, True),
        "weight_decay": (0, math.inf, True, False),
        "beta1": (0, 1, True, False),
        "beta2": (0, 1, True, False),
        "epsilon": (0, math.inf, False, False),
        "clip_norm": (0, math.inf, False, False),
        "warmup": (0, 1, True, True),
        "final_ratio": (0, 1, True, True),
        "max_nonfinite": (1, math.inf, True, False),
    }
    for name, (least, most, from_least, to_most) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        # NaN fails: every comparison with it is false
        inside = (value >= least if from_least else value > least) and (value <= most if to_most else value < most)
        if not inside:
            lower = f"at least {least:g}" if from_least else f"above {least:g}"
            upper = f"at most {most:g}" if to_most else "finite" if most == math.inf else f"below {most:g}"
            raise ValueError(f"optimizer.{name} must be {lower} and {upper}, but is {value}.")
    if config.schedule == "constant" and config.final_ratio:
        raise ValueError(
            f"optimizer.final_ratio is {config.final_ratio}, but optimizer.schedule constant never lowers the learning "
            "rate: set final_ratio to 0, or choose cosine, linear or wsd."
        )
    if config.schedule != "wsd" and config.decay != OptimizerConfig.decay:
        raise ValueError(f"optimizer.decay has no effect on optimizer.schedule {config.schedule}: leave it out.")
    custom = config.decay_exclude != list(NO_DECAY)
    if custom and config.decay_exclude and not config.weight_decay:
        raise ValueError("optimizer.decay_exclude has no effect, since optimizer.weight_decay is 0: leave it out.")


def decaying(config: OptimizerConfig, params: optax.Params) -> optax.Params:
    """Which parameters have weight decay: a tree like `params` with a bool per array.

    Raises:
      ValueError: a pattern of `decay_exclude` is not a regular expression, or (unless in NO_DECAY) matches no trained
        parameter.
    """
    try:
        excluded = [re.compile(pattern) for pattern in config.decay_exclude]
    except re.error as error:
        raise ValueError(
            f"optimizer.decay_exclude: {error.pattern!r} is not a regular expression ({error})."
        ) from error
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for pattern in excluded:
        if pattern.pattern not in NO_DECAY and not any(pattern.search(name) for name in names):
            raise ValueError(
                f"optimizer.decay_exclude: {pattern.pattern!r} matches no trained parameter. Examples of "
                f"paths: {', '.join(sorted(names)[:6])}."
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(pattern.search(path_name(path)) for pattern in excluded), params
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, factors: Mapping[str, float | np.ndarray] | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019): p ← p − η (m̂ / (√v̂ + ε) + λ p), for θ and ω alike.

    η follows the schedule, times `head_learning_rate / learning_rate` for parameters below 'head', times the
    parameter's factor in `factors` (path -> number, or array [layers] for a stacked parameter).

    Raises:
      ValueError: a setting is out of range or has no effect (see `check_optimizer`, `decaying`).
    """
    check_optimizer(config)
    rate = peak_learning_rate(config)
    head_factor = 1.0 if config.head_learning_rate is None else config.head_learning_rate / rate

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        def scaled(path: Sequence[object], update: jax.Array) -> jax.Array:
            name = path_name(path)
            factor = jnp.asarray((factors or {}).get(name, 1.0), update.dtype)
            factor = factor * (head_factor if name.startswith("head/") else 1.0)
            return update * factor.reshape(*factor.shape, *(1,) * (update.ndim - factor.ndim))

        return jax.tree_util.tree_map_with_path(scaled, updates)

    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    sparse = [optax.stateless(without_zeros)] if config.keep_zeros else []
    return optax.chain(
        *sparse,  # before clipping, and before the moments
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        adam if config.moments == "float32" else with_bfloat16_moments(adam),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: decaying(config, params)),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
        optax.identity() if head_factor == 1.0 and not factors else optax.stateless(scale),
        *sparse,
    )


def without_zeros(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """Updates that leave the zeros among the weights of the backbone's linear layers.

    The zeros themselves are the mask, so it needs no memory, and survives checkpoints and exports. A weight that
    becomes exactly zero in training stays there, too. Raises ValueError where no such weight is trained.
    """
    found = False

    def masked(path: Sequence[object], update: jax.Array, param: jax.Array) -> jax.Array:
        nonlocal found
        name = path_name(path)
        if not (name.startswith("backbone/") and name.endswith("/kernel")):
            return update
        found = True
        return jnp.where(param == 0, 0, update)

    left = jax.tree_util.tree_map_with_path(masked, updates, params)
    if not found:
        raise ValueError(
            "optimizer.keep_zeros is true, but no linear layer of the backbone is trained, and merged LoRA matrices "
            "would fill the zeros: leave lora out."
        )
    return left
