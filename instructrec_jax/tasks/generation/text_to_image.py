"""Text to image: a language model writes the codes of an image tokenizer, as DALL·E does (Ramesh et al., 2021).

The codes are tokens `<code_N>` of the language model's tokenizer or, of an encoder–decoder that draws (DalleBart),
those of its decoder's own vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.layers import DropoutKeys, keep_mask, segment_keys
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.media.drawing import data_uri, picture_file
from instructrec_jax.data.media.picture import Picture, picture
from instructrec_jax.data.prompts import question, render
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.ranking import Ranks, hit_rate
from instructrec_jax.tasks.answers import ImageAnswer, Shown, ShownOutput
from instructrec_jax.tasks.base import Encoded, LossInputs, Network, Task, TaskContext, name_of
from instructrec_jax.tasks.generation.caption_text import normalized
from instructrec_jax.tasks.generation.image_codec import FOLDER, CodeTexts, ImageCodec, text_of_codes
from instructrec_jax.tasks.generation.image_judge import CANDIDATES, ImageJudge
from instructrec_jax.tasks.generation.language_model import LanguageModelTask, NextTokens
from instructrec_jax.tasks.generation.writing_config import TextToImageConfig
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.targets import TokenLabels

BLANK_SITE = 1 << 22  # of the keys that choose blank prompts: no backbone, head or LoRA has this site
CUTOFFS = (1, 5)
SHOWN = 16


class TextToImageTask(LanguageModelTask):
    """The answer to an instruction is the text of an image's codes: one token `<code_N>` for each."""

    config: TextToImageConfig
    learns_images = True
    outputs_are = None

    def __init__(self, config: TextToImageConfig, context: TaskContext):
        super().__init__(config, context)
        if not 0 <= config.blank_prompts < 1:
            raise ValueError(f"task.blank_prompts should be from 0 to below 1, but is {config.blank_prompts}.")
        if config.train_on == "all":
            raise ValueError("task.train_on all is for texts: set completions, to learn the codes of images.")
        assert context.folder is not None
        self.codec = ImageCodec.find(context.folder, config.tokenizer)
        self.normalizes = bool(getattr(read_config(context.folder), "normalize_text", False))
        own = context.answer_vocabulary
        if own is None:
            self.first_code = self._first_code()
            self.blank = self._blank() if config.blank_prompts else None
        else:
            self._draw_with(own)
        last = self.first_code + self.codec.spec.code_count
        words = range(own or context.vocab_size or len(self.tokenizer))
        self.suppressed = tuple(n for n in words if not self.first_code <= n < last)
        if self.blank is None and config.guidance_scale != 1:
            raise ValueError(
                f"task.guidance_scale is {config.guidance_scale:g}, but task.blank_prompts is 0, so the network never "
                "learns without prompts: set guidance_scale to 1, or blank_prompts to 0.1."
            )
        self.generation = self.drawing(
            GenerationConfig(
                temperature=config.temperature, guidance_scale=config.guidance_scale, seed=context.seed, batch_size=32
            )
        )

    def _blank(self) -> int:
        pad = self.tokenizer.pad_token_id
        blank: int | None = self.tokenizer.eos_token_id if pad is None else pad
        if blank is None:
            raise ValueError("the tokenizer has neither a pad_token nor an eos_token for blank prompts: add one.")
        return blank

    def _draw_with(self, vocabulary: int) -> None:
        """Notes that codes are tokens of the decoder's own vocabulary, whose images have no end.

        Its blank prompt is that of dalle-mini, the empty text, whatever the length of the prompt.
        """
        spec, limit = self.codec.spec, self.context.answer_limit or 0
        if spec.codes != limit or spec.code_count >= vocabulary:
            raise ValueError(
                f"{self.codec.folder} makes {spec.codes:,} codes of an image, of {spec.code_count:,}, but the network "
                f"writes {limit:,} of up to {vocabulary - 1:,} (image_length and image_vocab_size in config.json): "
                "name the image tokenizer that it was trained with."
            )
        if self.config.max_target_length not in (None, spec.codes):
            raise ValueError(
                f"task.max_target_length is {self.config.max_target_length}, but an image has {spec.codes:,} codes: "
                "leave it out."
            )
        self._longest_target = self.max_target_length = spec.codes
        self.answer_texts, self.first_code = CodeTexts(), 0
        self.blank = tuple(self.tokenizer("")["input_ids"])
        if not self.blank:
            raise ValueError("the tokenizer makes no tokens of an empty text, which stands for blank prompts.")

    @cached_property
    def judge(self) -> ImageJudge | None:
        """Opened where pictures are scored, so that a run draws without it."""
        return ImageJudge.of(self.config.judge) if self.config.judge else None

    def check(self, encoded: Sequence[Encoded]) -> None:
        super().check(encoded)
        _ = self.judge  # a wrong folder is said before training

    def _first_code(self) -> int:
        """The token of code 0, which those of the others follow. Raises ValueError for a tokenizer without them."""
        count, vocabulary = self.codec.spec.code_count, self.tokenizer.get_vocab()
        first = vocabulary.get("<code_0>", -1)
        size = self.context.vocab_size or len(vocabulary)
        if any(vocabulary.get(f"<code_{n}>") != first + n for n in range(count)) or first + count > size:
            raise ValueError(
                f"the network needs a token for each of the {count:,} codes of {self.codec.folder}, <code_0> to "
                f"<code_{count - 1}>, one after the other: add them with tokenizer.add_tokens([...]) and save it, and "
                f"raise vocab_size in config.json (now {size:,}) to the tokenizer's {len(vocabulary):,} or more tokens."
            )
        return first

    def encoding_depends_on(self) -> dict[str, object]:
        return {"image tokenizer": self.codec.fingerprint}

    @property
    def kept_folders(self) -> Mapping[str, Path]:
        return {FOLDER: self.codec.folder}

    def drawing(self, config: GenerationConfig) -> GenerationConfig:
        """The settings with the number of tokens of an image."""
        return replace(config, max_new_tokens=self.codec.spec.codes)

    # ---------------------------------------------------------------- codes as text

    @property
    def ends(self) -> tuple[int, ...]:
        return super().ends if self.context.answer_vocabulary is None else ()

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        if self.context.answer_vocabulary is None:
            return super().answer_tokens(answers)
        return [self.codes_in(text) for text in answers]

    def prompt_of(self, example: Example) -> str:
        text = super().prompt_of(example)
        return normalized(text) if self.normalizes else text

    def written(self, codes: Sequence[int] | np.ndarray) -> str:
        return text_of_codes(np.asarray(codes).tolist())

    def codes_in(self, text: str) -> list[int]:
        """The inverse of `written`. Raises ValueError for another text."""
        codes = [int(code) for code in re.findall(r"<code_(\d+)>", text)]
        if len(codes) != self.codec.spec.codes or max(codes) >= self.codec.spec.code_count:
            raise ValueError(f"{text[:60]!r} is not the text of an image's {self.codec.spec.codes} codes.")
        return codes

    def encode(self, examples: Sequence[Example]) -> list[Encoded[NextTokens]]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        drawn = [self._image(example, name) for example, name in zip(examples, names, strict=True)]
        codes = iter(self.codec.codes([one for one in drawn if one is not None]))
        trained = [
            replace(e, images=(), id=e.id or str(number), output=e.output if one is None else self.written(next(codes)))
            for number, (e, one) in enumerate(zip(examples, drawn, strict=True))
        ]
        own = {id(one): example for one, example in zip(trained, examples, strict=True)}
        return [replace(e, example=own[id(e.example)]) for e in super().encode(trained)]

    def _image(self, example: Example, name: str) -> Picture | None:
        """The target; None where the output has its codes already. Raises ValueError, with the example's name.

        A prompt that cannot be normalized is met here, too.
        """
        try:
            if self.normalizes:
                normalized(example.instruction)
            if example.images:
                if len(example.images) > 1:
                    raise ValueError(f"it has {len(example.images)} pictures, but one is drawn: make rows of them.")
                if example.output is not None:
                    raise ValueError("it has a picture and an output: set fields.output to null.")
                self.codec.read(example.images[0])
                return example.images[0]
            if not isinstance(example.output, str):
                raise ValueError("it has no picture (fields.image) to learn.")
            self.codes_in(example.output)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return None

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), images=(), output=self.written([0] * self.codec.spec.codes))

    # ---------------------------------------------------------------- loss

    def loss(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        return super().loss(model, self.blanked(batch, inputs.dropout), inputs)

    def soft_outputs(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> list[SoftOutputs]:
        return super().soft_outputs(model, self.blanked(batch, inputs.dropout), inputs)

    def blanked(self, batch: Batch[TokenLabels], keys: DropoutKeys | None) -> Batch[TokenLabels]:
        """The batch with blank prompts: whether a text's is depends on its dropout key, so on (seed, step, example).

        A blank prompt has the length of the prompt, so what the network learns without prompts still depends on that.
        One that is an empty text stands at the prompt's beginning, and the rest becomes padding.
        """
        if keys is None or self.blank is None:
            return batch
        texts = batch.texts
        segments = jnp.asarray(texts.segment_ids)
        own = segment_keys(keys.fold(BLANK_SITE), segments, batch.text_numbers.shape[1])
        is_blank = ~keep_mask(own.tokens, self.config.blank_prompts)
        is_blank = jnp.take_along_axis(is_blank, jnp.maximum(segments - 1, 0), axis=1) & (segments > 0)
        tokens = jnp.asarray(texts.tokens)
        if not isinstance(self.blank, int):  # an encoder's texts, which have no codes
            empty, places = jnp.array(self.blank, jnp.int32), jnp.asarray(texts.positions)
            fits = places < len(empty)
            tokens = jnp.where(is_blank & fits, empty[jnp.minimum(places, len(empty) - 1)], tokens)
            segments = jnp.where(is_blank & ~fits, 0, segments)
            return replace(batch, texts=replace(texts, tokens=tokens, segment_ids=segments))
        place = tokens - self.first_code
        is_code = (place >= 0) & (place < self.codec.spec.code_count)
        return replace(batch, texts=replace(texts, tokens=jnp.where(is_blank & ~is_code, self.blank, tokens)))

    # ---------------------------------------------------------------- answers and scores

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[ImageAnswer]:
        asked = [text.tokens for text in self.asked(encoded)]
        written = predict.write(asked, self.generation)
        drawn = self.codec.draw([self.codes_in(each.text) for each in written])
        return [ImageAnswer(values, each.log_probability) for values, each in zip(drawn, written, strict=True)]

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        return Task.objectives(self, predict, encoded, choice)

    def score(self, predict: Predict, encoded: Sequence[Encoded[NextTokens]]) -> Scores:
        """Loss and accuracy of codes; with `task.judge`, also whether it finds the captions of drawn pictures."""
        known = super().score(predict, encoded)
        if self.judge is None:
            return known
        answers = self.answers(predict, encoded)
        found = self._judged([picture(picture_file(each.values)) for each in answers], encoded)
        guide = f"guidance_scale {self.config.guidance_scale:g}, temperature {self.config.temperature:g}"

        def record(old: Mapping[str, object], said: ImageAnswer, hit: float) -> dict[str, object]:
            return {**old, **said.to_record(), "caption@1": float(hit)}

        return replace(
            known,
            metrics=found.metrics | known.metrics,
            cases=known.cases | found.cases,
            predictions=Mapped(record, known.predictions, answers, found.cases["caption@1"]),
            protocol=f"drawn with {guide}; {found.protocol}",
            compared=["caption@1"],
        )

    def _judged(self, pictures: Sequence[Picture], encoded: Sequence[Encoded]) -> Scores:
        assert self.judge is not None
        return self._hits(self.judge.ranks(pictures, [render(e.example) for e in encoded], self.context.seed), encoded)

    def _hits(self, ranks: Ranks, encoded: Sequence[Encoded]) -> Scores:
        cases = {f"caption@{k}": hit_rate(ranks, k) for k in CUTOFFS}
        count = min(CANDIDATES, len({render(e.example) for e in encoded}))
        metrics = {name: float(values.mean()) for name, values in cases.items()}
        return Scores(metrics, cases, protocol=f"captions found by {self.config.judge} among {count}")

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Those of language models, of the codes; with `task.judge` also chance, and the pictures of the cases."""
        found = super().baselines(train, test)
        if self.judge is None:
            return found
        others = min(CANDIDATES, len({render(e.example) for e in test})) - 1
        chance = Ranks(np.zeros(len(test), np.int64), np.full(len(test), others))
        found["chance"] = self._hits(chance, test)
        if all(e.example.images for e in test):
            given = [e.example.images[0] for e in test]
            found["the given pictures"] = self._judged(given, test)
            codes = self.codec.codes(given)
            kept = [picture(picture_file(values)) for values in self.codec.draw(codes)]
            found["the given pictures, through codes"] = self._judged(kept, test)
        return found

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[Shown]:
        """Drawings of random examples, beside the given pictures."""
        drawn = self.drawn(encoded, SHOWN)
        return [self._shown(e.example, said) for e, said in zip(drawn, self.answers(predict, drawn), strict=True)]

    def _shown(self, example: Example, said: ImageAnswer) -> Shown:
        answer: ShownOutput = {
            "text": "drawn",
            "score": said.log_probability,
            "measure": "log-probability",
            "picture": data_uri(said.values),
        }
        shown: Shown = {"instruction": render(example), "wanted": None, "answers": [answer]}
        if example.images:
            (values,) = self.codec.draw(self.codec.codes(example.images))
            shown["wanted_picture"] = data_uri(values)
        return shown
