"""Tiny random networks of every kind, in transformers and here."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.reading import load_backbone, load_head
from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.distributed.mesh import make_mesh, parameter_shardings
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.inference.decoding import Answer, Decoder
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.tasks.base import Model

torch.set_num_threads(1)  # its threads would wait for each other on a busy machine
VOCAB, EOS, PAD, START = 40, (2, 5, 9), 0, 3  # several ends, so that some answers end early
IDS = dict(vocab_size=VOCAB, eos_token_id=list(EOS), pad_token_id=PAD, bos_token_id=1)
SIZES = {
    "llama": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    ),
    "gemma2": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=64,
        sliding_window=6,
    ),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "t5": dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=START),
    "bart": dict(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    ),
}
WORDS = {**IDS, **SIZES["llama"], "head_dim": 8}
PIXELS = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=12, patch_size=4
)
IMAGE_TOKEN = START  # no decoder starts with it
# decoders that read images
READERS: dict[str, dict[str, Any]] = {
    "llava": dict(
        text_config=WORDS | dict(model_type="llama"), vision_config=PIXELS | dict(model_type="clip_vision_model")
    ),
    "paligemma": dict(
        text_config=WORDS | dict(model_type="gemma"),
        vision_config=PIXELS | dict(model_type="siglip_vision_model", vision_use_head=False),
        projection_dim=32,
    ),
    "gemma3": dict(
        text_config=WORDS | dict(model_type="gemma3_text", sliding_window=9),
        vision_config=PIXELS | dict(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=9,
    ),
}
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "gemma2": transformers.Gemma2ForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "t5": transformers.T5ForConditionalGeneration,
    "bart": transformers.BartForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
    "paligemma": transformers.PaliGemmaForConditionalGeneration,
    "gemma3": transformers.Gemma3ForConditionalGeneration,
}
ENCODER_DECODERS = ("t5", "bart")
DECODERS: dict[Any, Decoder] = {}


@dataclass
class Network:
    """The same weights twice."""

    kind: str
    theirs: Any
    folder: Path
    rules: TokenRules
    codes: bool = False  # whether keys and values are kept in int8
    _params: dict[Any, Any] = field(default_factory=dict)

    def decoder(self, mesh: tuple[int, int, int] = (1, 1, 1)) -> tuple[Decoder, Any]:
        """A Decoder, which networks of a kind share, and the parameters, on some of the eight devices."""
        on = make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])
        if mesh not in self._params:
            loaded = load_backbone(self.folder, rngs=nnx.Rngs(0))

            def build(key: jax.Array) -> nnx.Module:
                return build_head(loaded.config, "lm", VOCAB, rngs=nnx.Rngs(params=key))

            model = Model(loaded.module, load_head(self.folder, "lm", build, rngs=nnx.Rngs(0))[0])
            model.backbone.cache_codes = self.codes
            graphdef, state = nnx.split(model)
            self._params[mesh] = jax.device_put(nnx.to_pure_dict(state), parameter_shardings(on, model))
            key, pair = (self.kind, mesh, self.rules, self.codes), self.kind in ENCODER_DECODERS
            limit = model.backbone.max_length
            if key not in DECODERS:
                DECODERS[key] = Decoder(graphdef, on, self.rules, max_length=limit, encoder_decoder=pair)
        return DECODERS[self.kind, mesh, self.rules, self.codes], self._params[mesh]

    def answers(
        self,
        prompts: list[np.ndarray],
        *,
        mesh: tuple[int, int, int] = (1, 1, 1),
        batch_size: int = 4,
        images: list[RowImages] | None = None,
        **settings: Any,
    ) -> list[Answer]:
        decoder, params = self.decoder(mesh)
        config = GenerationConfig(batch_size=batch_size, **settings)
        found = dict(decoder.answer(params, prompts, config, images=images))
        return [found[number] for number in range(len(prompts))]

    def expected(self, prompts: list[np.ndarray], **settings: Any) -> list[Answer]:
        """What `transformers.generate` answers to one batch of the prompts."""
        longest = max(len(p) for p in prompts)
        tokens, mask = torch.full((len(prompts), longest), PAD), torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            at = slice(0, len(prompt)) if self.kind in ENCODER_DECODERS else slice(longest - len(prompt), None)
            tokens[row, at], mask[row, at] = torch.tensor(prompt), 1
        out = self.theirs.generate(tokens, attention_mask=mask, do_sample=False, **settings)
        return self._ended(out[:, 1 if self.kind in ENCODER_DECODERS else longest :].tolist())

    def expected_of_images(self, prompts: list[np.ndarray], images: list[RowImages], **settings: Any) -> list[Answer]:
        """What `transformers.generate` answers to each prompt alone."""
        rows = []
        for prompt, each in zip(prompts, images, strict=True):
            more = {}
            if each.pixels.shape[1]:
                more["pixel_values"] = torch.tensor(each.pixels[0]).permute(0, 3, 1, 2)
            if self.kind != "llava":
                more["token_type_ids"] = torch.tensor((each.places >= 0) & (self.kind == "gemma3")).long()
            out = self.theirs.generate(torch.tensor(prompt[None]).long(), do_sample=False, **more, **settings)
            rows.append(out[0, len(prompt) :].tolist())
        return self._ended(rows)

    @staticmethod
    def _ended(rows: list[list[int]]) -> list[Answer]:
        answers = []
        for row in rows:
            ends = [place for place, token in enumerate(row) if token in EOS]
            answers.append(Answer(row[: ends[0] + 1], "eos") if ends else Answer(row, "length"))
        return answers


def make(kind: str, folder: Path, seed: int = 0, *, codes: bool = False, **config: Any) -> Network:
    torch.manual_seed(seed)
    cls = CLASSES[kind]
    sizes = READERS[kind] | {"image_token_index": IMAGE_TOKEN} if kind in READERS else IDS | SIZES[kind]
    theirs = cls(cls.config_class(**(sizes | config)))
    # larger and less regular than the usual initialisation, kernels most: answers shall differ from prompt to prompt,
    # and not repeat one token
    with torch.no_grad():
        for parameter in theirs.parameters():
            kernel = parameter.ndim == 2 and len(parameter) != VOCAB
            parameter.add_(torch.randn_like(parameter) * (0.4 if kernel else 0.1))
    theirs.save_pretrained(folder)
    start = START if kind in ENCODER_DECODERS else None
    return Network(kind, theirs.eval(), folder, TokenRules(eos=EOS, pad=PAD, start=start), codes)


def with_images(prompts: list[np.ndarray], counts: list[int], vectors: int, seed: int = 0) -> tuple[Any, Any]:
    """(prompts with a number of images before their last token, the images)."""
    rng, found, images = np.random.default_rng(seed), [], []
    for prompt, count in zip(prompts, counts, strict=True):
        parts, places = [prompt[:-1]], [np.full(len(prompt) - 1, -1)]
        for k in range(count):
            parts += [np.full(vectors, IMAGE_TOKEN), [7]]
            places += [k * vectors + np.arange(vectors), [-1]]
        found.append(np.concatenate([*parts, prompt[-1:]]).astype(np.int32))
        size = PIXELS["image_size"]
        pixels = rng.normal(size=(1, count, size, size, 3)).astype(np.float32)
        images.append(RowImages(pixels, np.concatenate([*places, [-1]]).astype(np.int32)[None]))
    return found, images


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[np.ndarray]:
    """Ragged prompts without special tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(count)]


def seeing_network(kind: str, folder: Path, words: Path) -> Path:
    """A tiny random decoder that reads images, with dropout; its tokenizer is that of the folder `words`, and tokens of
    images."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    names = ["<image>"] if kind != "gemma3" else ["<image_soft_token>", "<start_of_image>", "<end_of_image>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    own = ("image",) if kind != "gemma3" else ("image", "boi", "eoi")
    ids = {f"{each}_token_index": tokenizer.convert_tokens_to_ids(name) for each, name in zip(own, names, strict=True)}
    settings = READERS[kind] | ids
    more = dict(vocab_size=len(tokenizer), attention_dropout=0.1, max_position_embeddings=128)
    more |= dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    settings["text_config"] = settings["text_config"] | more
    torch.manual_seed(0)
    cls = CLASSES[kind]
    model = cls(cls.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": PIXELS["image_size"], "width": PIXELS["image_size"]}
    name = {"llava": "CLIP", "paligemma": "Siglip", "gemma3": "Gemma3"}[kind]
    process: dict[str, Any] = {"image_processor_type": f"{name}ImageProcessor", "size": size, "do_convert_rgb": True}
    process |= {"crop_size": size} if kind == "llava" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(process))
    return folder
