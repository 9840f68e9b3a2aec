"""Settings of generation, and what a checkpoint says about its special tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrec_jax.files import read_json


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is chosen token by token; the names and meanings are those of `transformers`."""

    max_new_tokens: int = 256  # most tokens an answer has
    temperature: float = 0.0  # logits are divided by it before a token is drawn; 0: always the likeliest token
    top_k: int | None = None  # draw among the k likeliest tokens
    top_p: float = 1.0  # draw among the likeliest tokens that together have at least this probability
    min_p: float = 0.0  # draw among tokens at least this times as likely as the likeliest
    repetition_penalty: float = 1.0  # above 1: tokens that occurred in prompt or answer become less likely
    beams: int = 1  # answers that beam search follows side by side; 1: no beam search
    length_penalty: float = 1.0  # beam search divides the log-probability of an answer by tokens ** this
    stop: tuple[str, ...] = ()  # an answer ends before the first of these texts
    seed: int = 0  # of the draws
    batch_size: int = 8  # prompts that are answered side by side

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                raise ValueError(f"{name} should be {wanted}, but is {getattr(self, name)}.")

        check(self.max_new_tokens >= 1, "max_new_tokens", "at least 1")
        check(0 <= self.temperature < float("inf"), "temperature", "0 (the likeliest token) or a positive number")
        check(self.top_k is None or self.top_k >= 1, "top_k", "at least 1")
        check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        check(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        check(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "a positive number (1: none)")
        check(self.beams >= 1, "beams", "at least 1")
        check(abs(self.length_penalty) < float("inf"), "length_penalty", "a finite number")
        check(0 <= self.seed < 2**32, "seed", "between 0 and 2**32 - 1")
        check(self.batch_size >= 1, "batch_size", "at least 1")
        check(all(self.stop), "stop", "texts of at least one character")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1 or self.min_p > 0):
            raise ValueError("top_k, top_p and min_p choose among draws, but temperature is 0: set it, to 1 for one.")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search does not draw: set temperature to 0, or beams to 1.")
        if self.beams > 1 and self.stop:
            raise ValueError("beam search knows no stop texts: leave out stop, or set beams to 1.")
        if self.beams == 1 and self.length_penalty != 1:
            raise ValueError("length_penalty belongs to beam search: set beams to 2 or more.")

    def scalars(self) -> dict[str, float]:
        """The numbers that compiled programs take as arguments."""
        return {name: getattr(self, name) for name in SCALARS}

    def structure(self) -> "GenerationConfig":
        """What compiled programs depend on: a config that is equal where they are."""

        def used(name: str, without: float) -> float:
            return without if getattr(self, name) == without else 0.5

        return GenerationConfig(
            temperature=used("temperature", 0.0),
            top_k=self.top_k,
            top_p=used("top_p", 1.0),
            min_p=used("min_p", 0.0),
            repetition_penalty=used("repetition_penalty", 1.0),
            beams=self.beams,
        )


SCALARS = ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty")


@dataclass(frozen=True)
class TokenRules:
    """Special tokens of a checkpoint, as generation needs them.

    Attributes:
      eos: tokens that end an answer.
      pad: what follows a finished answer in its row; never seen by anything.
      start: the token that an encoder–decoder's answer begins with (not part of the answer).
      forced_first, forced_last: what an encoder–decoder's first token is, and the token at max_new_tokens.
      suppressed, suppressed_first: never chosen, and never chosen as first token.
    """

    eos: tuple[int, ...] = ()
    pad: int = 0
    start: int | None = None
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()


# Fields of generation_config.json that change which tokens may follow, and are not implemented.
REFUSED = (
    "bad_words_ids",
    "sequence_bias",
    "guidance_scale",
    "exponential_decay_length_penalty",
    "forced_decoder_ids",
    "watermarking_config",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
)
NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, 1, 1.0, [], {})
# Recommendations of a checkpoint's authors, instead of which the user's own settings hold.
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
SEARCHING = ("num_beams", "length_penalty", "early_stopping")
ANYWAY = ("repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens")


def generation_fields(folder: Path) -> dict[str, Any]:
    """Fields of generation_config.json; of config.json where a checkpoint (an older one) has no such file."""
    if (folder / "generation_config.json").is_file():
        return dict(read_json(folder / "generation_config.json"))
    return dict(read_json(folder / "config.json"))


def token_rules(folder: Path, config: Any, tokenizer: Any, kind: str, ends: Sequence[int] = ()) -> TokenRules:
    """The rules of a HuggingFace folder.

    Args:
      config: its `transformers` config.
      kind: "decoder" or "encoder_decoder".
      ends: more tokens that end an answer, such as a template's end of turn.

    Raises:
      ValueError: generation_config.json asks for something that is not implemented, or an encoder–decoder does not
        say how its answers start.
    """
    fields = generation_fields(folder)
    for name in REFUSED:
        if fields.get(name) not in NEUTRAL:
            raise ValueError(
                f"the generation settings of {folder} have {name}={fields[name]!r}, which is not implemented. "
                "Remove it to generate without."
            )

    def ids(*values: Any) -> tuple[int, ...]:
        flat = [i for value in values for i in (value if isinstance(value, list | tuple) else [value])]
        return tuple(dict.fromkeys(int(i) for i in flat if i is not None and int(i) >= 0))

    def own(name: str) -> Any:
        return fields.get(name) if fields.get(name) is not None else getattr(config, name, None)

    eos = ids(fields.get("eos_token_id"), getattr(config, "eos_token_id", None), tokenizer.eos_token_id, list(ends))
    pad = ids(tokenizer.pad_token_id, own("pad_token_id"), list(eos), 0)[0]
    if kind == "decoder":
        forced = [n for n in ("forced_bos_token_id", "forced_eos_token_id") if fields.get(n) is not None]
        if forced:
            raise ValueError(f"{folder} sets {forced[0]}, which is not implemented for decoders. Remove it there.")
        return TokenRules(
            eos, pad, suppressed=ids(own("suppress_tokens")), suppressed_first=ids(own("begin_suppress_tokens"))
        )
    start = ids(own("decoder_start_token_id"))
    if not start:
        raise ValueError(f"{folder} has no decoder_start_token_id: set it in config.json, to what answers begin with.")
    first = ids(own("forced_bos_token_id"))
    return TokenRules(
        eos,
        pad,
        start=start[0],
        forced_first=first[0] if first else None,
        forced_last=ids(own("forced_eos_token_id")),
        suppressed=ids(own("suppress_tokens")),
        suppressed_first=ids(own("begin_suppress_tokens")),
    )


def recommendations(folder: Path) -> dict[str, Any]:
    """What the checkpoint's authors recommend in generation_config.json, where it differs from plain greedy search."""
    if not (folder / "generation_config.json").is_file():
        return {}
    fields = {n: v for n, v in generation_fields(folder).items() if v is True or v not in NEUTRAL}
    drawing = ("do_sample", *DRAWING) if "do_sample" in fields else ()  # its numbers mean nothing without it
    searching = SEARCHING if "num_beams" in fields else ()
    return {name: fields[name] for name in (*drawing, *searching, *ANYWAY) if name in fields}
