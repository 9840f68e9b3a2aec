"""Compares a HuggingFace folder in PyTorch transformers and here, number by number.

    python scripts/check_parity.py --model FOLDER

Both run in float32 on CPU, and PyTorch also in float64, on ragged batches (padding, token types, a single token, the
network's maximum length); ours also on one packed row. Prints the largest absolute difference from PyTorch's float64 of
our hidden states, pooler output, logits of the checkpoint's task head and, for a language-model head, each token's
loss, with the difference of PyTorch's float32. A check passes within the tolerance, or within twice PyTorch's own
float32 error. Compares greedily generated texts token by token (ours with a cache, all prompts at once).
Encoder–decoders read pairs of a text and a target. Networks of images read random pixels of three sizes, two of which
need an interpolated position table; CLIP and SigLIP also read texts. LLaVA, PaliGemma and Gemma 3 read images between
words, also in prompts. Whisper hears random spectrograms. Checks that each loaded tensor is byte-equal after
HuggingFace → JAX → HuggingFace in the file's dtype; lists unused tensors. Exits with 1 if a check fails. Needs torch
(the `test` extra).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx

try:
    import torch
    from parity_of_images import (
        Say,
        compare_images,
        image_lengths,
        largest,
        pack_images,
        row_images,
        softmax_of_float64,
        torch_arguments,
        with_images,
    )
    from parity_of_sounds import CLASSES as SOUND_CLASSES
    from parity_of_sounds import compare_sounds, compare_speech
except ImportError:
    sys.exit("check_parity.py compares with PyTorch, which is not installed: pip install 'instructrec_jax[test]'")

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.losses import token_losses
from instructrec_jax.backbones import reading, writing
from instructrec_jax.backbones import tensor_names as tensors
from instructrec_jax.backbones.folder import declared_head, find_folder, read_config
from instructrec_jax.backbones.network_config import OWN_TYPES
from instructrec_jax.backbones.towers import TextTower

TOLERANCE = 1e-4
LONGEST = 2048  # maximum length of a comparison, to keep the check short
LONGEST_LM = 256  # the same with a language-model head, whose logits are large
GENERATED = 12  # tokens
RAGGED, IMAGES = "ragged batch", "images between words"
TORCH_CLASSES = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "mlm": transformers.AutoModelForMaskedLM,
    "lm": transformers.AutoModelForCausalLM,
    "image": transformers.AutoModelForImageClassification,
    None: transformers.AutoModel,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a HuggingFace folder or hub id")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="allowed difference from float64")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the tokens")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        read_config(arguments.model, images=True)
    except ValueError as error:
        parser.error(str(error))
    return 0 if check(arguments.model, arguments.tolerance, arguments.seed) else 1


def check(model: str, tolerance: float = TOLERANCE, seed: int = 0) -> bool:
    """Runs all comparisons and prints a line for each. Returns whether all pass."""
    with jax.default_matmul_precision("highest"):
        return compare(model, tolerance, seed)


def compare(model: str, tolerance: float, seed: int) -> bool:
    folder = find_folder(model)
    if (model_type := read_config(folder, images=True).model_type) in OWN_TYPES:
        sys.exit(
            f"{folder} holds a {model_type}, which transformers does not have: tests/backbones compare it with "
            "formulas of its own in PyTorch."
        )
    loaded = reading.load_backbone(folder, rngs=nnx.Rngs(0), images=True)
    kind = declared_head(loaded.config)
    head, head_report = load_head(folder, kind, loaded)
    if head_report.initialized and not head_report.used:
        print(f"config.json declares a {kind!r} head, but the weights have none: comparing only the network")
        kind, head, head_report = None, None, reading.LoadReport()
    report = loaded.report + head_report
    pairs, hears = loaded.family.kind == "encoder_decoder", loaded.family.sounds or loaded.family.kind == "sound"
    torch_class: Any = (
        SOUND_CLASSES[kind]
        if hears
        else transformers.AutoModelForSeq2SeqLM
        if pairs and kind == "lm"
        else TORCH_CLASSES[kind]
    )
    if kind == "lm" and loaded.module.image_vectors and not hears:
        torch_class = transformers.AutoModelForImageTextToText
    if loaded.config.model_type == "siglip_text_model":  # AutoModel does not know it
        torch_class = transformers.SiglipTextModel
    torch_model = torch_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    print(f"{folder}: {loaded.config.model_type}, head: {kind or 'none'}; {report}; pooling: {loaded.pooling}")

    results: list[bool] = []

    def say(what: str, ours: float, theirs: float) -> None:
        results.append(bool(ours <= max(tolerance, 2 * theirs)))  # NaN is a failure
        verdict = "ok  " if results[-1] else "FAIL"
        print(f"  {verdict} {what}: {ours:.3g} from float64 (PyTorch's float32: {theirs:.3g})")

    if hears:
        if kind == "lm":
            results.append(compare_speech(torch_model, loaded, head, np.random.default_rng(seed)))
        compare_sounds(torch_model, loaded, head, np.random.default_rng(seed), say)
    elif loaded.family.kind.startswith("image"):
        compare_images(torch_model, loaded, head, np.random.default_rng(seed), say)
    else:
        if kind == "lm":
            results.append(compare_generation(torch_model, loaded, head, np.random.default_rng(seed)))
        compare_texts(torch_model, loaded, head, kind, np.random.default_rng(seed), say)
    same, lines = compare_tensors(folder, loaded, head, kind, report)
    results.append(same)
    print("\n".join(lines))
    if report.initialized:
        print(f"  newly initialized, not compared: {', '.join(report.initialized)}")
    print(
        f"{'PASS' if all(results) else 'FAIL'}: {sum(results)} of {len(results)} checks within {tolerance:g} of "
        "PyTorch's float64, or within twice its float32 error"
    )
    return all(results)


def compare_texts(
    torch_model: Any, loaded: Any, head: Any, kind: str | None, rng: np.random.Generator, say: Say
) -> None:
    """Compares the outputs for ragged batches. `torch_model` is float64 afterwards."""
    every = batches(loaded, kind, rng)
    in_float32 = [run_torch(torch_model, kind, batch, loaded) for _, batch in every]
    torch_model = torch_model.double()
    for module in torch_model.modules():
        if hasattr(module, "reorder_and_upcast_attn"):  # GPT-2's own way up to float32, which float64 needs not
            module.reorder_and_upcast_attn = False
    for (what, batch), single in zip(every, in_float32, strict=True):
        with softmax_of_float64():
            expected = run_torch(torch_model, kind, batch, loaded)
        actual = run_ours(loaded, head, kind, batch)
        for name in expected:
            ids = batch[f"{side_of(name, batch)}segment_ids"]
            real = ids != 0 if expected[name].ndim == 3 else np.ones(len(expected[name]), bool)
            say(
                f"{what}: {name}",
                largest(expected[name][real] - actual[name][real]),
                largest(expected[name][real] - single[name][real]),
            )
        if what in (RAGGED, IMAGES):
            one_row = run_ours(loaded, None, None, pack(loaded, batch))["hidden"][0]
            real = batch[f"{side_of('hidden', batch)}segment_ids"] != 0
            reference = expected.get("hidden", actual["hidden"])[real]
            single_error = largest(reference - single["hidden"][real]) if "hidden" in single else 0.0
            say(f"{what}, packed into one row: hidden", largest(one_row[: len(reference)] - reference), single_error)


def load_head(folder: Path, kind: str | None, loaded: Any) -> tuple[Any, reading.LoadReport]:
    if kind is None:
        return None, reading.LoadReport()
    outputs = loaded.config.get_text_config().vocab_size if kind in ("mlm", "lm") else loaded.config.num_labels

    def build(key: jax.Array) -> nnx.Module:
        return build_head(loaded.config, kind, outputs, rngs=nnx.Rngs(params=key))

    return reading.load_head(folder, kind, build, rngs=nnx.Rngs(0))


def batches(loaded: Any, kind: str | None, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
    pairs = loaded.family.kind == "encoder_decoder"
    if loaded.family.padded:
        return [("texts of the full length", make_batch(loaded, rng, [loaded.module.max_length] * 4))]
    longest = min(loaded.module.max_length, LONGEST_LM if pairs or kind == "lm" else LONGEST)

    def make(lengths: list[int]) -> dict[str, np.ndarray]:
        batch = make_batch(loaded, rng, lengths)
        target = make_batch(loaded, rng, lengths[::-1]) if pairs else {}
        return batch | {f"target_{name}": value for name, value in target.items()}

    reads = loaded.module.image_vectors > 0
    pictures = [(IMAGES, with_images(loaded, rng, make(image_lengths(loaded.module))))] if reads else []
    return [
        *pictures,
        (RAGGED, make([min(n, longest) for n in (23, 1, 9, 16, 2)])),
        ("single token", make([1])),
        (
            f"{'longest length' if longest == loaded.module.max_length else 'long input'} ({longest})",
            make([longest, max(1, longest // 3)]),
        ),
    ]


def side_of(name: str, batch: dict[str, np.ndarray]) -> str:
    """'target_' if the output `name` belongs to the target texts, otherwise ''."""
    return "target_" if "target_tokens" in batch and name != "encoded" else ""


def make_batch(loaded: Any, rng: np.random.Generator, lengths: list[int]) -> dict[str, np.ndarray]:
    """Random tokens (no padding tokens), padded to the maximum length; token types change in the middle."""
    rows, length = len(lengths), max(lengths)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    real = place < np.array(lengths)[:, None]
    config = loaded.config.get_text_config()
    padding, unknown = padding_id(loaded.config), {loaded.module.image_token_id} - {None}
    tokens = rng.choice([n for n in range(config.vocab_size) if n not in {padding, *unknown}], (rows, length))
    if isinstance(loaded.module, TextTower):  # a text ends where CLIP's vector is read, here at the largest id
        last = place == np.array(lengths)[:, None] - 1
        tokens = np.where(last, config.vocab_size - 1, np.minimum(tokens, config.vocab_size - 2))
    types = getattr(config, "type_vocab_size", 1)
    token_types = (place * 2 >= np.array(lengths)[:, None]) & (types > 1)
    if loaded.module.prompt_type:
        token_types = place * 4 < np.array(lengths)[:, None] * 3
    return {
        "tokens": np.where(real, tokens, padding).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, place, 0).astype(np.int32),
        "token_types": np.where(real, token_types, 0).astype(np.int32),
    }


def padding_id(config: Any) -> int:
    padding: int | None = config.get_text_config().pad_token_id
    return 0 if padding is None else padding


def next_tokens(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each token's next token (0 for the last), and 1.0 if there is one: int32 and float32 [rows, length]."""
    side = side_of("labels", batch)
    labels = np.pad(batch[f"{side}tokens"][:, 1:], ((0, 0), (0, 1)))
    return labels, np.pad(batch[f"{side}segment_ids"][:, 1:] != 0, ((0, 0), (0, 1))).astype(np.float32)


