"""The types of `transformers` in annotations. Importing them from there takes seconds, as it loads PyTorch too."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase
else:
    BatchEncoding = PretrainedConfig = PreTrainedTokenizerBase = Any

__all__ = ["BatchEncoding", "PretrainedConfig", "PreTrainedTokenizerBase"]
