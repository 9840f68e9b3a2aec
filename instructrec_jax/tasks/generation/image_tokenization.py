"""Image tokenization: an autoencoder learns to write an image as a grid of codes, and to draw it from them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.image_tokenizer import ImageTokenizer, TokenizerSpec, spec_of
from instructrec_jax.backbones.layers import first_tokens
from instructrec_jax.data.batch import Batch, BatchTexts
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.media.drawing import data_uri, shown_values
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import question, shown_input
from instructrec_jax.tasks.answers import CaseRecord, CodesAnswer, Shown
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, name_of
from instructrec_jax.tasks.generation.writing_config import ImageTokenizationConfig
from instructrec_jax.tasks.images import read_images
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores

PROTOCOL = "PSNR of pixels from 0 to 1, rounded to 8 bits, as the network reads them"


class ImageTokenizationTask(Task):
    """Squared error of the drawn pixels; an example is one image."""

    gathers_alone = True
    metric = "PSNR"
    case_measure = "PSNR"

    def __init__(self, config: ImageTokenizationConfig, context: TaskContext):
        self.config, self.context = config, context
        assert isinstance(context.pixels, PixelReader)
        self.read: PixelReader = context.pixels

    @cached_property
    def spec(self) -> TokenizerSpec:
        assert self.context.folder is not None
        return spec_of(read_config(self.context.folder, images=True))

    def model(self, source: Source) -> Model:
        return Model(source.backbone, nnx.Module())

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded[None]]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        for example, name in zip(examples, names, strict=True):
            if len(example.images) > 1:
                raise ValueError(f"{name}: it has {len(example.images)} images, but one is drawn: make rows of them.")
        texts = read_images(examples, names, self.context, self.read)
        return [Encoded(text, None, example) for text, example in zip(texts, examples, strict=True)]

    def gather(self, encoded: Sequence[Encoded[None]], rng: np.random.Generator) -> BatchTexts[None]:
        return BatchTexts([e.text for e in encoded], None)

    # ---------------------------------------------------------------- device

    def loss(self, model: Network, batch: Batch[None], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        assert batch.images is not None
        pixels = batch.images.flat
        drawn, _ = _tokenizer(model).reconstruct(pixels)
        errors = jnp.square(drawn - pixels).mean((1, 2, 3))
        count = batch.images.pixels.shape[1]
        is_there = (jnp.asarray(batch.images.places)[:, None] == jnp.arange(count)[:, None]).any(-1).reshape(-1)
        return jnp.where(is_there, errors, 0.0).sum(), is_there.sum().astype(jnp.float32)

    def predict(self, model: Network, batch: Batch[None]) -> jax.Array:
        """float32 [rows, segments, codes + pixels]: the codes of each image, and the drawn pixels, end to end."""
        assert batch.images is not None
        drawn, codes = _tokenizer(model).reconstruct(batch.images.flat)
        rows, segment_ids = len(batch.images.pixels), jnp.asarray(batch.texts.segment_ids)
        each = jnp.concatenate([codes.astype(jnp.float32), drawn.reshape(len(drawn), -1)], axis=-1)
        first = first_tokens(segment_ids, max_segments(segment_ids.shape[1]))
        images = jnp.maximum(jnp.take_along_axis(jnp.asarray(batch.images.places), first, axis=1), 0)
        return jnp.take_along_axis(each.reshape(rows, -1, each.shape[-1]), images[..., None], axis=1)

    # ---------------------------------------------------------------- answers and scores

    def unanswered(self, example: Example) -> Example:
        return question(example)

    def answers(self, predict: Predict, encoded: Sequence[Encoded[None]], k: int = 10) -> list[CodesAnswer]:
        return [CodesAnswer(self._codes(output)) for _, output in predict.over(encoded)]

    def score(self, predict: Predict, encoded: Sequence[Encoded[None]]) -> Scores:
        """PSNR (dB), the mean over images, and the share of all codes that occur in any of them."""
        codes, ratios = [], []
        for e, output in predict.over(encoded):
            codes.append(list(self._codes(output)))
            ratios.append(psnr(self.values(self._pixels(output)), self.values(self._image(e))))
        found = self._scores(encoded, np.array(ratios), codes)
        used = len(set().union(*codes)) / self.spec.code_count
        found.metrics["codes_used"] = used
        return found

    def _scores(self, encoded: Sequence[Encoded[None]], ratios: np.ndarray, codes: Sequence[object]) -> Scores:
        def record(e: Encoded[None], own: object, ratio: float) -> dict[str, object]:
            return {"id": e.example.id, "input": shown_input(e.example), "prediction": own, "PSNR": float(ratio)}

        records = Mapped(record, encoded, codes, ratios)
        return Scores({"PSNR": float(ratios.mean())}, {"PSNR": ratios}, records, protocol=PROTOCOL)

    def baselines(self, train: Sequence[Encoded[None]], test: Sequence[Encoded[None]]) -> dict[str, Scores]:
        """The mean color of what each code stands for."""
        size, ratios = self.spec.patch_size, []
        for e in test:
            values = self.values(self._image(e))
            ratios.append(psnr(np.rint(mosaic(values, size)), values))
        scores = self._scores(test, np.array(ratios), [None] * len(test))
        return {"mean color of each patch": Scores(scores.metrics, scores.cases)}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded[None]]) -> list[Shown]:
        drawn = self.drawn(encoded)
        records = self.score(predict, drawn).predictions
        pictures = [data_uri(self.values(self._pixels(output))) for _, output in predict.over(drawn)]
        wanted = [data_uri(self.values(self._image(e))) for e in drawn]
        return [self._shown(*each) for each in zip(records, wanted, pictures, strict=True)]

    def _shown(self, record: CaseRecord, wanted: str, drawn: str) -> Shown:
        said = f"{len(record['prediction'])} codes, {len(set(record['prediction']))} different"
        return {
            "instruction": record["input"],
            "wanted": None,
            "wanted_picture": wanted,
            "answers": [{"text": said, "score": record["PSNR"], "measure": "PSNR", "picture": drawn}],
        }

    def _codes(self, output: np.ndarray) -> tuple[int, ...]:
        return tuple(output[: self.spec.codes].astype(int).tolist())

    def _pixels(self, output: np.ndarray) -> np.ndarray:
        return output[self.spec.codes :].reshape(self.read.shape)

    def _image(self, e: Encoded[None]) -> np.ndarray:
        assert e.text.images is not None
        return self.read(e.text.images.pictures[0])

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """Whole numbers from 0 to 255 of what the network reads or draws, float64 [height, width, channels]."""
        return shown_values(pixels, self.read.how)


def _tokenizer(model: Network) -> ImageTokenizer:
    backbone: Any = model.backbone
    assert isinstance(backbone, ImageTokenizer)
    return backbone


def psnr(drawn: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB, of values from 0 to 255; at most that of one wrong value by one."""
    error = np.mean(np.square(drawn - image, dtype=np.float64))
    return float(10 * np.log10(255**2 / max(error, 1 / drawn.size)))


def mosaic(values: np.ndarray, size: int) -> np.ndarray:
    """The image with the mean of each size × size patch in its place; float [height, width, channels]."""
    height, width, channels = values.shape
    tiles = values.reshape(height // size, size, width // size, size, channels)
    return np.broadcast_to(tiles.mean((1, 3), keepdims=True), tiles.shape).reshape(values.shape)
