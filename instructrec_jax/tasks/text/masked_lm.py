"""Masked language modeling: predict masked tokens (Devlin et al., 2018)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, BatchTexts, Text, end_to_end
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.prompts import answer, render
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, examples_of, name_of
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores, owners_of
from instructrec_jax.tasks.targets import TokenLabels
from instructrec_jax.tasks.text.text_config import MaskedLMConfig
from instructrec_jax.tasks.texts import tokenize


class MaskedLMTask(Task):
    """Cross-entropy of masked tokens; masks are drawn again for each batch."""

    greater_is_better = False
    predicts_words = True
    per_token = True
    has_answers = False

    def __init__(self, config: MaskedLMConfig, context: TaskContext):
        tokenizer = context.tokenizer
        if not 0 < config.mask_rate < 1:
            raise ValueError(f"task.mask_rate should lie between 0 and 1, but is {config.mask_rate}.")
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which task.type masked_lm needs: choose another checkpoint."
            )
        self.table = context.vocab_size if context.vocab_size is not None else len(tokenizer)
        if tokenizer.mask_token_id >= self.table:
            raise ValueError(
                f"the tokenizer's mask token has id {tokenizer.mask_token_id}, but the network has word embeddings for "
                f"{self.table:,} tokens (vocab_size in config.json): use the tokenizer of this checkpoint."
            )
        self.config, self.context = config, context
        self.special = np.array(tokenizer.all_special_ids)

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "mlm"))

    def encode(self, examples: Sequence[Example]) -> list[Encoded[None]]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        said = [answer(e) if e.output is None or isinstance(e.output, str) else None for e in examples]
        full = ["\n".join(part for part in (render(e), a) if part) for e, a in zip(examples, said, strict=True)]
        texts = tokenize(full, names, self.context)
        encoded: list[Encoded[None]] = []
        for text, example, name in zip(texts, examples, names, strict=True):
            if text is not None and text.tokens.max() >= self.table:
                token = self.context.tokenizer.convert_ids_to_tokens(int(text.tokens.max()))
                raise ValueError(f"{name} has the token {token!r}, for which the network has no word embedding.")
            if text is not None and np.isin(text.tokens, self.special).all():
                raise ValueError(f"{name} has only special tokens, so none can be masked: remove the row.")
            if text is not None:
                encoded.append(Encoded(text, None, example))
        return encoded

    def _mask(self, text: Text, rng: np.random.Generator) -> tuple[Text, np.ndarray]:
        """The text with masked tokens, and int32 [tokens], 1 for each token to predict."""
        ordinary = np.flatnonzero(~np.isin(text.tokens, self.special))
        count = max(1, math.floor(self.config.mask_rate * len(text.tokens)))
        chosen = rng.permutation(ordinary)[:count]
        tokens, draw = text.tokens.copy(), rng.random(len(chosen))
        tokens[chosen[draw < 0.8]] = self.context.tokenizer.mask_token_id
        replaced = chosen[(draw >= 0.8) & (draw < 0.9)]
        tokens[replaced] = rng.integers(0, min(len(self.context.tokenizer), self.table), len(replaced))
        supervised = np.zeros(len(tokens), np.int32)
        supervised[chosen] = 1
        return Text(tokens, text.types), supervised

    def gather(self, encoded: Sequence[Encoded[None]], rng: np.random.Generator) -> BatchTexts[TokenLabels]:
        texts, supervised = zip(*(self._mask(e.text, rng) for e in encoded), strict=True)
        labels = end_to_end([e.text.tokens for e in encoded])
        return BatchTexts(texts, TokenLabels(labels, end_to_end(supervised)))

    def loss(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        hidden = model.head.transform(model.hidden(batch, inputs.dropout), None)
        table, bias = model.head.output(model.backbone)
        weights = batch.own.weights
        total = losses.linear_cross_entropy(hidden, table, batch.own.labels, weights, bias=bias)
        return total, jnp.sum(weights)

    def soft_outputs(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> list[SoftOutputs]:
        hidden = model.head.transform(model.hidden(batch, inputs.dropout), None)
        table, bias = model.head.output(model.backbone)
        return [SoftOutputs("classes", hidden, batch.own.weights, table, bias)]

    def predict(self, model: Network, batch: Batch[TokenLabels]) -> jax.Array:
        """float32 [rows, length, 2]: loss of each masked token, and 1 where it is predicted."""
        hidden = model.head.transform(model.hidden(batch), None)
        table, bias = model.head.output(model.backbone)
        weights = batch.own.weights
        each, hits = losses.token_losses(hidden, table, batch.own.labels, weights, bias=bias)
        return jnp.stack([each, hits.astype(jnp.float32)], -1)

    def score(self, predict: Predict, encoded: Sequence[Encoded[None]]) -> Scores:
        """Loss (nats), perplexity and accuracy over masked tokens. A case's masks depend on seed and number alone."""
        cases: Mapped[Encoded[TokenLabels]] = Mapped(self._masked, range(len(encoded)), encoded)
        found = (o[e.target.supervised > 0].astype(np.float64) for e, o in predict.over(cases, _labeled))
        sums = ((len(each), each[:, 0].sum(), each[:, 1].sum()) for each in found)
        tokens, totals, hits = np.fromiter(sums, np.dtype((np.float64, 3))).T
        loss, per_text = totals.sum() / tokens.sum(), totals / tokens
        metrics = {"loss": float(loss), "perplexity": float(np.exp(loss)), "accuracy": float(hits.sum() / tokens.sum())}
        predictions = Mapped(self._record, cases, per_text)
        return Scores(metrics, {"loss": per_text}, predictions).owned_by(owners_of(examples_of(encoded)))

    def _masked(self, number: int, e: Encoded[None]) -> Encoded[TokenLabels]:
        text, supervised = self._mask(e.text, np.random.default_rng((self.context.seed, number)))
        return Encoded(text, TokenLabels(e.text.tokens, supervised), e.example)

    def _record(self, e: Encoded[TokenLabels], loss: float) -> dict[str, object]:
        tokenizer, asked = self.context.tokenizer, e.target.supervised > 0
        return {
            "id": e.example.id,
            "input": tokenizer.decode(e.text.tokens),
            "reference": tokenizer.convert_ids_to_tokens(e.target.labels[asked]),
            "mean_log_probability": -float(loss),  # of the reference's tokens
        }


def _labeled(cases: Sequence[Encoded[TokenLabels]]) -> BatchTexts[TokenLabels]:
    supervised = end_to_end([np.asarray(e.target.supervised) for e in cases])
    labels = end_to_end([np.asarray(e.target.labels) for e in cases])
    return BatchTexts([e.text for e in cases], TokenLabels(labels, supervised))
