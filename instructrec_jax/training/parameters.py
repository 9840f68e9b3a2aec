"""Which parameters are trained and with which learning rate, by their paths and layers."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from flax import nnx

from instructrec_jax.adapters.heads import head_kind
from instructrec_jax.adapters.lora import is_lora
from instructrec_jax.backbones.layers import Stack
from instructrec_jax.training.optimizer import DEFAULT_RATES
from instructrec_jax.training.training_config import OptimizerConfig


def frozen_parameters(
    model: nnx.Module, *, freeze: Sequence[str] = (), train_last: int | None = None, lora: bool = False
) -> Callable[[str], bool]:
    """A function: parameter path ('backbone/layers/block0/query/kernel') -> whether the parameter is frozen.

    A parameter, LoRA matrices included, is trained only where none of the settings freezes it.

    Args:
      model: the (possibly abstract) network, with 'backbone' and 'head'.
      freeze: regular expressions; a parameter whose path matches one of them is frozen.
      train_last: freeze the backbone except its last N layers, final norm and pooler.
      lora: freeze the backbone except LoRA matrices; also freeze pretrained heads over the vocabulary.

    Raises:
      ValueError: a pattern is not a regular expression or matches nothing; the other settings freeze all layers of
        `train_last`, or all LoRA matrices.
    """
    paths = parameter_paths(model)
    frozen = {path for pattern in freeze for path in _matching(pattern, paths)}
    if lora:
        heads = vocabulary_heads(model)
        frozen |= {path for path in paths if not is_lora(path) and path.startswith(("backbone/", *heads))}
    if train_last is not None:
        tail = tuple(_tail(model))
        frozen |= {path for path in paths if path.startswith("backbone/") and not path.startswith(tail)}
        if train_last and not any(path.startswith(tail) and path not in frozen for path in paths):
            raise ValueError(
                f"backbone.train_last is {train_last}, but other settings freeze all of these layers: "
                f"{_why_frozen(freeze, lora)}. Leave train_last out, or unfreeze the layers."
            )
    if lora and all(path in frozen for path in paths if is_lora(path)):
        raise ValueError(
            "lora.rank or lora.adapter is set, but no LoRA matrix is trained: "
            f"{_why_frozen(freeze, False, train_last)}. Leave lora out, or unfreeze its matrices."
        )
    return frozen.__contains__


def _why_frozen(freeze: Sequence[str], lora: bool, train_last: int | None = None) -> str:
    causes = [f"backbone.freeze or the task freezes {', '.join(freeze)}"] if freeze else []
    causes += ["LoRA has no matrices in these layers (lora.targets)"] if lora else []
    causes += [f"backbone.train_last {train_last} freezes the layers below"] if train_last is not None else []
    return " and ".join(causes) or "the network has no such parameters"


def parameter_paths(model: nnx.Module) -> list[str]:
    """The paths of all parameters of a (possibly abstract) network, such as 'backbone/layers/block0/query/kernel'."""
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))]


def vocabulary_heads(model: nnx.Module) -> list[str]:
    """The path prefixes ('head/', or 'head/chat/' with several heads) of pretrained heads over the vocabulary."""
    head = getattr(model, "head", None)
    heads = {f"head/{name}/": each for name, each in head.items()} if isinstance(head, nnx.Dict) else {"head/": head}
    return [path for path, each in heads.items() if each is not None and head_kind(each) in ("lm", "mlm")]


def default_learning_rate(
    trained: Collection[str], *, random_init: bool = False, vocabulary_heads: Sequence[str] = ()
) -> tuple[float, str]:
    """(default peak learning rate for AdamW, its reason).

    5e-5 where pretrained parameters are trained (Devlin et al., 2019, BERT, appendix A.3: 2e-5 to 5e-5); 2e-4 for LoRA
    matrices (Dettmers et al., 2023, QLoRA, appendix B: 1e-4 to 2e-4); 1e-3 for new parameters only: heads on a frozen
    backbone, or a network from random weights (Kingma & Ba, 2015, Adam).

    Args:
      trained: paths of the trained parameters.
      random_init: whether the whole network starts from random weights.
      vocabulary_heads: path prefixes of pretrained heads (see `vocabulary_heads`).
    """
    pretrained = [p for p in trained if not is_lora(p) and p.startswith(("backbone/", *vocabulary_heads))]
    if random_init:
        kind, why = "new", "the default for a network from random weights"
    elif pretrained:
        kind, why = "pretrained", "the default for a pretrained network"
    elif any(is_lora(path) for path in trained):
        kind, why = "lora", "the default for LoRA"
    else:
        kind, why = "new", "the default for a new head on a frozen network"
    return DEFAULT_RATES[kind], why


def with_learning_rate(
    config: OptimizerConfig, model: nnx.Module, is_frozen: Callable[[str], bool], *, random_init: bool
) -> tuple[OptimizerConfig, str]:
    """(the settings with a learning rate: the configured one, else the default; a description for the summary).

    Raises:
      ValueError: a learning-rate setting for the head or the backbone, which is frozen.
    """
    trained = [path for path in parameter_paths(model) if not is_frozen(path)]
    if config.head_learning_rate is not None and not any(path.startswith("head/") for path in trained):
        raise ValueError(
            f"optimizer.head_learning_rate is {config.head_learning_rate}, but no head is trained: leave it out."
        )
    if config.layer_decay != 1 and not any(path.startswith("backbone/") for path in trained):
        raise ValueError(
            f"optimizer.layer_decay is {config.layer_decay}, but no layer of the backbone is trained: leave it out."
        )
    if config.learning_rate is None:
        rate, why = default_learning_rate(trained, random_init=random_init, vocabulary_heads=vocabulary_heads(model))
        config = replace(config, learning_rate=rate)
    else:
        rate, why = config.learning_rate, "optimizer.learning_rate"
    head = "" if config.head_learning_rate is None else f", head {config.head_learning_rate:g}"
    return config, f"{rate:g}{head} ({why})"


def _matching(pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"backbone.freeze: {pattern!r} is not a regular expression ({error}).") from error
    if not found:
        raise ValueError(
            f"backbone.freeze: {pattern!r} matches no parameter. Examples of paths: {', '.join(sorted(paths)[:6])}."
        )
    return found


def _tail(model: nnx.Module) -> list[str]:
    """The path prefixes of the last stack's trained blocks and of its final norm and pooler."""
    found = stacks(model)
    if not found:
        raise ValueError("backbone.train_last is set, but this task's network has no pretrained layers: leave it out.")
    name, stack = found[-1]
    blocks = [f"{name}/{block.name}" for block in stack.blocks if block.first >= stack.first_trained]
    return [f"{path}/" for path in [*blocks, *behind(name)]]


