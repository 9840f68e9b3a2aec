"""Tiny random networks in the layout of dalle-mini's: flattened Flax files, with the fields of its config.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VQGAN: dict[str, Any] = dict(
    ch=32,
    ch_mult=[1, 2, 1],
    attn_resolutions=[4],
    double_z=False,
    dropout=0.0,
    embed_dim=6,
    give_pre_end=False,
    in_channels=3,
    n_embed=11,
    num_res_blocks=2,
    out_ch=3,
    quantized_embed_dim=6,
    resamp_with_conv=True,
    resolution=16,
    z_channels=5,
)


def vqgan(folder: Path, dtype: Any = np.float32, **changes: Any) -> Path:
    """A VQGAN: pictures of 16 pixels as 16 of 11 codes."""
    from flax import nnx

    from instructrec_jax.backbones.folder import read_config
    from instructrec_jax.backbones.tensor_names import sites_of
    from instructrec_jax.backbones.vqgan import VQGAN as Network
    from instructrec_jax.backbones.vqgan import spec_of

    folder.mkdir(parents=True, exist_ok=True)
    config = VQGAN | changes
    (folder / "config.json").write_text(json.dumps(dict(model_type="vqgan") | config))
    rng, tensors = np.random.default_rng(0), {}
    for site in sites_of(Network(spec_of(read_config(folder, images=True)), nnx.Rngs(0))):
        *_, kind = site.path.split(".")
        size = 0.1 if kind == "bias" else 1.0 if kind == "embedding" else np.prod(site.shape[:-1]) ** -0.5
        values = 1 + 0.2 * rng.normal(size=site.shape) if kind == "scale" else size * rng.normal(size=site.shape)
        tensors[site.path] = values.astype(dtype)
    save_file(tensors, folder / "model.safetensors")
    side = config["resolution"]
    processor = dict(
        image_processor_type="CLIPImageProcessor",
        do_convert_rgb=True,
        size=dict(shortest_edge=side),
        resample=1,
        crop_size=dict(height=side, width=side),
        do_normalize=False,
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


DALLEBART: dict[str, Any] = dict(
    activation_dropout=0.0,
    activation_function="gelu",
    architectures=["eBart"],
    attention_dropout=0.0,
    bos_token_id=13,
    d_model=24,
    decoder_attention_heads=2,
    decoder_ffn_dim=20,
    decoder_layers=3,
    decoder_start_token_id=13,
    do_sample=True,
    dropout=0.0,
    encoder_attention_heads=3,
    encoder_ffn_dim=28,
    encoder_layers=2,
    encoder_vocab_size=61,
    eos_token_id=13,
    force_ln_scale=False,
    gradient_checkpointing=False,
    image_length=16,
    image_vocab_size=13,
    init_std=0.02,
    is_encoder_decoder=True,
    ln_positions="normformer",
    ln_type="layernorm",
    max_length=17,
    max_text_length=31,
    min_length=17,
    normalize_text=False,
    pad_token_id=13,
    scale_embedding=False,
    sinkhorn_iters=1,
    tau_init=0.05,
    tie_word_embeddings=False,
    use_absolute_position_embeddings=True,
    use_alibi=False,
    use_bias=False,
    use_cache=True,
    use_cosine_attention=False,
    use_deepnet_scaling=False,
    use_final_ln_decoder=True,
    use_final_ln_encoder=True,
    use_glu=True,
    use_head_scale=False,
    use_scan=True,
    use_swin_position_embeddings=False,
)


def dallebart_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a flattened flax_model.msgpack."""
    width, codes = config["d_model"], config["image_vocab_size"] + 1
    shapes: dict[str, tuple[int, ...]] = {"lm_head.kernel": (width, codes)}
    for side in ("encoder", "decoder"):
        layers, inner = config[f"{side}_layers"], config[f"{side}_ffn_dim"]
        here, own = f"model.{side}", f"model.{side}.layers.FlaxBart{side.title()}Layers"
        length = config["max_text_length" if side == "encoder" else "image_length"]
        shapes[f"{here}.embed_tokens.embedding"] = (config["encoder_vocab_size"] if side == "encoder" else codes, width)
        shapes[f"{here}.embed_positions.embedding"] = (length, width)
        shapes |= {f"{here}.layernorm_embedding.{kind}": (width,) for kind in ("scale", "bias")}
        shapes[f"{here}.final_ln.bias"] = (width,)
        for number in range(1 if side == "encoder" else 2):
            attention = f"{own}.FlaxBartAttention_{number}"
            shapes |= {f"{attention}.{n}_proj.kernel": (layers, width, width) for n in ("q", "k", "v", "out")}
            shapes[f"{own}.LayerNorm_{2 * number}.bias"] = (layers, width)
            shapes |= {f"{own}.LayerNorm_{2 * number + 1}.{kind}": (layers, width) for kind in ("scale", "bias")}
        shapes |= {f"{own}.GLU_0.Dense_{number}.kernel": (layers, width, inner) for number in (0, 1)}
        shapes[f"{own}.GLU_0.Dense_2.kernel"] = (layers, inner, width)
        shapes |= {f"{own}.GLU_0.LayerNorm_{n}.bias": (layers, size) for n, size in ((0, width), (1, inner))}
    return shapes


def dallebart(folder: Path, dtype: Any = np.float32, **changes: Any) -> Path:
    """A DalleBart without a tokenizer, and without what draws its codes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = DALLEBART | changes
    (folder / "config.json").write_text(json.dumps(dict(model_type="dallebart") | config))
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in dallebart_shapes(config).items():
        values = 0.2 * rng.normal(size=shape)
        tensors[name] = (values + name.endswith("scale")).astype(dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


def dalle_mini(folder: Path, words: Path) -> Path:
    """A DalleBart with dropout, the tokenizer of `words`, and a VQGAN: pictures of 16 pixels as 4 of 13 codes.

    As in dalle-mega, the network knows more codes than there are.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(words)
    rates = {name: 0.1 for name in ("dropout", "attention_dropout", "activation_dropout")}
    ids = {name: 15 for name in ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")}
    sizes = dict(d_model=32, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=32, decoder_layers=2)
    texts = dict(encoder_vocab_size=len(tokenizer), max_text_length=128)
    dallebart(folder, image_vocab_size=15, image_length=4, **rates, **ids, **sizes, **texts)
    tokenizer.save_pretrained(folder)
    named = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "DalleBartTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))  # a class that no other library has
    vqgan(folder / "image_tokenizer", ch_mult=[1, 1, 1, 2], attn_resolutions=[2], num_res_blocks=1, n_embed=13)
    return folder