def run_torch(model: Any, kind: str | None, batch: dict[str, np.ndarray], loaded: Any) -> dict[str, np.ndarray]:
    """PyTorch's outputs by name: hidden states [rows, length, hidden], and those of pooling and head."""
    inputs = {"input_ids": batch["tokens"], "attention_mask": batch["segment_ids"]}
    if getattr(loaded.config, "type_vocab_size", 0) > 0:
        inputs["token_type_ids"] = batch["token_types"]
    others = torch_arguments(model, loaded, batch)
    pairs = "target_tokens" in batch
    if pairs:
        inputs |= {"decoder_input_ids": batch["target_tokens"], "decoder_attention_mask": batch["target_segment_ids"]}
    if kind == "sequence":
        model.config.pad_token_id = padding_id(loaded.config)  # decoders use it to find a text's last token
    base = model if pairs else getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        tensors = {name: torch.tensor(value, dtype=torch.long) for name, value in inputs.items()} | others
        out = base(**tensors)
        result = {"encoded": out.encoder_last_hidden_state.numpy()} if pairs else {}
        if "last_hidden_state" in out:
            result["hidden"] = out.last_hidden_state.numpy()
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None and not any(p.startswith("pooler.") for p in loaded.report.initialized):
            result["pooler"] = pooled.numpy()
        if base is not model or "logits" in out:
            whole = out if base is model else model(**tensors)
            ends = [whole.start_logits, whole.end_logits] if kind == "span" else None
            result["logits"] = (whole.logits if ends is None else torch.stack(ends, -1)).numpy()
    if kind == "lm":
        labels, weights = next_tokens(batch)
        logits = torch.tensor(result["logits"]).transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long(), reduction="none")
        result["loss of each token"] = losses.numpy() * weights
    return result


