"""Makes spoken digits with espeak-ng, and two networks to train on them from nothing.

    apt-get install espeak-ng
    python scripts/spoken_digits.py --out digits                  # one digit per sound: classification
    python scripts/spoken_digits.py --out numbers --digits 3      # one to three digits: transcription

Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` (columns audio, output, speaker) beside `sounds/`, and
`network/`: config.json, tokenizer and settings of a tiny Whisper without weights. A voice is in one file only: those of
the test are heard by no training. The same command makes the same files.
"""

import argparse
import io
import itertools
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# variants of espeak-ng, each with two accents
VOICES = {
    "train": ("m1", "m2", "m3", "m4", "f1", "f2", "f3", "caleb", "anika", "ed", "linda", "john", "steph", "adam"),
    "validation": ("m5", "f4", "paul"),
    "test": ("m7", "f5", "david", "belinda", "rob"),
}
ACCENTS = ("en-us", "en-gb")
SPEEDS, PITCHES = (140, 170, 200), (30, 50, 70)  # words per minute; of 99
RATE = 16000
CORNER = 0.01  # samples below this share of the loudest one are silence at both ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--digits", type=int, default=1, help="most digits in a sound; 1: each of the ten")
    parser.add_argument("--seconds", type=int, help="length that the network hears; default: one, and one per 3 digits")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers of several digits")
    options = parser.parse_args()
    (options.out / "sounds").mkdir(parents=True)
    rng = np.random.default_rng(options.seed)
    seconds = options.seconds or (1 if options.digits == 1 else 1 + -(-options.digits // 3))
    for split, voices in VOICES.items():
        with ThreadPoolExecutor() as threads:
            rows = list(threads.map(lambda said: speak(options.out, *said), spoken(voices, options.digits, rng)))
        (options.out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{split}: {len(rows):,} sounds of {len(voices) * len(ACCENTS)} voices")
    write_network(options.out / "network", seconds)


def spoken(voices: tuple[str, ...], digits: int, rng: np.random.Generator) -> Iterator[tuple[str, int, int, str]]:
    """(voice, speed, pitch, words): each voice says all digits in each way, or as many numbers of several digits."""
    for accent, voice, speed, pitch in itertools.product(ACCENTS, voices, SPEEDS, PITCHES):
        for number in range(len(WORDS)):
            drawn = [number] if digits == 1 else rng.integers(0, 10, rng.integers(1, digits + 1)).tolist()
            yield f"{accent}+{voice}", speed, pitch, " ".join(WORDS[digit] for digit in drawn)


def speak(out: Path, voice: str, speed: int, pitch: int, words: str) -> dict[str, str]:
    """Writes a sound; returns its row."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), words]
    made = subprocess.run(command, check=True, capture_output=True).stdout
    # the length in the header of what is written into a pipe is unknown
    samples, rate = soundfile.read(io.BytesIO(made), dtype="float64")
    loud = np.flatnonzero(np.abs(samples) > CORNER * np.abs(samples).max())
    name = f"sounds/{voice.replace('+', '-')}-{speed}-{pitch}-{words.replace(' ', '-')}.wav"
    soundfile.write(out / name, samples[loud[0] : loud[-1] + 1], rate, subtype="PCM_16")
    return {"audio": name, "output": words, "speaker": voice}


def write_network(folder: Path, seconds: int) -> None:
    """A tiny Whisper without weights that hears `seconds`, and a tokenizer of letters."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<end>", "<start>", "<unk>"]
    letters = [*special, " ", *"abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "bos_token": "<start>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=seconds)
    extractor.save_pretrained(folder)
    transformers.WhisperConfig(
        vocab_size=len(letters),
        num_mel_bins=40,
        d_model=96,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_source_positions=extractor.nb_max_frames // 2,
        max_target_positions=64,
        classifier_proj_size=96,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=2,
        begin_suppress_tokens=None,
        architectures=["WhisperForConditionalGeneration"],
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
