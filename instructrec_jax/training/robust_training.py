"""Training that noise moves less, within the one training step: R-Drop, noise on word embeddings, FreeLB.

Noise is a `DropoutKeys.shift`: it reaches the word embeddings wherever a loss passes its dropout keys on, so packing,
micro-batches, devices and views of unlabeled examples are those of dropout. Its size is that of a text, a segment of a
packed row, so a text's noise does not depend on its neighbors.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.adapters.soft_targets import agreement_loss
from instructrec_jax.backbones.layers import DropoutKeys, Embedding, feature_bits
from instructrec_jax.data.batch import Batch
from instructrec_jax.tasks.base import LossInputs, Model, Task
from instructrec_jax.training.distillation import Loss, Remembered
from instructrec_jax.training.method_settings import check_ranges, is_chosen
from instructrec_jax.training.training_config import RobustTrainingConfig

# arbitrary: sites that no backbone, head or LoRA has
SECOND_SITE, NOISE_SITE = 1 << 22, 1 << 23
NOISE: dict[str, float] = {"r_drop": 0.0, "noise": 5.0, "freelb": 0.1}  # of the papers
Sums = TypeVar("Sums")


SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "weight": ("r_drop",),
    "ascent_steps": ("freelb",),
    "step_size": ("freelb",),
    "max_norm": ("freelb",),
}


def noise_of(config: RobustTrainingConfig) -> float:
    """`noise`, or the method's own."""
    return NOISE.get(config.method, 0.0) if config.noise is None else config.noise


def passes(config: RobustTrainingConfig) -> int:
    """How often a step runs the network, forward and backward, for its labeled examples."""
    return {"r_drop": 2, "freelb": config.ascent_steps}.get(config.method, 1)


def check_robust_training(
    config: RobustTrainingConfig, task: Task, kind: str, network: nnx.Module, dropout: Mapping[str, object]
) -> None:
    """Raises ValueError for settings out of range or without effect, and for a network that a method cannot change.

    Args:
      kind: the task's type, for messages.
      dropout: the settings in which dropout rates are: config.json, `lora` and `task`.
    """
    default, name = RobustTrainingConfig(), "robust_training"
    if not is_chosen(config, name, SETTINGS_OF):
        return
    ranges = {
        "weight": (0 < config.weight < float("inf"), "positive, such as 1"),
        "noise": (0 <= noise_of(config) < float("inf"), "at least 0, such as 5"),
        "ascent_steps": (1 <= config.ascent_steps <= 100, "a number of steps from 1 to 100, such as 2"),
        "step_size": (0 < config.step_size < float("inf"), "positive, such as 0.1"),
        "max_norm": (config.max_norm is None or 0 < config.max_norm < float("inf"), "positive, such as 0.5"),
    }
    check_ranges(config, name, ranges)
    noise = noise_of(config)
    if config.method == "noise" and not noise:
        raise ValueError(f"{name}.noise is 0, so method: noise has no effect: raise it, or leave both out.")
    if config.distribution != default.distribution and not noise:
        raise ValueError(f"{name}.distribution has no effect without {name}.noise: set it, or leave this out.")
    if config.method == "freelb" and not noise and config.ascent_steps == 1:
        raise ValueError(f"{name}.ascent_steps is 1 and {name}.noise 0, so no noise is added: raise one of them.")
    if (noise or config.method == "freelb") and not reads_words(network, task):
        raise ValueError(
            f"{name}: noise goes to word embeddings, but the network of task.type {kind} reads none: use method: "
            "r_drop without noise, or leave it out."
        )
    if config.method == "r_drop" and not noise and not has_dropout(dropout):
        raise ValueError(
            f"{name}.method is r_drop, but the network has no dropout (see its config.json), so both draws are equal: "
            f"set {name}.noise, or lora.dropout of a run with lora, or leave it out."
        )


def reads_words(network: nnx.Module, task: Task) -> bool:
    """Whether the network reads texts by word embeddings that are its backbone's."""
    backbone = getattr(network, "backbone", None)
    hears = task.context.pixels is not None and hasattr(backbone, "decode")  # its words are those that it writes
    return table_of(backbone) is not None and not hasattr(backbone, "read_rows") and not hears


def table_of(backbone: object) -> Embedding | None:
    """The word embeddings; of a pair of networks those of the one that reads texts."""
    found: Embedding | None = getattr(getattr(backbone, "text", backbone), "word_embeddings", None)
    return found


def has_dropout(settings: object) -> bool:
    """Whether a number above 0 stands under a name with "drop", at any depth."""
    if not isinstance(settings, Mapping):
        return False
    return any(
        has_dropout(value) or ("drop" in str(name) and isinstance(value, int | float) and value > 0)
        for name, value in settings.items()
    )


# ---------------------------------------------------------------- noise


def with_noise(config: RobustTrainingConfig, model: Model, batch: Batch, inputs: LossInputs) -> LossInputs:
    """The inputs with random noise in their dropout keys; as they are with `noise` 0."""
    keys = inputs.dropout
    if not noise_of(config) or keys is None:
        return inputs
    return replace(inputs, dropout=replace(keys, shift=random_noise(config, model, batch, keys)))


