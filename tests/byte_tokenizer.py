"""A byte-level BPE tokenizer with a few fixed merges: any text is some of its tokens, and back."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MARKERS = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL = ["<pad>", "<s>", "</s>", *MARKERS]
MERGES = "Ġ t|h e|Ġt he|Ċ Ċ|y e|ye s|Ġ yes|a n|o r|Ġ Ġ|: Ċ".split("|")


def byte_tokenizer(
    *, bos: bool = False, eos: bool = False, trim_offsets: bool = True, markers: bool = True, **settings: Any
) -> PreTrainedTokenizerFast:
    """bos, eos: the tokenizer puts <s> before each text, </s> behind it."""
    special = SPECIAL if markers else SPECIAL[:3]
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    layout = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    around = processors.TemplateProcessing(single=layout, special_tokens=[("<s>", 1), ("</s>", 2)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim_offsets), around])
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special[3:], **(names | settings))
