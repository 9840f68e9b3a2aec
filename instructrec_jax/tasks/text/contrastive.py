"""Images and captions as vectors: contrastive tuning of CLIP and SigLIP, retrieval, and zero-shot classification."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.losses import sigmoid_of_pairs, softmax_of_pairs
from instructrec_jax.adapters.pair_head import PairHead, start_for_sigmoid
from instructrec_jax.backbones.image_text import ImageText
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, Text, TextNumbers
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import question, render, shown_input
from instructrec_jax.metrics.ranking import Ranks, hit_rate
from instructrec_jax.tasks.answers import ChoiceAnswer, Shown
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, in_microbatches, name_of
from instructrec_jax.tasks.captions import Captions, beside_image
from instructrec_jax.tasks.encoded_store import chosen
from instructrec_jax.tasks.images import read_images
from instructrec_jax.tasks.objective import Choice, Objective, contrast, refuse_word
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.text.nearest_pairs import compared, shown_pairs
from instructrec_jax.tasks.text.option_scoring import Options, choices, option_scores
from instructrec_jax.tasks.text.text_config import SLOT, ContrastiveConfig

CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries compared with all captions (or images) at once


@storable
@dataclass(frozen=True)
class PairTarget:
    """What belongs to the image: a caption or a label. `picture`: the hash of the image's file."""

    said: str
    picture: str


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch.

    Attributes:
      places: [examples], the texts of the pairs.
      captions, pictures: int32 [examples], equal for pairs with the same caption, or the same image.
    """

    places: TextNumbers
    captions: PerExample
    pictures: PerExample


class ContrastiveTask(Task):
    """An image and its caption are one text of a row: the words, then the image's token, which words do not see.

    Its loss compares all pairs of the batch, on all devices and in all micro-batches; see `in_microbatches`. Pairs with
    the same caption or the same image are no negatives of each other.
    """

    couples_examples = True
    case_measure = "probability"

    def __init__(self, config: ContrastiveConfig, context: TaskContext):
        _check(config)
        self.config, self.context, self.labels = config, context, config.labels
        self.metric = "accuracy" if config.labels else "caption@1"
        self._captions = Captions.of(context)
        self.spec = self._captions.spec
        self.is_sigmoid = config.loss == "sigmoid" or (config.loss == "auto" and self.spec.logit_bias)

    def model(self, source: Source) -> Model:
        backbone = source.backbone
        assert isinstance(backbone, ImageText)
        if self.is_sigmoid and (backbone.logit_bias is None or source.path is None):
            return Model(backbone, start_for_sigmoid(backbone, self.context.batch_size or 2))
        return Model(backbone, PairHead(capped=not self.is_sigmoid))

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        targets = [self._target(example, name) for example, name in zip(examples, names, strict=True)]
        self._tokens([one for e in examples for one in e.candidates], "the candidate {!r}")  # raises for unusable ones
        read = self.context.pixels
        assert read is not None
        list(read_images([replace(question(e), instruction="") for e in examples], names, self.context, read))
        written = [self.config.captions(target.said)[0] for target in targets]
        captions = dict(zip(dict.fromkeys(written), self._tokens(list(dict.fromkeys(written))), strict=True))
        return [
            Encoded(beside_image(text, TextImages.alone(example.images, read)), target, example)
            for example, target, caption in zip(examples, targets, written, strict=True)
            if (text := captions[caption]) is not None
        ]

    def _target(self, example: Example, name: str) -> PairTarget:
        """Raises ValueError for an example that is no image with a caption or label."""
        if len(example.images) != 1:
            raise ValueError(f"{name}: it has {len(example.images)} images, but a pair is one image and one caption.")
        if render(example):
            raise ValueError(
                f"{name}: it has the words {render(example)[:60]!r} beside its image: name the column of captions (or "
                "labels) as fields.output, and set fields.instruction and fields.input to null."
            )
        said = example.output
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"{name}: its caption (fields.output) is {said!r}, but should be one text.")
        listed = self.labels or example.candidates
        if listed and said not in listed:
            raise ValueError(f"{name}: its output {said!r} is not one of its candidates: {', '.join(listed[:10])}.")
        return PairTarget(said, example.images[0].digest)

    def _tokens(self, captions: Sequence[str], name: str = "the caption {!r}") -> list[Text | None]:
        return self.captions(captions, [name.format(caption) for caption in captions])

    def captions(self, captions: Sequence[str], names: Sequence[str]) -> list[Text | None]:
        """Captions, which errors call by their `names`, as the text network reads them; None: dropped as too long."""
        return self._captions.tokens(captions, names)

    def gather(self, encoded: Sequence[Encoded[PairTarget]], rng: np.random.Generator) -> BatchTexts:
        def numbers(values: list[str]) -> np.ndarray:
            return np.unique(values, return_inverse=True)[1].astype(np.int32)

        captions = numbers([e.target.said for e in encoded])
        pairs = Pairs(np.arange(len(encoded)), captions, numbers([e.target.picture for e in encoded]))
        return BatchTexts([e.text for e in encoded], pairs)

    # ---------------------------------------------------------------- device

    def _vectors(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch.texts.segment_ids, batch.images, max_segments(hidden.shape[1]))

    def loss(self, model: Network, batch: Batch[Pairs], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        vectors = in_microbatches(self._vectors, model, batch.without_own, inputs)
        own = batch.own
        vectors = vectors.reshape(-1, *vectors.shape[2:])[own.places]
        logits = model.head.logits(model.backbone, vectors[:, 0], vectors[:, 1])
        captions, pictures = jnp.asarray(own.captions), jnp.asarray(own.pictures)
        alike = (captions[:, None] == captions) | (pictures[:, None] == pictures)
        losses = (sigmoid_of_pairs if self.is_sigmoid else softmax_of_pairs)(logits, alike)
        return losses.sum(), jnp.float32(len(losses))

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, segments, 2, width]: vectors of caption and image, whose products are logits less the bias."""
        return self._vectors(model, batch, None) * jnp.sqrt(model.head.scale(model.backbone))

    # ---------------------------------------------------------------- scores

    def unanswered(self, example: Example) -> Example:
        listed = self.labels or example.candidates
        if not listed:
            raise ValueError(
                "the record has no captions to choose from: list them in its field candidates, or set task.labels."
            )
        return replace(question(example), output=listed[0])

    def check(self, encoded: Sequence[Encoded[PairTarget]]) -> None:
        self._chooses(encoded)

    def _chooses(self, encoded: Sequence[Encoded[PairTarget]]) -> bool:
        """Whether cases choose among labels or candidates of their own, instead of all captions of the evaluation."""
        own = {bool(e.example.candidates) for e in encoded}
        if not self.labels and len(own) > 1:
            raise ValueError("some examples have candidates and others do not: evaluate them as two sources.")
        return bool(self.labels) or True in own

    def answers(self, predict: Predict, encoded: Sequence[Encoded[PairTarget]], k: int = 10) -> list[ChoiceAnswer]:
        options = [self._options(e) for e in encoded]
        return choices(encoded, options, self._logits(predict, encoded, options))

    def objectives(self, predict: Predict, encoded: Encoded[PairTarget], choice: Choice) -> list[Objective]:
        """The logit, less its bias, of a candidate (by default the nearest), less that of another.

        The patches of the image are explained; the vectors of candidates are constants.
        """
        refuse_word(choice)
        options = self._options(encoded)
        vectors = self.caption_vectors(predict, options.names)
        (output,) = (each for _, each in predict.over([encoded]))
        predicted = int((vectors @ output[1].astype(np.float64)).argmax())
        target, against = contrast(choice, options.names, predicted, "candidate")
        weights = np.zeros(output.shape, np.float32)
        weights[1] = vectors[target] if against is None else vectors[target] - vectors[against]
        other = None if against is None else options.names[against]
        return [Objective(options.names[target], other, "logit", lambda _: weights, lambda _: ())]

    def score(self, predict: Predict, encoded: Sequence[Encoded[PairTarget]]) -> Scores:
        if not self._chooses(encoded):
            outputs = np.stack([output for _, output in predict.over(encoded)]).astype(np.float64)
            return _retrieval_scores(encoded, outputs)
        options = [self._options(e) for e in encoded]
        logits = self._logits(predict, encoded, options)
        return option_scores(encoded, options, logits, self.labels, "by cosine")

    def baselines(self, train: Sequence[Encoded[PairTarget]], test: Sequence[Encoded[PairTarget]]) -> dict[str, Scores]:
        """Chance: the expectation where all similarities are equal."""
        if not self._chooses(test):
            found = _retrieval_scores(test, np.zeros((len(test), 2, 1)))
        else:
            options = [self._options(e) for e in test]
            found = option_scores(test, options, [np.zeros(len(o.names)) for o in options], (), "")
        metrics = {name: found.metrics[name] for name in found.cases}
        return {"chance": Scores(metrics, found.cases, owners=found.owners)}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded[PairTarget]]) -> list[Shown]:
        """Where the captions of all cases are the candidates: what is nearest among up to `COMPARED` of them."""
        if self._chooses(encoded):
            return super().showcase(predict, encoded)
        numbers, places = compared(len(encoded), self.context.seed)
        some = chosen(encoded, numbers)
        return shown_pairs(some, np.stack([output for _, output in predict.over(some)]).astype(np.float64), places)

    def _options(self, e: Encoded[PairTarget]) -> Options:
        names = tuple(dict.fromkeys(self.labels or e.example.candidates))
        return Options(names, names, names.index(e.target.said), own=True)

    def _logits(
        self, predict: Predict, encoded: Sequence[Encoded[PairTarget]], options: Sequence[Options]
    ) -> list[np.ndarray]:
        """float64 [candidates] of each case, less the bias of similarities."""
        names = list(dict.fromkeys(name for option in options for name in option.names))
        vectors = dict(zip(names, self.caption_vectors(predict, names), strict=True))
        every: dict[tuple[str, ...], np.ndarray] = {}
        found = []
        for option, (_, output) in zip(options, predict.over(encoded), strict=True):
            if option.names not in every:
                every = {option.names: np.stack([vectors[name] for name in option.names])}
            found.append(every[option.names] @ output[1].astype(np.float64))
        return found

    def caption_vectors(self, predict: Predict, names: Sequence[str]) -> np.ndarray:
        """float64 [names, width], in the scale of `predict`: of a label the normalized mean over the templates.

        (Radford et al., 2021, section 3.1.4.) Raises ValueError for a text that `data.truncate: drop` drops.
        """
        captions = [self.config.captions(name) for name in names]
        flat = [caption for each in captions for caption in each]
        texts = [text for text in self._tokens(flat) if text is not None]
        if len(texts) < len(flat):
            raise ValueError("captions to choose from cannot be dropped as too long: raise data.max_length.")
        outputs = np.stack(predict(texts))[:, 0].astype(np.float64)
        means = outputs.reshape(len(names), -1, outputs.shape[-1]).mean(1)
        size = np.linalg.norm(outputs[0])
        return means * size / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)


