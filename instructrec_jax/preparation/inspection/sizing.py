"""Maximum length, batch size and number of steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.backbones.folder import find_family, find_folder, read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import answer, find_template, render, written
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.preparation import demos
from instructrec_jax.preparation.inspection.table import Guess, Setting

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_LIMIT = 512  # positions of MiniLM
MEASURED = 5_000  # rows whose texts are tokenized
LONGEST = 100_000  # characters of them: a cell of megabytes would take minutes
LORA_RANK = 16
WRITTEN = ("language_model", "question_answering", "summarization")  # tasks whose tokens include the answer
RATES = {"pretrained": 5e-5, "lora": 2e-4}  # `training.optimizer.DEFAULT_RATES`


@dataclass(frozen=True)
class Network:
    """Attributes:
    name: value of backbone.path.
    kind: encoder, decoder or encoder_decoder.
    limit: tokens that it reads at most.
    tokenizer: its own, or that of the embedded network.
    exact: whether the tokenizer is its own.
    sentences: whether it was tuned to give vectors of texts, as sentence-transformers declares them.
    """

    name: str
    kind: str
    limit: int
    tokenizer: PreTrainedTokenizerBase
    exact: bool
    sentences: bool = False

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, special tokens included."""
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


def open_network(name: str | None) -> Network:
    """The named backbone, or MiniLM, which is not downloaded: the embedded tokenizer then estimates lengths.

    Raises ValueError for a backbone that cannot be opened.
    """
    chosen = "films" if name is None else name
    folder = demos.find(chosen, "--backbone").backbone if demos.is_demo(chosen) else find_folder(chosen)
    config = read_config(folder)
    tokenizer = open_tokenizer(folder, config)
    if name is None:
        return Network(DEFAULT_BACKBONE, "encoder", DEFAULT_LIMIT, tokenizer, exact=False, sentences=True)
    kind, sentences = find_family(config.model_type).kind, (folder / "modules.json").is_file()
    return Network(name, kind, input_limit(config), tokenizer, exact=True, sentences=sentences)


def length_settings(
    examples: Sequence[Example], guess: Guess, network: Network, *, complete: bool
) -> dict[str, Setting]:
    """data.max_length and data.truncate.

    Args:
      complete: whether these are all examples. If not, or if the tokens are estimated, longer texts may come.

    Raises ValueError for a conversation that the backbone's template cannot write.
    """
    some = examples[:: max(1, len(examples) // MEASURED)]
    texts = [text[:LONGEST] for text in _texts(some, guess, network)]
    lengths = np.sort(np.array(network.count(texts) or [1]) + 2)  # special tokens between two texts
    top, high = int(lengths[-1]), int(np.quantile(lengths, 0.995))
    room = 1.1 if network.exact else 1.25  # unmeasured rows; another tokenizer
    most = min(network.limit, 2048 if guess.type == "language_model" else 512)
    needed = top if top * room <= most and top <= 4 * high else high
    length = min(most, 32 * math.ceil(max(needed * room, 32) / 32))
    whose = "tokens" if network.exact else "tokens (estimated with the embedded tokenizer)"
    why = f"texts have up to {top:,} {whose}, 99.5% have at most {high:,}"
    found = {"max_length": Setting(length, why)}
    if guess.type == "span":
        found["max_length"] = Setting(min(most, max(length, 128)), f"{why}; longer contexts are read in windows")
    elif top > length or not (network.exact and complete and len(some) == len(examples)):
        how = "drop" if guess.type in ("token_classification", *WRITTEN) else "right"
        said = "longer texts are left out, and counted" if how == "drop" else "longer texts are cut, and counted"
        found["truncate"] = Setting(how, said)
    return found


def _texts(examples: Sequence[Example], guess: Guess, network: Network) -> list[str]:
    """The texts that become rows of tokens: prompts, with a language model's answers; candidates."""
    if guess.type not in WRITTEN:
        said = [
            each
            for e in examples
            for each in (*e.candidates, *([answer(e) or ""] if guess.type == "similarity" else []))
        ]
        return [render(example) for example in examples] + said
    template = find_template("auto", network.tokenizer, network.kind)
    eos = network.tokenizer.eos_token
    pieces = [written(example, template, network.tokenizer, eos=eos) for example in examples]
    return ["".join(piece[0] for piece in each) for each in pieces]


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
