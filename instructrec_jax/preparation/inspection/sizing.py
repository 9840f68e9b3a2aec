"""Maximum length, batch size and number of steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructrec_jax.backbones.folder import find_family, find_folder, read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.data.fields import look_up
from instructrec_jax.preparation import demos
from instructrec_jax.preparation.inspection.columns import Row
from instructrec_jax.preparation.inspection.guessing import Guess, Setting

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_LIMIT = 512  # positions of MiniLM
MEASURED = 5_000  # rows whose texts are tokenized
LORA_RANK = 16
RATES = {"pretrained": 5e-5, "lora": 2e-4}  # `training.optimizer.DEFAULT_RATES`


@dataclass(frozen=True)
class Network:
    """Attributes:
    name: value of backbone.path.
    kind: encoder, decoder or encoder_decoder.
    limit: tokens that it reads at most.
    count: texts -> number of tokens of each, special tokens included.
    exact: whether its own tokenizer counts.
    """

    name: str
    kind: str
    limit: int
    count: Callable[[Sequence[str]], list[int]]
    exact: bool


def open_network(name: str | None) -> Network:
    """The named backbone, or MiniLM, which is not downloaded: the embedded tokenizer then estimates lengths.

    Raises ValueError for a backbone that cannot be opened.
    """
    chosen = "films" if name is None else name
    folder = demos.find(chosen, "--backbone").backbone if demos.is_demo(chosen) else find_folder(chosen)
    config = read_config(folder)
    count = _counter(folder)
    if name is None:
        return Network(DEFAULT_BACKBONE, "encoder", DEFAULT_LIMIT, count, exact=False)
    return Network(name, find_family(config.model_type).kind, input_limit(config), count, exact=True)


def _counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    tokenizer = open_tokenizer(folder, read_config(folder))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []

    return count


def length_settings(rows: Sequence[Row], guess: Guess, network: Network) -> dict[str, Setting]:
    """data.max_length and data.truncate."""
    longest = 1_000_000  # characters: a cell of megabytes would take minutes
    texts = [text[:longest] for text in _texts(rows, guess)]
    lengths = np.sort(np.array(network.count(texts) or [1]) + _overhead(guess))
    top, high = int(lengths[-1]), int(np.quantile(lengths, 0.995))
    room = 1.1 if network.exact else 1.25  # unmeasured rows; another tokenizer
    most = min(network.limit, 512 if guess.type != "language_model" else 2048)
    needed = top if top * room <= most and top <= 4 * high else high
    length = min(most, 32 * math.ceil(max(needed * room, 32) / 32))
    whose = "tokens" if network.exact else "tokens (estimated with the embedded tokenizer)"
    why = f"texts have up to {top:,} {whose}, 99.5% have at most {high:,}"
    found = {"max_length": Setting(length, why)}
    if guess.type == "span":
        found["max_length"] = Setting(min(most, max(length, 128)), f"{why}; longer contexts are read in windows")
    elif top * room > length:
        how = "drop" if guess.type in ("token_classification", "language_model", "question_answering") else "right"
        said = "longer texts are left out, and counted" if how == "drop" else "longer texts are cut, and counted"
        found["truncate"] = Setting(how, said)
    return found


def _texts(rows: Sequence[Row], guess: Guess) -> list[str]:
    """The texts that an example's row of tokens holds: its inputs, with a language model's answer."""
    step = max(1, len(rows) // MEASURED)
    names = [*guess.inputs, *([guess.target] if guess.type in ("language_model", "question_answering") else [])]
    names = list(dict.fromkeys(names))
    if guess.type == "similarity":  # questions and candidates are texts of their own
        names = [*guess.inputs, guess.target]
        return [text for row in rows[::step] for name in names for text in _parts(look_up(row, name))]
    return ["\n".join(text for name in names for text in [_joined(look_up(row, name))]) for row in rows[::step]]


def _parts(value: object) -> list[str]:
    return [_joined(each) for each in value] if isinstance(value, list | tuple) else [_joined(value)]


def _joined(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(_joined(each) for each in value.values())
    if isinstance(value, list | tuple):
        return " ".join(_joined(each) for each in value)
    return "" if value is None else str(value)


def _overhead(guess: Guess) -> int:
    """Tokens that a template adds."""
    return 64 if guess.type in ("language_model", "question_answering", "choice") else 2


def step_settings(count: int, guess: Guess, network: Network) -> dict[str, Setting]:
    """steps, data.batch_size, evaluation.every: for `count` training rows."""
    batch = 32 if count >= 320 else 16 if count >= 64 else 8
    if network.kind != "encoder":
        batch = min(batch, 8)
    epochs = 3 if count >= 1000 else 10
    steps = min(20_000, max(20, math.ceil(epochs * count / batch)))
    said = f"about {steps * batch / count:.0f} epochs of {count:,} training rows"
    every = max(1, math.ceil(steps / 10))
    return {
        "steps": Setting(
            steps, said if steps * batch / count >= 1 else f"{steps * batch:,} of {count:,} training rows"
        ),
        "batch_size": Setting(batch, "examples per step; halve it (or set accumulation: 2) if memory is short"),
        "every": Setting(every, "ten times in the run; the best checkpoint is kept"),
    }


def rate_settings(network: Network) -> dict[str, Setting]:
    """learning_rate, and rank for LoRA."""
    if network.kind == "decoder":
        return {
            "rank": Setting(LORA_RANK, "LoRA: a language model needs less memory so; 0 tunes all its parameters"),
            "learning_rate": Setting(RATES["lora"], "usual for LoRA"),
        }
    return {"learning_rate": Setting(RATES["pretrained"], "usual where all parameters of a network are tuned")}
