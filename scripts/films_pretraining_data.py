"""Writes the pretraining data of the embedded backbone: texts, tokenizer and config (without weights).

    python scripts/films_pretraining_data.py

writes OUT/architecture/ (config.json and a WordPiece tokenizer) and OUT/subjects/ (spans of the glossary with their
themes and genres). All texts are the project's own: film descriptions, a glossary, and requests in the training
wordings. Then

    python -m instructrec_jax.train --config_path configs/films_pretraining.yaml
    python -m instructrec_jax.export runs/films_pretraining_run --format hf --dtype float16 --out FOLDER

makes the folder shipped as `instructrec_jax/preparation/films/backbone` (without the retrieval head). The shipped one
was made from the wordings of version 0.1, so its vocabulary differs slightly from that of the present wordings.
"""

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast

from instructrec_jax.files import write_jsonl
from instructrec_jax.preparation.films.pretraining import pretraining_texts, quote
from instructrec_jax.preparation.films.texts import glossary
from instructrec_jax.ranking.catalogue import Catalogue

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/films_pretraining"))
    parser.add_argument("--vocab_size", type=int, default=12000)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=3)
    parser.add_argument("--spans", type=int, default=600, help="number of glossary spans per subject")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    texts = pretraining_texts(seed=options.seed)
    subjects = list(glossary())
    ids = [subject.replace(" ", "-") for subject in subjects]
    (options.out / "subjects").mkdir(parents=True, exist_ok=True)
    Catalogue(ids, subjects, [f"Themes: {subject}." for subject in subjects]).save(options.out / "subjects")
    rng = np.random.default_rng(options.seed)
    spans = (
        {"instruction": quote(subject, rng), "output": name}
        for _ in range(options.spans)
        for subject, name in zip(subjects, ids, strict=True)
    )
    write_jsonl(options.out / "subjects" / "spans.jsonl", spans)

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=options.vocab_size, special_tokens=SPECIAL))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=128,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)),
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.hidden_size // 32,
        intermediate_size=4 * options.hidden_size,
        max_position_embeddings=128,
        type_vocab_size=1,
    )
    folder = options.out / "architecture"
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    print(f"{len(texts):,} texts, {len(tokenizer):,} words in the vocabulary: {options.out}")


if __name__ == "__main__":
    main()