@nnx.jit(static_argnames="kind")
def _forward(module: Any, head: Any, kind: str | None, batch: Any) -> dict[str, jax.Array]:
    names = ("tokens", "segment_ids", "positions")
    inputs = [batch[name] for name in names]
    if "target_tokens" in batch:
        encoded = module.encode(*inputs)
        hidden = module.decode(*(batch[f"target_{name}"] for name in names), encoded, batch["segment_ids"])
        result = {"hidden": hidden, "encoded": encoded}
    else:
        hidden = module(*inputs, batch["token_types"], **row_images(batch))
        result = {"hidden": hidden}
    if getattr(module, "pooler", None) is not None:
        result["pooler"] = module.pool(hidden[:, 0])
    if isinstance(module, TextTower):
        last = batch["segment_ids"].sum(-1)[:, None, None] - 1
        result["pooler"] = module.pool(jnp.take_along_axis(hidden, last, axis=1)[:, 0])
    if kind == "sequence":
        result["logits"] = head(module, hidden, batch["segment_ids"], 1)[:, 0]
    elif kind in ("token", "span"):
        result["logits"] = head(hidden)
    elif kind in ("mlm", "lm"):
        result["logits"] = head(module, hidden)
    if kind == "lm":
        table, bias = head.output(module)
        options = {"bias": bias, "scale": head.spec.scale, "soft_cap": head.spec.soft_cap}
        result["loss of each token"] = token_losses(hidden, table, batch["labels"], batch["weights"], **options)[0]
    return result