def behind(stack: str) -> tuple[str, str]:
    """The paths of the final norm and the pooler after a stack of layers."""
    owner = stack.rpartition("/")[0]
    return f"{owner}/final_norm", f"{owner}/pooler"


def stacks(model: nnx.Module) -> list[tuple[str, Stack]]:
    """(path, stack) of the backbone's stacks of layers, in forward order."""
    found = [("/".join(map(str, path)), node) for path, node in nnx.iter_modules(model) if isinstance(node, Stack)]
    own = [each for each in found if each[0].startswith("backbone/")]  # without a head's own layers
    return sorted(own, key=lambda each: ("decoder" in each[0], "/reader/" not in each[0]))


def learning_rate_factors(model: nnx.Module, layer_decay: float) -> dict[str, float | np.ndarray]:
    """Parameter path -> learning-rate factor (float, or float [layers] for a stacked parameter): layer-wise decay.

    The factor is decay ** (L + 1 − depth), with depth 0 for the embeddings, 1 … L for the layers, and L + 1 for the
    final norm, pooler and head: BEiT's rule (Bao et al., 2022, appendix; its `get_num_layer_for_vit`). ELECTRA (Clark
    et al., 2020) differs by one: its last layer has factor 1. LoRA matrices have the factor of their layer. The layers
    of an encoder–decoder count from the encoder's first to the decoder's last.
    """
    numbered: dict[str, Stack] = dict(stacks(model))
    first, total = {}, 0
    for name, stack in numbered.items():
        first[name], total = total, total + stack.num_layers
    factors: dict[str, float | np.ndarray] = {}
    for keys, _ in nnx.to_flat_state(nnx.state(model)):
        path = "/".join(map(str, keys))
        depth: int | np.ndarray
        name = next((n for n in numbered if path.startswith(f"{n}/")), "")
        if name:
            block = next(b for b in numbered[name].blocks if path.startswith(f"{name}/{b.name}/"))
            depth = 1 + first[name] + np.array(block.layers)
        else:
            # a final norm or pooler lies above the last layer of its own stack
            owner = next((n for n in numbered if path.rpartition("/")[0] in behind(n)), "")
            above = total if path.startswith("head/") else first[owner] + numbered[owner].num_layers if owner else -1
            depth = above + 1
        factors[path] = layer_decay ** (total + 1 - depth)
    return factors