def random_noise(config: RobustTrainingConfig, model: Model, batch: Batch, keys: DropoutKeys) -> jax.Array:
    """float32 [rows, length, features]: u · noise / sqrt(L d) of a text of L tokens, zero at padding and images.

    u is uniform in [-1, 1), or with `gaussian` normal with its variance, 1/3, and d the number of features, as in
    NEFTune (Jain et al., 2023, algorithm 1) and at the start of FreeLB (Zhu et al., 2020, algorithm 1). The bits are
    those of the tokens' dropout keys.
    """
    table = table_of(model.backbone)
    assert table is not None
    features = int(table.table.shape[-1])
    bits = feature_bits(keys.fold(NOISE_SITE), (features,))
    drawn = (bits.astype(jnp.float32) + 0.5) * 2**-31 - 1
    if config.distribution == "gaussian":  # the quantile of the same number; erfinv is infinite at ±1
        drawn = jax.scipy.special.erfinv(jnp.clip(drawn, -1 + 2**-24, 1 - 2**-24)) * (2 / 3) ** 0.5
    there = words_of(batch)
    tokens = by_text(batch, there.astype(jnp.float32))
    size = noise_of(config) / jnp.sqrt(jnp.maximum(tokens, 1) * features)
    return jnp.where(there[..., None], drawn * size[..., None], 0)


def words_of(batch: Batch) -> jax.Array:
    """bool [rows, length]: whether a word is there, neither padding nor an image."""
    there = jnp.asarray(batch.texts.segment_ids) > 0
    return there if batch.images is None else there & (jnp.asarray(batch.images.places) < 0)


def by_text(batch: Batch, values: jax.Array) -> jax.Array:
    """float32 [rows, length] -> at each token the sum over the tokens of its text; at padding that of the padding."""
    ids, count = jnp.asarray(batch.texts.segment_ids), batch.text_numbers.shape[1] + 1

    def of_row(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, count)[ids]

    return jax.vmap(of_row)(values, ids)


# ---------------------------------------------------------------- losses


def noisy(config: RobustTrainingConfig, loss: Loss) -> Loss:
    """The loss with random noise on the word embeddings."""

    def with_it(model: Model, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        return loss(model, batch, with_noise(config, model, batch, inputs))

    return with_it


def agreeing(config: RobustTrainingConfig, task: Task, loss: Loss) -> Loss:
    """R-Drop: ½ (L₁ + L₂) + weight · Σ w ½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) of two draws of dropout (and noise).

    Half of equation 4 of Liang et al., 2021, "R-Drop", with weight = α / 2; see `soft_targets.agreement_loss`.
    """

    def both(model: Model, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        assert inputs.dropout is not None
        draws = [with_noise(config, model, batch, replace(inputs, dropout=keys)) for keys in twice(inputs.dropout)]
        # Losses that couple micro-batches take the network apart, so they need the network itself.
        networks = [Remembered(model) if inputs.microbatches == 1 else model for _ in draws]
        pairs = list(zip(networks, draws, strict=True))
        (first, weight), (second, _) = [loss(network, batch, own) for network, own in pairs]  # type: ignore[arg-type]
        outputs = [task.soft_outputs(task.view(network), batch, own) for network, own in pairs]
        apart = [agreement_loss(*each) for each in zip(*outputs, strict=True)]
        return (first + second) / 2 + config.weight * sum(apart, jnp.zeros(())), weight

    return both


def twice(keys: DropoutKeys) -> tuple[DropoutKeys, DropoutKeys]:
    """The keys, and independent ones of the same tokens."""
    other = keys.fold(SECOND_SITE)
    return keys, other if keys.target is None else replace(other, target=keys.target.fold(SECOND_SITE))


def robust_loss(config: RobustTrainingConfig, task: Task, loss: Loss) -> Loss:
    """The loss of a method whose gradient is taken once."""
    return agreeing(config, task, loss) if config.method == "r_drop" else noisy(config, loss)


# ---------------------------------------------------------------- FreeLB


def climbed(
    config: RobustTrainingConfig,
    batch: Batch,
    first: jax.Array,
    gradient: Callable[[jax.Array], tuple[Sums, jax.Array]],
) -> Sums:
    """FreeLB: the mean of the sums and gradients at K = `ascent_steps` noises δ₀ … δ_K₋₁ (Zhu et al., 2020).

        δ_k+1 = Π(δ_k + step_size · g_k / ‖g_k‖),  g_k = ∂L/∂δ_k,  Π: ‖δ‖ at most `max_norm`

    Norms are Frobenius norms over the tokens of a text, and dropout is the same at all K, as in algorithm 1. With
    `noise` 0 and two steps this is the mean of the loss and its adversarial loss (Miyato et al., 2017).

    Args:
      first: δ₀, float32 [rows, length, features].
      gradient: δ -> (sums and gradients of parameters, ∂(Σ w ℓ)/∂δ).
    """
    there = words_of(batch)[..., None]

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(by_text(batch, jnp.sum(jnp.square(x), -1)))[..., None]

    def one(carry: tuple[jax.Array, Sums], _: None) -> tuple[tuple[jax.Array, Sums], None]:
        noise, total = carry
        found, slope = gradient(noise)
        # a mean instead of a sum keeps the size of what is logged; parts of equal weight need no weighting
        total = jax.tree.map(lambda t, f: t + f / config.ascent_steps, total, found)
        slope = jnp.where(there, slope, 0)
        moved = noise + config.step_size * slope / jnp.maximum(norm(slope), TINY)
        if config.max_norm is not None:
            moved = moved * jnp.minimum(1, config.max_norm / jnp.maximum(norm(moved), TINY))
        return (moved, total), None

    shapes = jax.eval_shape(lambda: gradient(first)[0])
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(one, (first, start), None, length=config.ascent_steps)[0][1]


TINY = 1e-30  # a gradient of zero stays zero
