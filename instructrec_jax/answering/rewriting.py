"""Texts rewritten by networks: words filled in by a masked language model, back-translation, paraphrases.

A `Rewriter` gets texts, and a key for the random numbers of each, and gives as many texts.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.augmentation.augmenter import AugmentConfig, Augmenter, random_numbers
from instructrec_jax.augmentation.edits import joined
from instructrec_jax.augmentation.protection import NEGATIONS
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.evaluation.predictor import make_predict
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.model import backbone_folder
from instructrec_jax.runs.predictions import fields_of, only_column
from instructrec_jax.runs.run import Run, is_run, run_settings
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.tasks import MaskedLMConfig
from instructrec_jax.tasks.answers import TextAnswer
from instructrec_jax.tasks.generation.writing_config import WritingConfig
from instructrec_jax.tasks.texts import tokenize
from instructrec_jax.training.state import Tree

GUESSES = 10  # likeliest tokens that a word is drawn from
APERTIUM = re.compile(
    r"[a-z]{2,3}(_[A-Za-z]+)?-[a-z]{2,3}(_[A-Za-z]+)?"
)  # a pair of languages, as apertium -l lists it
INSTRUCTION = "Say the following text in other words. Answer with the new text only.\n\n"
LONGEST = 512  # tokens of a text that a folder translates
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Source:
    """A text to rewrite.

    Attributes:
      key: of its random numbers.
      words, quoted: which stay, see `Augmenter.change`.
      fixed: numbers of tokens that stay.
    """

    text: str
    key: tuple[str, ...]
    words: frozenset[str] = frozenset()
    quoted: tuple[str, ...] = ()
    fixed: frozenset[int] = frozenset()


class Rewriter(Protocol):
    def __call__(self, sources: Sequence[Source]) -> list[str]: ...


# ---------------------------------------------------------------- a masked language model


@dataclass
class MaskFiller:
    """Words are masked with probability `rate`, and each is drawn among the likeliest ones that the network has there.

    Numbers, names and the other protected words are never masked. One token stands for one word, so the number of
    words stays.

    Raises ValueError for a folder without a masked language model.
    """

    path: Path
    rate: float
    config: AugmentConfig = field(default_factory=AugmentConfig)  # what is protected

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"--mask_fill {self.rate}: a rate is a share of words, above 0 and at most 1.")
        if is_run(self.path):
            self._run = Run.open(self.path, ["--data.truncate", "drop"])
        else:  # in full length; longer texts stay as they are
            plain = settings_of(str(self.path))
            data = replace(plain.data, truncate="drop")
            self._run = Run.open(self.path, replace(plain, task=MaskedLMConfig(), data=data))
        if self._run.kind != "masked_lm":
            raise ValueError(f"--fill_with {self.path} has the task {self._run.kind}, but should be a masked_lm.")
        model, context = self._run.model, self._run.task.context
        if any(name.startswith("dense") for name in model.source.report.initialized):
            raise ValueError(f"--fill_with {self.path} has no head of a masked language model: name another folder.")
        self._context = context

        @jax.jit
        def step(params: Tree, batch: Batch) -> jax.Array:
            network: Any = nnx.merge(model.graphdef, params)
            table, bias = network.head.output(network.backbone)
            logits = network.head.transform(network.hidden(batch), None) @ table.T + (0.0 if bias is None else bias)
            return jax.lax.top_k(logits, GUESSES)[1].astype(jnp.float32)  # exact up to 2 ** 24

        self._predict = make_predict(
            step, model.params, mesh=self._run.mesh, buckets=length_buckets(context.max_length), per_token=True
        )
        self._marks = Augmenter(self.config)

    def __call__(self, sources: Sequence[Source]) -> list[str]:
        tokenizer = self._context.tokenizer
        masked, chosen, draws = [], [], []
        for source in sources:
            draw = random_numbers(*source.key, "mask_fill")
            front, tokens = self._marks.tokens(
                source.text, words=source.words, quoted=source.quoted, fixed=source.fixed
            )
            places = [n for n, token in enumerate(tokens) if token.free and draw() < self.rate]
            hidden = [t.with_core(tokenizer.mask_token) if n in places else t for n, t in enumerate(tokens)]
            masked.append(front + joined(hidden))
            chosen.append((front, tokens, places))
            draws.append(draw)
        asked = [number for number, (_, _, places) in enumerate(chosen) if places]
        if not asked:
            return [source.text for source in sources]
        names = [f"text {number + 1}" for number in asked]
        texts = tokenize([masked[number] for number in asked], names, self._context)
        there = {n: text for n, text in zip(asked, texts, strict=True) if text is not None}
        outputs = dict(zip(there, self._predict(list(there.values())), strict=True))
        found = []
        for number, (source, (front, tokens, places), draw) in enumerate(zip(sources, chosen, draws, strict=True)):
            if number not in there:
                found.append(source.text)
                continue
            at = np.flatnonzero(there[number].tokens == tokenizer.mask_token_id)
            if len(at) == len(places):  # the text was not cut
                for place, guesses in zip(places, outputs[number][at].astype(int), strict=True):
                    if words := self._words(guesses, tokens[place].core):
                        tokens[place] = tokens[place].with_core(words[int(draw() * len(words))])
            found.append(front + joined(tokens))
        return found

    def _words(self, tokens: np.ndarray, old: str) -> list[str]:
        """Whole words among tokens, other than the old one and no negations."""
        tokenizer = self._context.tokenizer
        whole = [token for token in tokenizer.convert_ids_to_tokens(tokens.tolist()) if not token.startswith("##")]
        found = [tokenizer.convert_tokens_to_string([token]).strip() for token in whole]
        return [word for word in found if _WORD.fullmatch(word) and word.lower() not in {old.lower(), *NEGATIONS}]


# ---------------------------------------------------------------- there and back


@dataclass
class BackTranslator:
    """Texts translated there and back, by runs of ours, HuggingFace folders, or Apertium's pairs ("eng-spa").

    Raises ValueError for a run that writes no text, and for a pair that Apertium does not have.
    """

    there: str
    back: str

    def __post_init__(self) -> None:
        self._steps = [translator(each) for each in (self.there, self.back)]

    def __call__(self, sources: Sequence[Source]) -> list[str]:
        texts = [source.text for source in sources]
        for translate in self._steps:
            asked = [number for number, text in enumerate(texts) if text.strip()]  # on the way back, some may be blank
            made = dict(zip(asked, translate([texts[n] for n in asked]) if asked else [], strict=True))
            texts = [made.get(number, "") for number in range(len(texts))]
        return texts


def translator(name: str) -> Callable[[Sequence[str]], list[str]]:
    """Texts -> translations, by a run, a folder, or a pair of languages of Apertium."""
    if APERTIUM.fullmatch(name) and not Path(name).exists():
        return _apertium(name)
    run = translating_run(name)
    asker, column = run.asker(many=True), only_column(fields_of(run.config))

    def translate(texts: Sequence[str]) -> list[str]:
        examples = [asker.example({column: text}, f"text {number}") for number, text in enumerate(texts, 1)]
        answers, _ = asker.answers(examples, skip=True)  # without those that are too long
        return [answer.text if isinstance(answer, TextAnswer) and answer.text.strip() else "" for answer in answers]

    return translate


def translating_run(name: str) -> Run:
    """A run or folder that writes a translation of a text as long as it reads, so that none is cut off.

    Raises ValueError for a run that writes no text.
    """
    config = run_settings(name, [] if is_run(name) else ["--task.type", "translation"], default=None)
    task, data = config.task, config.data
    if not task.answers_are_text:
        raise ValueError(f"--back_translation {name} has the task {task.name}, which writes no translations.")
    if not is_run(name):
        data = replace(data, max_length=min(LONGEST, input_limit(read_config(backbone_folder(name)))))
    if isinstance(task, WritingConfig):
        task = replace(task, max_new_tokens=max(task.max_new_tokens, data.max_length))
    return Run.open(name, replace(config, task=task, data=data))


def _apertium(pair: str) -> Callable[[Sequence[str]], list[str]]:
    program = shutil.which("apertium")
    if program is None:
        raise ValueError(
            f"--back_translation {pair}: Apertium is not installed. Install Debian's apertium and a pair, such as "
            "apertium-eng-spa, or name a run."
        )
    known = subprocess.run([program, "-l"], capture_output=True, text=True, check=False).stdout.split()
    if pair not in known:
        raise ValueError(f"--back_translation {pair}: Apertium has the pairs {', '.join(known) or '(none)'}.")

    def translate(texts: Sequence[str]) -> list[str]:
        lines = "".join(" ".join(text.split()) + "\n" for text in texts)
        made = subprocess.run([program, "-u", pair], input=lines, capture_output=True, text=True, check=False)
        found = made.stdout.splitlines()
        if made.returncode or len(found) != len(texts):
            raise ValueError(f"apertium {pair} failed: {made.stderr.strip()[:200] or f'{len(found)} lines came back'}.")
        return found

    return translate


# ---------------------------------------------------------------- a language model


@dataclass
class Paraphraser:
    """Texts in other words, sampled from a language model that follows instructions.

    Raises ValueError for a run that does not write text.
    """

    path: Path
    seed: int
    temperature: float = 0.8

    def __post_init__(self) -> None:
        self._model = LanguageModel(self.path)

    def __call__(self, sources: Sequence[Source]) -> list[str]:
        longest = max(len(self._model.tokenizer(source.text)["input_ids"]) for source in sources)
        seed = int(random_numbers(str(self.seed), *sources[0].key)() * 2**31)
        config = GenerationConfig(max_new_tokens=2 * longest + 16, temperature=self.temperature, top_p=0.9, seed=seed)
        made = self._model.generate([INSTRUCTION + source.text for source in sources], config, progress=True)
        return [_unquoted(each.text) for each in made]


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] + text[-1] in ('""', "“”") else text
