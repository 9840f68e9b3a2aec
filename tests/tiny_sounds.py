"""Small sounds, as the bytes of their files, and a tiny Whisper that hears them."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers

FRAMES = 20  # of a second
SETTINGS: dict[str, Any] = dict(feature_size=8, chunk_length=1, hop_length=800)
SIZES: dict[str, Any] = dict(
    num_mel_bins=8,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_source_positions=FRAMES // 2,
    max_target_positions=40,
    classifier_proj_size=24,
)


def samples(number: int, count: int = 3000, channels: int = 1) -> np.ndarray:
    """float64 [count, channels]: a tone and some noise, in [-1, 1]."""
    rng, time = np.random.default_rng(number), np.arange(count)[:, None]
    tone = np.sin(time * (0.02 + 0.03 * number % 1) * np.arange(1, channels + 1))
    return 0.5 * tone + rng.uniform(-0.2, 0.2, (count, channels))


def wav(
    number: int, count: int = 3000, *, rate: int = 16000, channels: int = 1, format: str = "WAV", **how: Any
) -> bytes:
    """The file of such a sound."""
    file = io.BytesIO()
    soundfile.write(file, samples(number, count, channels), rate, format=format, **how)
    return file.getvalue()


def whisper(folder: Path, words: Path, *, head: str = "ConditionalGeneration", **config: Any) -> Path:
    """A tiny random Whisper with dropout, as transformers writes it, with the tokenizer of the folder `words`."""
    for file in words.glob("*token*"):
        shutil.copy(file, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0, bos_token_id=2)
    more = dict(
        dropout=0.1, attention_dropout=0.1, activation_dropout=0.1, decoder_start_token_id=3, suppress_tokens=None
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"WhisperFor{head}")(
        transformers.WhisperConfig(**(ids | SIZES | more | dict(begin_suppress_tokens=None) | config))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(**SETTINGS).save_pretrained(folder)
    return folder