def run_ours(loaded: Any, head: Any, kind: str | None, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our outputs by name, as in PyTorch's."""
    labels, weights = next_tokens(batch)
    inputs = batch | {"labels": labels, "weights": weights}
    return {name: np.asarray(value) for name, value in _forward(loaded.module, head, kind, inputs).items()}


def compare_generation(model: Any, loaded: Any, head: Any, rng: np.random.Generator) -> bool:
    """Compares greedy generation: PyTorch's for each prompt alone, ours for one padded batch with a cache."""
    lengths = [min(n, max(1, loaded.module.max_length - GENERATED)) for n in (11, 1, 5, 8, 2)]
    steps = min(GENERATED, loaded.module.max_length - max(lengths))
    if loaded.module.image_vectors:
        lengths = image_lengths(loaded.module)
    batch = make_batch(loaded, rng, lengths)
    if loaded.module.image_vectors:
        batch = with_images(loaded, rng, batch)
        batch["token_types"] = batch["segment_ids"] * loaded.module.prompt_type  # all of it is prompt
    start = start_id(loaded.config)
    actual = np.asarray(_generate(loaded.module, head, batch, np.array(lengths, np.int32), start, steps))
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "eos_token_id": None}
    if loaded.family.kind == "encoder_decoder":  # without the checkpoint's own settings, such as beams
        model.generation_config = transformers.GenerationConfig(decoder_start_token_id=start)
        # transformers 5.24 sizes a T5's cache by the encoder's number of layers
        options["use_cache"] = getattr(loaded.config, "num_decoder_layers", 0) <= loaded.config.num_hidden_layers
    options["pad_token_id"] = padding_id(loaded.config)
    written = []
    for row, n in enumerate(lengths):
        one = {name: x[row : row + 1] if name == "pixels" else x[row : row + 1, :n] for name, x in batch.items()}
        ids, others = torch.tensor(one["tokens"]).long(), torch_arguments(model, loaded, one)
        written.append(model.generate(ids, **others, **options).numpy()[0, -steps:])
    expected = np.stack(written)
    equal = int((expected == actual).sum())
    good = equal == expected.size
    print(f"  {'ok  ' if good else 'FAIL'} greedy generation: {equal} of {expected.size} tokens equal")
    return good


