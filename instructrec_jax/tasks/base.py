"""What a task is: how examples become model inputs, loss, predictions and metrics.

    encode (host) · gather (host) · loss, predict (device) · score (host) · optional refresh

A task is a config, a choice of `task_config.TaskConfig`, and a file with the subclass of `Task` that it names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.media.image_tokens import ImageTokens
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.tasks.answers import Answer, CaseRecord, Shown, ShownOutput, shown_picture
from instructrec_jax.tasks.averaging import Judged, OutputKind
from instructrec_jax.tasks.encoded import Encoded
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores

T = TypeVar("T")
HeadIsFitted = Literal["never", "once", "anew"]


@dataclass
class TaskContext:
    """The properties of a run that tasks depend on."""

    tokenizer: Any  # of transformers; Any: transformers is untyped. None for a network without words
    max_length: int  # tokens per text, special tokens included
    truncate: Literal["error", "left", "right", "drop"] = "error"
    seed: int = 0
    lower_case: bool = False  # lower-case texts before tokenization (sentence-transformers' do_lower_case)
    prompt: str = ""  # prefix of each text that becomes one vector (sentence-transformers' default prompt)
    counts: dict[str, int] = field(default_factory=dict)  # truncated or dropped texts, for the summary
    kind: str = "encoder"  # kind of network: see `backbones.family.Family`
    decoder_start_token_id: int | None = None  # first token of an encoder–decoder's targets
    folder: Path | None = None  # the backbone's: config.json, tokenizer, generation_config.json
    held_out: Sequence[str] = ()  # held-out labels, which training must not see even as negatives
    catalogue: Catalogue | None = None  # catalogue of a ranking task with its new items; None: its folder's
    new_items: int = 0  # number of items at the catalogue's end that were added after training
    answer_limit: int | None = None  # tokens that an encoder–decoder writes at most; None: max_length
    vocab_size: int | None = None  # rows of the word embeddings; None: one per token of the tokenizer
    answer_vocabulary: int | None = None  # tokens of answers, of a vocabulary of their own; None: they share that
    pixels: MediaReader | None = None  # what makes arrays of pictures or sounds; None: the network reads none
    batch_size: int | None = None  # examples of a training batch; None: a batch is rows
    pad_to: int | None = None  # tokens that every text is padded to; None: it is not padded
    image_tokens: ImageTokens | None = None  # how pictures stand between words; None: not there
    prompt_type: int = 0  # the token type of a prompt's tokens: see `backbones.family.Backbone`
    text_vectors: Callable[[str, Sequence[str]], np.ndarray] | None = None  # vectors of texts by the run of a path

    def count(self, what: str, number: int = 1) -> None:
        """Counts texts that were truncated, dropped or changed, for the summary."""
        if number:
            self.counts[what] = self.counts.get(what, 0) + number


class Model(nnx.Module):
    """ŷ = h_ω(M_θ(x)): a backbone and a head. A network without pretrained part has no backbone."""

    def __init__(self, backbone: nnx.Module | None, head: nnx.Module):
        if backbone is not None:
            self.backbone = backbone
        self.head = head

    def hidden(self, batch: Batch, dropout: DropoutKeys | None = None) -> jax.Array:
        """The backbone's last hidden states, [rows, length, hidden].

        Of an encoder–decoder: the decoder's where the batch has targets, else the encoder's. Of a network of images
        or sounds alone: the vector of each at its token.
        """
        backbone: Any = self.backbone
        texts, targets = batch.texts, batch.targets
        if hasattr(backbone, "read_rows"):
            assert batch.images is not None
            return backbone.read_rows(batch.images, dropout=dropout)
        if not hasattr(backbone, "decode"):
            images = {} if batch.images is None else {"images": batch.images}
            return backbone(*texts, batch.token_types, dropout=dropout, **images)
        encoded = backbone.encode(*texts, dropout=dropout, images=batch.images)
        if targets is None:
            return encoded
        keys = None if dropout is None else dropout.target
        return backbone.decode(*targets, encoded, texts.segment_ids, dropout=keys)


class Network(Protocol):
    """The model as the methods of a task see it: a `Model`, or a `HeadView` of one with several heads.

    Backbones and heads have no common type: each task calls the head that it built.
    """

    backbone: Any
    head: Any

    def hidden(self, batch: Batch, dropout: DropoutKeys | None = None) -> jax.Array:
        """See `Model.hidden`."""


class HeadView:
    """One subtask's view of a model with several heads: the backbone and its own head.

    Args:
      hidden: the backbone's hidden states for this batch, where they are known.
    """

    def __init__(self, model: Network, name: str, hidden: jax.Array | None = None):
        self.backbone, self.head, self._model, self._hidden = model.backbone, model.head[name], model, hidden

    def hidden(self, batch: Batch, dropout: DropoutKeys | None = None) -> jax.Array:
        return self._model.hidden(batch, dropout) if self._hidden is None else self._hidden


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss beside the model and the batch.

    Attributes:
      dropout: dropout keys of the batch's tokens; None: no dropout.
      buffers: the state's arrays that `Task.refresh` made.
      microbatches: number of micro-batches in which a loss that couples examples runs the network; other losses
        receive one micro-batch at a time.
    """

    dropout: DropoutKeys | None = None
    buffers: Mapping[str, jax.Array] = field(default_factory=dict)
    microbatches: int = 1


