"""Tiny random networks of every kind, in transformers and here."""

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
from instructrec_jax.distributed.mesh import MeshConfig, make_mesh, parameter_shardings
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
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "gemma2": transformers.Gemma2ForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "t5": transformers.T5ForConditionalGeneration,
    "bart": transformers.BartForConditionalGeneration,
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
        self, prompts: list[np.ndarray], *, mesh: tuple[int, int, int] = (1, 1, 1), batch_size: int = 4, **settings: Any
    ) -> list[Answer]:
        decoder, params = self.decoder(mesh)
        found = dict(decoder.answer(params, prompts, GenerationConfig(batch_size=batch_size, **settings)))
        return [found[number] for number in range(len(prompts))]

    def expected(self, prompts: list[np.ndarray], **settings: Any) -> list[Answer]:
        """What `transformers.generate` answers to one batch of the prompts."""
        longest = max(len(p) for p in prompts)
        tokens, mask = torch.full((len(prompts), longest), PAD), torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            at = slice(0, len(prompt)) if self.kind in ENCODER_DECODERS else slice(longest - len(prompt), None)
            tokens[row, at], mask[row, at] = torch.tensor(prompt), 1
        out = self.theirs.generate(tokens, attention_mask=mask, do_sample=False, **settings)
        answers = []
        for row in out[:, 1 if self.kind in ENCODER_DECODERS else longest :].tolist():
            ends = [place for place, token in enumerate(row) if token in EOS]
            answers.append(Answer(row[: ends[0] + 1], "eos") if ends else Answer(row, "length"))
        return answers


def make(kind: str, folder: Path, seed: int = 0, *, codes: bool = False, **config: Any) -> Network:
    torch.manual_seed(seed)
    cls = CLASSES[kind]
    theirs = cls(cls.config_class(**(IDS | SIZES[kind] | config)))
    # larger and less regular than the usual initialisation, kernels most: answers shall differ from prompt to prompt,
    # and not repeat one token
    with torch.no_grad():
        for parameter in theirs.parameters():
            kernel = parameter.ndim == 2 and len(parameter) != VOCAB
            parameter.add_(torch.randn_like(parameter) * (0.4 if kernel else 0.1))
    theirs.save_pretrained(folder)
    start = START if kind in ENCODER_DECODERS else None
    return Network(kind, theirs.eval(), folder, TokenRules(eos=EOS, pad=PAD, start=start), codes)


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[np.ndarray]:
    """Ragged prompts without special tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(count)]
