"""Settings of generation, and the generation rules of a checkpoint (its special tokens)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from instructrec_jax.files import read_json
from instructrec_jax.hf_types import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GenerationConfig:
    """How the tokens of an answer are chosen; names and meanings follow `transformers`."""

    max_new_tokens: int = 256  # maximum number of tokens in an answer
    temperature: float = 0.0  # sampling temperature, by which logits are divided; 0: greedy search
    top_k: int | None = None  # sample among the k likeliest tokens
    top_p: float = 1.0  # sample among the fewest likeliest tokens whose total probability reaches top_p
    min_p: float = 0.0  # sample among tokens at least min_p times as likely as the likeliest
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the answer so far become less likely
    guidance_scale: float = 1.0  # of runs that draw: above 1, pictures are closer to the prompt and vary less
    beams: int = 1  # beam width; 1: no beam search
    length_penalty: float = 1.0  # beam search divides an answer's log-probability by tokens ** length_penalty
    stop: tuple[str, ...] = ()  # stop sequences: an answer ends before the first of these texts
    seed: int = 0  # random seed for sampling
    batch_size: int = 8  # prompts per batch

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, requirement: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {requirement}, but is {getattr(self, name)}.")

        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)  # one text, not its letters
        object.__setattr__(self, "stop", stop)
        optional = ("top_k",) if self.top_k is None else ()
        for name in ("max_new_tokens", "top_k", "beams", "seed", "batch_size"):
            check(name in optional or _is_whole(getattr(self, name)), name, "a whole number")
        for name in SCALARS:
            check(isinstance(getattr(self, name), Real), name, "a number")
        check(self.max_new_tokens >= 1, "max_new_tokens", "at least 1")
        check(0 <= self.temperature < float("inf"), "temperature", "0 (greedy search) or a positive number")
        check(self.top_k is None or self.top_k >= 1, "top_k", "at least 1")
        check(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        check(0 <= self.min_p <= 1, "min_p", "in [0, 1]")
        check(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "a positive number (1: none)")
        check(1 <= self.guidance_scale < float("inf"), "guidance_scale", "at least 1 (no guidance)")
        check(self.beams >= 1, "beams", "at least 1")
        check(abs(self.length_penalty) < float("inf"), "length_penalty", "a finite number")
        check(0 <= self.seed < 2**32, "seed", "between 0 and 2**32 - 1")
        check(self.batch_size >= 1, "batch_size", "at least 1")
        check(all(isinstance(text, str) and text for text in stop), "stop", "texts of at least one character")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1 or self.min_p > 0):
            raise ValueError(
                "top_k, top_p and min_p apply to sampling, but temperature is 0 (greedy search): set temperature, to 1 "
                "for example."
            )
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search does not sample: set temperature to 0, or beams to 1.")
        if self.guidance_scale > 1 and (self.beams > 1 or self.repetition_penalty != 1):
            raise ValueError("guidance goes with no beams and no repetition_penalty: set both to 1.")
        if self.beams > 1 and self.stop:
            raise ValueError("beam search does not support stop sequences: remove stop, or set beams to 1.")
        if self.beams == 1 and self.length_penalty != 1:
            raise ValueError("length_penalty applies to beam search only: set beams to 2 or more.")

    def scalars(self) -> dict[str, float]:
        """The numbers passed to compiled programs as arguments."""
        return {name: getattr(self, name) for name in SCALARS}

    def structure(self) -> "GenerationConfig":
        """The part of the config that programs are compiled for: equal structures share a program."""

        def used(name: str, without: float) -> float:
            return without if getattr(self, name) == without else 0.5

        return GenerationConfig(
            temperature=used("temperature", 0.0),
            top_k=self.top_k,
            top_p=used("top_p", 1.0),
            min_p=used("min_p", 0.0),
            repetition_penalty=used("repetition_penalty", 1.0),
            guidance_scale=1.0 if self.guidance_scale == 1 else 2.0,
            beams=self.beams,
        )


SCALARS = ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty", "guidance_scale")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class TokenRules:
    """Special tokens that generation needs from a checkpoint.

    Attributes:
      eos: tokens that end an answer.
      pad: fills the row of a finished answer; the network never attends to it.
      start: decoder start token of an encoder–decoder (not part of the answer).
      forced_first, forced_last: an encoder–decoder's forced first tokens, and its forced token at max_new_tokens.
      suppressed, suppressed_first: tokens never chosen, and never chosen first (after the forced ones).
      blank: what stands for each token of a prompt where an answer is guided away from that to no prompt, or all
        tokens of no prompt; None: the network was not trained on such prompts.
    """

    eos: tuple[int, ...] = ()
    pad: int = 0
    start: int | None = None
    forced_first: tuple[int, ...] = ()
    forced_last: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    blank: int | tuple[int, ...] | None = None


FORCED = "forced_decoder_ids"
# Fields of generation_config.json that change the choice of tokens and are not implemented.
REFUSED = (
    "bad_words_ids",
    "sequence_bias",
    "guidance_scale",
    "exponential_decay_length_penalty",
    FORCED,
    "watermarking_config",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
)
NEUTRAL: tuple[object, ...] = (None, False, 0, 0.0, 1, 1.0, [], {})
# Recommendations of a checkpoint's authors. The user's settings apply instead.
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
SEARCHING = ("num_beams", "length_penalty", "early_stopping")
ANYWAY = ("repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens")


def generation_fields(folder: Path) -> dict[str, object]:
    """Fields of generation_config.json, or of config.json for an (older) checkpoint without that file."""
    file = folder / "generation_config.json"
    return read_json(file if file.is_file() else folder / "config.json", dict[str, object])


def token_rules(
    folder: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    ends: Sequence[int] = (),
    *,
    speech: bool = False,
) -> TokenRules:
    """The token rules of a HuggingFace folder.

    Args:
      config: its `transformers` config.
      kind: "decoder" or "encoder_decoder".
      ends: additional tokens that end an answer, such as a template's end of turn.
      speech: whether the network writes what it hears, see `speech_prefix`.

    Raises:
      ValueError: generation_config.json sets a field that is not implemented, or an encoder–decoder has no start token.
    """
    fields = generation_fields(folder)
    for name in REFUSED:
        if fields.get(name) not in NEUTRAL and not (speech and name == FORCED):
            raise ValueError(
                f"{folder}: the generation settings contain {name}={fields[name]!r}, which is not implemented. "
                "Remove the field to generate without it."
            )

    def ids(*values: object) -> tuple[int, ...]:
        flat = [i for value in values for i in (value if isinstance(value, list | tuple) else [value])]
        numbers = [i for i in flat if isinstance(i, int)]
        if strange := [i for i in flat if i is not None and not isinstance(i, int)]:
            raise ValueError(f"{folder}: the generation settings contain the token {strange[0]!r}, not an integer.")
        return tuple(dict.fromkeys(i for i in numbers if i >= 0))

    def own(name: str) -> object:
        return fields.get(name) if fields.get(name) is not None else getattr(config, name, None)

    def said(name: str) -> object:  # Whisper's config has defaults, which count only without a generation_config.json
        return fields.get(name) if (folder / "generation_config.json").is_file() else own(name)

    eos = ids(fields.get("eos_token_id"), getattr(config, "eos_token_id", None), tokenizer.eos_token_id, list(ends))
    pad = ids(tokenizer.pad_token_id, own("pad_token_id"), list(eos), 0)[0]
    if kind == "decoder":
        forced = [n for n in ("forced_bos_token_id", "forced_eos_token_id") if fields.get(n) is not None]
        if forced:
            raise ValueError(f"{folder} sets {forced[0]}, which is not implemented for decoders. Remove the field.")
        return TokenRules(
            eos, pad, suppressed=ids(said("suppress_tokens")), suppressed_first=ids(said("begin_suppress_tokens"))
        )
    start = ids(own("decoder_start_token_id"))
    if not start:
        raise ValueError(
            f"{folder} has no decoder_start_token_id: set it in config.json to the token that starts the decoder."
        )
    first = speech_prefix(folder, config) if speech else ids(own("forced_bos_token_id"))[:1]
    return TokenRules(
        eos,
        pad,
        start=start[0],
        forced_first=first,
        forced_last=ids(own("forced_eos_token_id")),
        suppressed=ids(said("suppress_tokens")),
        suppressed_first=ids(said("begin_suppress_tokens")),
    )


def speech_prefix(folder: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """The tokens behind the start token of Whisper's answers: of language, task, and "no timestamps", as they apply.

    As transformers takes them from generation_config.json: `language` and `task`, or the older forced_decoder_ids.

    Raises:
      ValueError: a language is to be detected, timestamps are to be written, or the file does not know the language or
        task.
    """
    fields, where = generation_fields(folder), f"{folder}, generation_config.json"
    if fields.get("return_timestamps"):
        raise ValueError(f"{where}: return_timestamps is not implemented: set it to false.")
    language, task = fields.get("language"), fields.get("task")
    prefix = _forced(fields.get(FORCED) or getattr(config, FORCED, None), where) if language is task is None else []
    if language is not None:
        prefix.append(_known(fields, "lang_to_id", _language(str(language)), where))
    elif fields.get("lang_to_id") and prefix[:1] in ([], [None]):
        raise ValueError(
            f"{where}: the network knows several languages, and detecting one is not implemented: set `language`, such "
            "as en."
        )
    if task is not None or (language is not None and fields.get("task_to_id")):
        prefix.append(_known(fields, "task_to_id", str(task or "transcribe"), where))
    last = fields.get("no_timestamps_token_id")
    if last is not None and prefix[-1:] != [last]:
        prefix.append(last)
    tokens = tuple(token for token in prefix if isinstance(token, int))
    if len(tokens) < len(prefix):
        raise ValueError(f"{where}: answers start with {prefix}, which are not all integers.")
    return tokens


def _forced(pairs: object, where: str) -> list[object]:
    """The tokens of forced_decoder_ids, a list of [place, token]."""
    listed = pairs if isinstance(pairs, list | tuple) else []
    forced = [tuple(pair) for pair in listed if isinstance(pair, list | tuple) and len(pair) == 2]
    if [place for place, _ in forced] != list(range(1, len(listed) + 1)):
        raise ValueError(f"{where}: {FORCED} is {pairs!r}, but must be a list of [1, token], [2, token] and so on.")
    return [token for _, token in forced]


def _language(name: str) -> str:
    """Whisper's token of a language: of `english`, `en` or `<|en|>`."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(name.lower(), name)
    return code if code.startswith("<|") else f"<|{code}|>"


def _known(fields: Mapping[str, object], table: str, name: str, where: str) -> object:
    numbers = fields.get(table)
    if not isinstance(numbers, dict) or name not in numbers:
        raise ValueError(f"{where}: {table} has no {name!r}: correct `language` or `task`.")
    return numbers[name]


def recommendations(folder: Path) -> dict[str, object]:
    """The authors' recommendations in generation_config.json that differ from plain greedy search."""
    if not (folder / "generation_config.json").is_file():
        return {}
    fields = {n: v for n, v in generation_fields(folder).items() if v is True or v not in NEUTRAL}
    drawing = ("do_sample", *DRAWING) if "do_sample" in fields else ()  # without it the others have no effect
    searching = SEARCHING if "num_beams" in fields else ()
    return {name: fields[name] for name in (*drawing, *searching, *ANYWAY) if name in fields}