def _check(config: ContrastiveConfig) -> None:
    """Raises ValueError for settings that name no captions."""
    if config.labels and (len(config.labels) < 2 or len(set(config.labels)) != len(config.labels)):
        raise ValueError(f"task.labels should list at least two different label names, but is {config.labels}.")
    if not config.templates or not all(SLOT in each for each in config.templates):
        raise ValueError(f"task.templates should be captions with {SLOT} in them, but are {config.templates}.")


# ---------------------------------------------------------------- retrieval


def _retrieval_scores(encoded: Sequence[Encoded[PairTarget]], outputs: np.ndarray) -> Scores:
    """Recall of the captions of an image among all captions, and of the images of a caption among all images.

    Equal captions (and equal images) are one candidate. With several right ones, one of them counts.

    Args:
      outputs: float64 [cases, 2, width], as `ContrastiveTask.predict` gives them.
    """
    said, pictures = ([getattr(e.target, name) for e in encoded] for name in ("said", "picture"))
    captions, first_caption, caption = np.unique(said, return_index=True, return_inverse=True)
    _, first_picture, picture = np.unique(pictures, return_index=True, return_inverse=True)
    texts, images = outputs[first_caption, 0], outputs[first_picture, 1]
    by_picture = _ranks(images, texts, picture, caption)
    by_caption = _ranks(texts, images, caption, picture)
    cases = {f"caption@{k}": hit_rate(by_picture, k)[picture] for k in CUTOFFS}
    cases |= {f"image@{k}": hit_rate(by_caption, k)[caption] for k in CUTOFFS}

    def record(e: Encoded[PairTarget], place: int) -> dict[str, object]:
        logits = texts @ images[place]
        best = int(logits.argmax())
        asked = {"id": e.example.id, "input": shown_input(e.example), "reference": e.target.said}
        return asked | {"prediction": str(captions[best]), "probability": float(scipy.special.softmax(logits)[best])}

    metrics = {name: float(values.mean()) for name, values in cases.items()}
    protocol = f"among {len(captions):,} captions and {len(first_picture):,} images"
    owners = picture if len(first_picture) < len(encoded) else None
    scores = Scores(metrics, cases, Mapped(record, encoded, picture.tolist()), protocol=protocol)
    return scores.owned_by(owners)


def _ranks(queries: np.ndarray, items: np.ndarray, case: np.ndarray, positive: np.ndarray) -> Ranks:
    """Ranks of items[positive] for queries[case]; equal pairs count once. case, positive: int [pairs]."""
    case, positive = np.unique(np.stack([case, positive]), axis=1)
    better, tied = [], []
    for first in range(0, len(case), BLOCK):
        part = slice(first, first + BLOCK)
        scores = queries[case[part]] @ items.T
        if np.isnan(scores).any():
            raise ValueError("similarities hold NaN: the model may have diverged.")
        own = np.take_along_axis(scores, positive[part][:, None], axis=1)
        better.append((scores > own).sum(1))
        tied.append((scores == own).sum(1) - 1)
    return Ranks(np.concatenate(better), np.concatenate(tied), case)
