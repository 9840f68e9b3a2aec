"""How images stand in prompts of LLaVA, PaliGemma and Gemma 3: as the processors of `transformers` write them."""

from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.backbones.folder import family_of
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import MARK
from instructrec_jax.data.own_template import Pieces
from instructrec_jax.data.prompts import Tokens, question
from instructrec_jax.hf_types import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of images in a network's prompts.

    Attributes:
      marker: stands for an image in the text of a prompt: "<image>", or Gemma 3's token for the start of an image.
      written: what is tokenized in place of the marker; it has one token of id `token_id`.
      behind: what is put behind each marker where a prompt has none: then the images come first.
      token_id: stands for one vector.
      vectors: V, the vectors of an image.
      ahead: whether images come before everything else, the token of the beginning included (PaliGemma).
      own: the tokens that are written for images only: `token_id`, and Gemma 3's around it.
    """

    marker: str
    written: str
    behind: str
    token_id: int
    vectors: int
    ahead: bool
    own: tuple[int, ...]

    @classmethod
    def of(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> "ImageTokens":
        """Those of a network.

        Raises ValueError for a network that reads no images, and for a tokenizer without their token.
        """
        family = family_of(config)
        if family.reader is None:
            raise ValueError(f"this {config.model_type} network reads no images beside words (see docs/images.md).")
        spec = family.reader(config)

        def token(name: str) -> str:
            number = getattr(config, name)
            found = tokenizer.convert_ids_to_tokens(number)
            if not isinstance(found, str):
                raise ValueError(f"the tokenizer has no token {number}, which config.json names as {name}.")
            return found

        image = token("image_token_index")
        marker, written, behind, own = image, image, "\n", [spec.token_id]
        if config.model_type == "gemma3":
            marker, behind = token("boi_token_index"), ""
            written = f"\n\n{marker}{image}{token('eoi_token_index')}\n\n"
            own += [config.boi_token_index, config.eoi_token_index]
        ahead = config.model_type == "paligemma"
        return cls(marker, written, behind, spec.token_id, spec.image_vectors, ahead, tuple(own))

    # ------------------------------------------------------------ texts

    def text(self, prompt: str, images: int) -> str:
        """A prompt without template, to be tokenized. Raises ValueError as `marked`."""
        return self.spelled(self.marked(Example(instruction=prompt), images).instruction)

    def marked(self, example: Example, images: int) -> Example:
        """The example with a marker (or `<image>`) for each image in its question; without any, images come first.

        Raises ValueError for another number of markers than of images, and for one in an answer.
        """

        def own(text: str) -> str:
            return text.replace(MARK, self.marker)

        asked = question(example)
        turns = asked.messages
        spoken = [turn.content for turn in turns if turn.role == "assistant"]
        if any(self.marker in own(text) for text in spoken):
            raise ValueError(f"an answer holds {self.marker}, but images are for questions: remove it.")
        asked = replace(
            asked,
            instruction=own(asked.instruction),
            input=None if asked.input is None else own(asked.input),
            system=None if asked.system is None else own(asked.system),
            messages=tuple(replace(turn, content=own(turn.content)) for turn in turns),
        )
        texts = (asked.system, asked.instruction, asked.input, *(turn.content for turn in asked.messages))
        found = sum(text.count(self.marker) for text in texts if text)
        if found not in (0, images):
            raise ValueError(f"the prompt has {found} × {self.marker}, but {images} images.")
        if images and not found and not self.ahead:
            asked = _in_front(asked, f"{self.marker}{self.behind}" * images)
        last = example.messages[len(turns) :]
        return replace(asked, output=example.output, messages=(*asked.messages, *last))

    def spelled(self, text: str) -> str:
        """A rendered text with what is tokenized in place of its markers."""
        return text.replace(self.marker, "" if self.ahead else self.written)

    def pieces(self, pieces: Pieces) -> Pieces:
        """Rendered pieces with what is tokenized in place of markers outside of answers."""
        return [(text if learn else self.spelled(text), learn) for text, learn in pieces]

    # ------------------------------------------------------------ tokens

    def expand(self, tokens: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [length] tokens with V for each image, int32 [length] places as in `RowImages`).

        Args:
          tokens: int [n], of the prompt of `text`.

        Raises ValueError if the tokens stand for another number of images.
        """
        tokens = np.asarray(tokens, np.int32)
        if self.ahead:
            tokens = np.concatenate([np.full(images, self.token_id, np.int32), tokens])
        here = tokens == self.token_id
        if here.sum() != images:
            raise ValueError(
                f"the prompt's tokens stand for {here.sum()} images (token {self.token_id}), but {images} are given."
            )
        expanded = np.repeat(tokens, np.where(here, self.vectors, 1))
        return expanded, self.places(expanded)

    def places(self, tokens: np.ndarray) -> np.ndarray:
        """int32 [length], as in `RowImages`, of expanded tokens."""
        here = tokens == self.token_id
        return np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)

    def expanded(self, tokens: Tokens, images: int) -> Tokens:
        """The tokens of a text with V for each image, none of which is trained on. Raises ValueError as `expand`."""
        ids, places = self.expand(tokens.ids, images)
        said = np.zeros(len(ids), bool)
        said[places < 0] = tokens.said[tokens.ids != self.token_id]
        opening = tokens.opening + (images * self.vectors if self.ahead else 0)
        return replace(tokens, ids=ids, said=said, opening=opening)

    def check_whole(self, tokens: np.ndarray, kept: np.ndarray, name: str) -> None:
        """Raises ValueError where a text that is cut to `kept` loses tokens of images."""
        before, after = (int(np.isin(each, self.own).sum()) for each in (tokens, kept))
        if after < before:
            raise ValueError(
                f"{name} has {len(tokens)} tokens, and data.truncate would cut into its images ({self.vectors} tokens "
                "each): raise data.max_length, or set data.truncate to drop."
            )


def _in_front(example: Example, marks: str) -> Example:
    """The example with marks before the first text of its user."""
    if example.messages:
        place = next((n for n, turn in enumerate(example.messages) if turn.role == "user"), None)
        if place is None:
            raise ValueError("the conversation has no user's turn, before whose text its images could come.")
        turns = list(example.messages)
        turns[place] = replace(turns[place], content=marks + turns[place].content)
        return replace(example, messages=tuple(turns))
    if example.instruction or not example.input:
        return replace(example, instruction=marks + example.instruction)
    return replace(example, input=marks + example.input)