class Task:
    """A task. Subclasses implement the methods below; its properties are attributes here.

    So no code outside of `tasks` checks the type of a task.
    """

    context: TaskContext
    labels: list[str]  # names of the labels, of tasks that choose among labels
    problem_type: str | None = None  # HuggingFace's `problem_type` in config.json, where it has one

    couples_examples = False  # whether an example's loss depends on other examples of the batch
    metric = "loss"  # selects the best checkpoint and stops early, unless evaluation.metric is set
    greater_is_better = True

    # The parts of an example that the task reads: the whole conversation (reasoning, calls, weights of turns), the text
    # of `render`, or single fields without messages and system. `tasks.encoding` rejects examples with other parts.
    reads: Literal["conversation", "rendered", "fields"] = "rendered"
    # Whether `gather` makes one text and its arrays of each encoding alone, without random numbers: then each process
    # gathers the examples of its own devices only.
    gathers_alone = False
    encodes_together = False  # whether an example's encoding depends on the other examples of the call

    def encoding_depends_on(self) -> dict[str, object]:
        """What `encode` reads beside the examples, the settings and the tokenizer, as JSON."""
        return {}

    @property
    def kept_folders(self) -> Mapping[str, Path]:
        """Folders beside the backbone's that the task reads; a run keeps a copy of each under its name."""
        return {}

    needs_pooler = False  # whether the model uses the backbone's own pooler (BERT's)
    freeze: Sequence[str] = ()  # regular expressions of parameters that the task freezes

    def model(self, source: Source) -> Model:
        """The network: the task's head on a checkpoint's backbone, or the head alone."""
        raise TypeError(f"{type(self).__name__} has no model().")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenizes examples and checks their targets. Raises ValueError, naming the example.

        An example may become several (windows of a long context) or none (too long and dropped).
        """
        raise TypeError(f"{type(self).__name__} has no encode().")

    def prepare(self, train: Sequence[Encoded]) -> None:
        """Records maximum sizes of the training examples, which fix the shapes of batches and buffers.

        Called once before training; not for a stream, where each batch fits its own examples.
        """

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """The texts and arrays of one batch."""
        raise TypeError(f"{type(self).__name__} has no gather().")

    def gather_answer(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """`gather`, with a loss of the examples' targets alone where a training example has losses beside."""
        return self.gather(encoded, rng)

    def loss(self, model: Network, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """(Σ w ℓ, Σ w), float32 scalars."""
        raise TypeError(f"{type(self).__name__} has no loss().")

    def soft_outputs(self, model: Network, batch: Batch, inputs: LossInputs) -> Sequence[SoftOutputs]:
        """The outputs that `loss` compares with targets, for distillation and R-Drop; their weights sum to its Σ w."""
        raise ValueError(
            f"{type(self).__name__} has no soft_outputs(), which distil.teachers and robust_training.method: r_drop "
            "compare: leave them out."
        )

    reads_unlabeled = False  # whether `soft_outputs` tells what two views of an unlabeled example have in common

    def as_unlabeled(self, example: Example) -> Example:
        """An example of data.unlabeled with some valid target; its own, if it has one, is for `metrics.jsonl` alone."""
        return self.unanswered(example) if example.output is None else example

    def without_target(self, encoded: Encoded) -> Encoded:
        """The encoded example with its target marked as unknown, -1 in `SoftOutputs.targets`."""
        return encoded

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """[rows, segments, ...], or [rows, length, ...] where `per_token`."""
        raise TypeError(f"{type(self).__name__} has no predict().")

    def draw(self, model: Network, batch: Batch, dropout: DropoutKeys) -> jax.Array:
        """The predictions with dropout, see `Predict.draw`."""
        raise TypeError(f"{type(self).__name__} has no draw().")

    predicts_words = False  # whether the loss is over the backbone's vocabulary
    per_token = False  # whether `predict` returns one output per token instead of per text
    writes = False  # whether its answers can be generated text
    learns_images = False  # whether an example's image is its target
    max_target_length: int | None = None  # maximum tokens of a target; None: texts without targets

    def check(self, encoded: Sequence[Encoded]) -> None:
        """Checks, before training and without the network, that `score` works for these examples.

        Raises ValueError where it does not; names the example and the setting.
        """

    has_answers = True  # whether `answers` predicts something for new texts

    def unanswered(self, example: Example) -> Example:
        """The example with some valid target in place of its own, if it has one.

        Tasks encode complete examples; `answers` do not depend on the target.
        """
        raise TypeError(f"{type(self).__name__} has no unanswered().")

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> Sequence[Answer]:
        """The predictions, one for each entry of `pieces(encoded)`; `k` items of a task that ranks them."""
        raise TypeError(f"{type(self).__name__} has no answers().")

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        """The numbers of an example that `explain` explains: one, or one per word or written token.

        Raises ValueError for a choice that the task does not have, or a task that has no such numbers.
        """
        raise ValueError(f"explain cannot explain the task {type(self).__name__.removesuffix('Task')}.")

    explained_by = "gradients"  # or "occlusion" alone, where the objectives have `Objective.outputs`

    outputs_are: OutputKind | None = None  # the outputs that ensembles average; None: they have no common form

    def judged(self, predict: Predict, encoded: Sequence[Encoded]) -> Judged:
        """The outputs and what was right, by which an ensemble's weights and temperatures are tuned."""
        raise ValueError("the weights and temperatures of this task's runs cannot be tuned: use --weights equal.")

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        """Metrics over examples."""
        raise TypeError(f"{type(self).__name__} has no score().")

    @property
    def subtasks(self) -> Mapping[str, "Task"]:
        """Tasks that share the model, by name; `Predict.subtasks` has the predictions of each."""
        return {}

    head_name: str | None = None  # its head, in a model with several heads (`tasks.multitask`)

    def view(self, model: Network) -> Network:
        """The model as this task's methods see it: all of it, or the backbone and the task's own head."""
        return model if self.head_name is None else HeadView(model, self.head_name)

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Scores of baselines on the same cases, by name; a baseline that cannot be fitted has only a note."""
        return {}

    refresh_every = 0  # steps between refreshes of the buffers; 0: never
    refreshes = "item vectors"  # what the buffers hold, in messages

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        """New values of the state's buffers, computed with the current parameters."""
        return {}

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the float32 arrays of `refresh`, for a backbone with `hidden_size` features."""
        return {}

    @property
    def divides(self) -> bool:
        """Whether a process needs no other examples than those of its own batches, and they are encoded one by one."""
        return self.gathers_alone and not self.encodes_together and self.head_is_fitted == "never"

    # when `fit` makes the head: once, before the first step, or anew before each evaluation and checkpoint
    head_is_fitted: HeadIsFitted = "never"

    def features(self, model: Network, batch: Batch) -> jax.Array:
        """What the head reads of each text, float32 [rows, segments, width], of a classification.

        A head that is fitted is fitted on these.
        """
        raise TypeError(f"{type(self).__name__} has no features().")

    def fit(self, features: Callable[[], np.ndarray], train: Sequence[Encoded]) -> dict[str, dict[str, np.ndarray]]:
        """The parameters of the head that are fitted, by module and name.

        Args:
          features: a function that computes the features [examples, width] of all `train`.
        """
        raise TypeError(f"{type(self).__name__} has no fit().")

    case_measure = ""  # the field of `Scores.predictions` with a case's metric, which the shown examples name, too

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[Shown]:
        """Five random examples (seeded) in the form of `shown`; empty for a task without readable predictions."""
        drawn = self.drawn(encoded)
        records = self.score(predict, drawn).predictions
        whole = [own[0].example for own in pieces(drawn)]
        examples = whole if len(whole) == len(records) else [None] * len(records)
        both = zip(records, examples, strict=True)
        return [_with_pictures(self.shown(record), example) for record, example in both if "prediction" in record]

    def drawn(self, encoded: Sequence[Encoded], count: int = 5) -> list[Encoded]:
        """All encodings of `count` random examples (seeded)."""
        ends = np.cumsum([0, *(len(own) for own in pieces(encoded))]).tolist()
        drawn = np.random.default_rng(self.context.seed).permutation(len(ends) - 1)[:count]
        return [e for number in drawn for e in encoded[ends[number] : ends[number + 1]]]

    def shown(self, record: CaseRecord) -> Shown:
        """A readable form of one of `Scores.predictions`: instruction, target ("wanted") and answers (text, score)."""
        wanted, found = (_readable(record[name]) for name in ("reference", "prediction"))
        answer: ShownOutput = {
            "text": found,
            "score": record[self.case_measure],
            "measure": self.case_measure.replace("_", " "),
        }
        return {"instruction": record["input"], "wanted": wanted, "answers": [answer]}


def _with_pictures(shown: Shown, example: Example | None) -> Shown:
    if example is None or not example.images:
        return shown
    return {**shown, "pictures": [shown_picture(picture) for picture in example.images]}


def _readable(value: object) -> str:
    listed = value if isinstance(value, list) else [value]
    return ", ".join(f"{each:.4g}" if isinstance(each, float) else str(each) for each in listed)


def pieces(encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Groups by example: an example may have several encodings one after another, such as windows of a context."""
    own: list[Encoded] = []
    for e in encoded:
        if own and e.example is not own[0].example:
            yield own
            own = []
        own.append(e)
    if own:
        yield own


def examples_of(encoded: Sequence[Encoded]) -> Sequence[Example]:
    """Their examples, read one at a time where the encodings are."""
    return Mapped(lambda e: e.example, encoded)


def name_of(example: Example, number: int) -> str:
    """The name of an example in errors: its id, else its number."""
    return f"example {example.id or number!r}"


def microbatches(rows: T, count: int) -> T:
    """A tree of [rows, ...] -> [count, rows / count, ...]. Rows are dealt round-robin, so each device keeps its own."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), rows)


def in_microbatches(
    function: Callable[[Network, T, DropoutKeys | None], jax.Array],
    model: Network,
    rows: T,
    inputs: LossInputs,
) -> jax.Array:
    """function(model, rows, dropout) -> [rows, ...], computed in `inputs.microbatches` micro-batches.

    `rows` is a tree whose arrays all lie along the rows, such as `Batch.without_own`.

    For losses that couple the examples of a batch: the backward pass recomputes each micro-batch, so memory holds only
    these results for the whole batch.
    """
    count, dropout = inputs.microbatches, inputs.dropout
    if count == 1:
        return function(model, rows, dropout)
    graphdef, params = nnx.split(model)

    @jax.checkpoint
    def one(part: tuple[T, DropoutKeys | None]) -> jax.Array:
        return function(nnx.merge(graphdef, params), *part)

    found = jax.lax.map(one, microbatches((rows, dropout), count))
    return jnp.moveaxis(found, 0, 1).reshape(-1, *found.shape[2:])


def check_cases(task: Task, encoded: Sequence[Encoded]) -> None:
    """Runs `task.check` and restores the counts of truncated texts, which the evaluation itself counts."""
    before = dict(task.context.counts)
    try:
        task.check(encoded)
    finally:
        task.context.counts.clear()
        task.context.counts.update(before)
