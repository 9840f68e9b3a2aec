"""Makes a HuggingFace folder (tokenizer and config) for a small network to train from scratch.

    python scripts/new_language_model.py data/instructions/train.jsonl --out models/small
    python scripts/new_language_model.py data/tatoeba/train.jsonl --out models/pairs --encoder_decoder

The network is a Llama-style decoder, or a BART-style encoder–decoder with num_layers layers in each half.

The tokenizer is a byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2) trained on the texts of the examples, with
the ChatML markers. There are no weights: train the network with backbone.random_init: true.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_jsonl

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSONL files of examples, in the format of data.train")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--num_layers", type=int, default=7)
    parser.add_argument("--num_heads", type=int, default=6)
    parser.add_argument("--num_kv_heads", type=int, default=2)
    parser.add_argument("--mlp_size", type=int, default=1024)
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--encoder_decoder", action="store_true")
    arguments = parser.parse_args()

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts(arguments.files), trainer)
    end, _, turn_end, padding = SPECIAL
    if arguments.encoder_decoder:
        end_of_turn = [(turn_end, core.token_to_id(turn_end))]
        core.post_processor = processors.TemplateProcessing(single=f"$A {turn_end}", special_tokens=end_of_turn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=end,
        eos_token=turn_end,
        pad_token=padding,
        model_max_length=arguments.max_length,
    )
    tokenizer.save_pretrained(arguments.out)
    ids: dict[str, Any] = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config: PreTrainedConfig
    if arguments.encoder_decoder:
        config = BartConfig(
            vocab_size=len(tokenizer),
            d_model=arguments.hidden_size,
            encoder_layers=arguments.num_layers,
            decoder_layers=arguments.num_layers,
            encoder_attention_heads=arguments.num_heads,
            decoder_attention_heads=arguments.num_heads,
            encoder_ffn_dim=arguments.mlp_size,
            decoder_ffn_dim=arguments.mlp_size,
            max_position_embeddings=arguments.max_length,
            scale_embedding=True,
            bos_token_id=tokenizer.bos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=None,
            architectures=["BartForConditionalGeneration"],
            **ids,
        )
    else:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=arguments.hidden_size,
            num_hidden_layers=arguments.num_layers,
            num_attention_heads=arguments.num_heads,
            num_key_value_heads=arguments.num_kv_heads,
            intermediate_size=arguments.mlp_size,
            max_position_embeddings=arguments.max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            architectures=["LlamaForCausalLM"],
            **ids,
        )
    config.save_pretrained(arguments.out)
    print(f"written: {arguments.out}, {len(tokenizer):,} tokens")


def texts(files: list[Path]) -> Iterator[str]:
    for file in files:
        for row in read_jsonl(file):
            example = Example.from_record(row)
            outputs = example.output if isinstance(example.output, tuple) else (example.output,)
            yield from [example.instruction, example.input or "", *(str(output) for output in outputs if output)]
            yield from (message.content for message in example.messages)


if __name__ == "__main__":
    main()