def start_id(config: Any) -> int:
    """The decoder start token of an encoder–decoder."""
    start = getattr(config, "decoder_start_token_id", None)
    return padding_id(config) if start is None else start


@nnx.jit(static_argnames=("start", "steps"))
def _generate(module: Any, head: Any, batch: Any, lengths: Any, start: int, steps: int) -> jax.Array:
    """int32 [rows, steps]: the most likely next tokens in order; `start` is for encoder–decoders."""
    rows, length = batch["tokens"].shape
    inputs = (batch["tokens"], batch["segment_ids"], batch["positions"])
    one = np.ones((rows, 1), np.int32)
    pairs = hasattr(module, "decode")
    if pairs:
        encoded, cache = module.encode(*inputs), module.empty_cache(rows, 1 + steps, length)
        hidden, cache = module.decode(one * start, one, one * 0, encoded, batch["segment_ids"], cache=cache)
        last, lengths = hidden[:, 0], np.ones(rows, np.int32)
    else:
        cache = module.empty_cache(rows, length + steps)
        hidden, cache = module(*inputs, batch["token_types"], cache=cache, **row_images(batch))
        last = hidden[np.arange(rows), lengths - 1]
    first = head(module, last).argmax(-1)

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        token, cache = carry
        new = (token[:, None], one, (lengths + number)[:, None])
        hidden, cache = module.decode(*new, cache=cache) if pairs else module(*new, one * 0, cache=cache)
        return (head(module, hidden[:, 0]).argmax(-1), cache), token

    return jax.lax.scan(step, (first, cache), jnp.arange(steps))[1].T


def pack(loaded: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All examples of a batch packed into one row with three padding tokens; targets likewise."""
    result = {}
    if "pixels" in batch:
        batch = batch | pack_images(loaded, batch)
    for name, value in batch.items():
        if name == "pixels":
            result[name] = value
            continue
        real = batch["target_segment_ids" if name.startswith("target_") else "segment_ids"] != 0
        if name.endswith("segment_ids"):
            value = np.cumsum(np.ones(real.shape, np.int32), axis=0, dtype=np.int32)
        result[name] = np.concatenate([value[real], np.full(3, -(name == "places"), np.int32)])[None]
    return result


def compare_tensors(
    folder: Path, loaded: Any, head: Any, kind: str | None, report: reading.LoadReport
) -> tuple[bool, list[str]]:
    """Writes the checkpoint and compares the bytes of each loaded tensor, in the file's dtype."""
    with tempfile.TemporaryDirectory() as out:
        writing.save_pretrained(
            out,
            loaded.module,
            loaded.config,
            report=report,
            head=head,
            head_kind=kind if head is not None else None,
        )
        name_here = loaded.family.name_here
        with tensors.TensorFiles(folder, name_here) as source, tensors.TensorFiles(Path(out), name_here) as written:
            # a language model is written with its prefix, which some files (GPT-2's own) omit
            prefix = loaded.family.prefix
            places = {name: name if name in written.names else prefix + name for name in report.used}
            different = [
                name
                for name, place in places.items()
                if place not in written.names
                or source.dtype(name) != written.dtype(place)
                or source.read(name).tobytes() != written.read(place).tobytes()
            ]
    equal = len(report.used) - len(different)
    lines = [
        f"  {'FAIL' if different else 'ok  '} {equal} of {len(report.used)} tensors byte-equal after the round trip"
    ]
    lines += [f"       differs: {name}" for name in different]
    lines.append(f"  unused tensors ({len(report.unused)}): {', '.join(report.unused) or 'none'}")
    return not different, lines


if __name__ == "__main__":
    sys.exit(main())
