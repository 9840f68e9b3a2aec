"""What a task is: how examples become model inputs, loss, predictions and metrics.

    encode (host) · gather (host) · loss, predict (device) · score (host) · optional refresh

A task is one file that defines a config (a choice of `TaskConfig`) and a subclass of `Task`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal

import draccus
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.backbones.folder import read_pooling
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import BatchTexts, Text
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.ranking.catalogue import Catalogue

if TYPE_CHECKING:
    from instructrec_jax.tasks.generation.language_model import LanguageModelTask
    from instructrec_jax.tasks.ranking.ranking_task import RankingTask

Arrays = dict[str, jax.Array]


def _no_words(prompts: Sequence[np.ndarray], config: GenerationConfig) -> list[str]:
    raise TypeError("this task does not write: see `Task.writes`.")


@dataclass(frozen=True)
class Predict:
    """A model with its parameters, as a task scores with it.

    Attributes:
      run: see `__call__`.
      write: (prompts, int32 [tokens] each, settings) -> the texts that answer them; of a task that `writes`.
      subtasks: the same model by the `predict` of each of the task's `subtasks`.
    """

    run: Callable[..., list[np.ndarray]]
    write: Callable[[Sequence[np.ndarray], GenerationConfig], list[str]] = _no_words
    subtasks: Mapping[str, "Predict"] = field(default_factory=dict)

    def __call__(self, texts: Sequence[Text], *, given: Any = None, **per_token: list[np.ndarray]) -> list[np.ndarray]:
        """Runs the model over texts: `predict(texts, name=[one int array a token of each text], ...)`.

        Args:
          given: further arrays by name that the task's `predict` finds in each batch as they are: the items' vectors,
            say.

        Returns one array a text, in the order of the texts: [...] or, for a task that answers per token, [length, ...].
        """
        return self.run(texts, given=given, **per_token)

    def draw(self, texts: Sequence[Text], seed: int, numbers: Sequence[int] | None = None) -> list[np.ndarray]:
        """The same with dropout on, as in training: one draw of Monte Carlo dropout (Gal & Ghahramani, 2016).

        Args:
          seed: uint32. The same seed gives the same draw.
          numbers: of the texts, which their dropout bits hang on: not on what shares a row or a call with a text.
            None: 0, 1, ...
        """
        chosen = np.arange(len(texts)) if numbers is None else np.asarray(numbers)
        return self.run(texts, dropout=(np.uint32(seed), chosen.astype(np.int32)))


class TaskConfig(draccus.ChoiceRegistry):
    """What to learn; `--task.type` chooses."""

    def build(self, context: "TaskContext") -> "Task":
        raise TypeError(f"{type(self).__name__} is not a task: choose --task.type.")

    @property
    def complete(self) -> bool:
        """Whether all settings are there; else `learn` takes those that lack from the training examples."""
        return True

    def learn(self, examples: Sequence[Example]) -> "TaskConfig":
        return self

    @property
    def name(self) -> str:
        """What `--task.type` calls it."""
        return self.get_choice_name(type(self))

    @property
    def label_names(self) -> list[str] | None:
        """The labels to choose from (empty: to be learnt); None for a task without labels."""
        return None

    ranks_catalogue: ClassVar[bool] = False  # whether the task ranks the items of a catalogue
    answers_are_text: ClassVar[bool] = False  # whether it is a language model's, whose answers are texts


@dataclass
class TaskContext:
    """What a task may need to know of the run when it is built."""

    tokenizer: Any  # of transformers
    max_length: int  # tokens a text, special tokens included
    truncate: Literal["error", "left", "right", "drop"] = "error"
    seed: int = 0
    lower_case: bool = False  # texts are lower-cased before they are tokenised (sentence-transformers' do_lower_case)
    prompt: str = ""  # put before each text that becomes one vector (sentence-transformers' default prompt)
    counts: dict[str, int] = field(default_factory=dict)  # what was cut or dropped, for the summary
    kind: str = "encoder"  # of the network: see `backbones.family.Family`
    decoder_start_token_id: int | None = None  # what an encoder–decoder's target begins with
    folder: Path | None = None  # the backbone's: config.json, tokenizer, generation_config.json
    held_out: Sequence[str] = ()  # labels that training must not see, not even as wrong answers
    catalogue: Catalogue | None = None  # of a ranking task, with items that joined it; None: that of its folder
    new_items: int = 0  # so many of the catalogue's last items joined it after training
    vocab_size: int | None = None  # tokens for which the network has word embeddings; None: all of the tokenizer's

    def count(self, what: str, number: int = 1) -> None:
        """Adds to what the summary tells of texts that were cut, dropped or changed."""
        if number:
            self.counts[what] = self.counts.get(what, 0) + number


class Model(nnx.Module):
    """ŷ = h_ω(M_θ(x)): a backbone and a head. A network without a pretrained part has no backbone."""

    def __init__(self, backbone: nnx.Module | None, head: nnx.Module):
        if backbone is not None:
            self.backbone = backbone
        self.head = head

    def hidden(self, batch: Arrays, dropout: DropoutKeys | None = None) -> jax.Array:
        """The backbone's last hidden states, [rows, length, hidden].

        An encoder–decoder gives its decoder's where the batch has target texts, else its encoder's.
        """
        names = ("tokens", "segment_ids", "positions")
        inputs = [batch[name] for name in names]
        backbone: Any = self.backbone
        if not hasattr(backbone, "decode"):
            return backbone(*inputs, batch["token_types"], dropout=dropout)
        encoded = backbone.encode(*inputs, dropout=dropout)
        if "target_tokens" not in batch:
            return encoded
        keys = None if dropout is None else dropout.target
        return backbone.decode(*(batch[f"target_{name}"] for name in names), encoded, inputs[1], dropout=keys)


class HeadView:
    """One task's model inside of the whole: the backbone and its own head.

    Args:
      hidden: the backbone's hidden states for the batch at hand, where they are there already.
    """

    def __init__(self, model: Any, name: str, hidden: jax.Array | None = None):
        self.backbone, self.head, self._model, self._hidden = model.backbone, model.head[name], model, hidden

    def hidden(self, batch: Arrays, dropout: DropoutKeys | None = None) -> jax.Array:
        return self._model.hidden(batch, dropout) if self._hidden is None else self._hidden


@dataclass(frozen=True)
class LossInputs:
    """What a loss may use beside the model and the batch.

    Attributes:
      dropout: keys of the batch's tokens; None: no dropout.
      buffers: arrays of the state that `Task.refresh` made.
      microbatches: in how many a loss that couples the examples of a batch runs the network; other losses see one
        micro-batch at a time.
    """

    dropout: DropoutKeys | None = None
    buffers: Arrays = field(default_factory=dict)
    microbatches: int = 1


Goal = TypeVar("Goal", covariant=True, default=Any)


@dataclass(frozen=True)
class Encoded(Generic[Goal]):
    """An example ready for batches: its text, and the target in the form that the task's loss wants.

    Each task has a type of targets of its own; `Encoded` without one is any task's.
    """

    text: Text
    target: Goal
    example: Example


@dataclass
class Scores:
    """Result of an evaluation.

    Attributes:
      metrics: name -> value, as printed and logged.
      cases: metric name -> float [cases], where a metric is a mean over cases (for paired intervals).
      predictions: one JSON-able record a case.
      report: longer text, such as a per-class table.
      main: the metrics that a table shows; none: all of them.
      segments: name -> numbers of the cases that belong to it.
      protocol: how it was measured, in words.
      charts: what the report draws: "confusion" {"labels", "counts"}, "calibration" {"bins"}.
      compared: metrics with paired differences to other methods, beside the one that the run is chosen by.
      corpus: metrics that are no means over cases and have intervals all the same, by resampling.
      owners: metric -> int64 [cases], whose each case is: see `owners_of`. A metric that is not there has independent
        cases.
      note: why a baseline has no metrics.
    """

    metrics: dict[str, float]
    cases: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: Sequence[dict[str, Any]] = ()
    report: str = ""
    main: Sequence[str] = ()
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    protocol: str = ""
    charts: Mapping[str, Any] = field(default_factory=dict)
    compared: Sequence[str] = ()
    corpus: Mapping[str, CorpusMetric] = field(default_factory=dict)
    owners: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""

    def owned_by(self, owners: np.ndarray | None) -> "Scores":
        """The same scores, of cases with these owners: see `owners_of`."""
        shared = {} if owners is None else dict.fromkeys([*self.cases, *self.corpus], owners)
        return replace(self, owners={**self.owners, **shared})


# Fields of an example's origin that say whom it comes from; the first that is there counts.
OWNERS = ("user", "viewer", "customer", "author", "speaker", "conversation", "dialogue", "document", "article")


def owner_of(example: Example) -> tuple[str, str]:
    """The field of its origin that says whom an example comes from, and who that is; empty where none does."""
    named = ((name, example.origin.get(name, "")) for name in OWNERS)
    return next((pair for pair in named if pair[1]), ("", ""))


def owners_of(examples: Sequence[Example], shared_input: bool = False) -> np.ndarray | None:
    """int64 [examples]: equal for those of one user, document, conversation ...; None where each stands alone.

    Cases of one owner are alike, so intervals draw them together. An owner is what `origin` says under one of `OWNERS`,
    else the example object itself, which several windows or turns may share.

    Args:
      shared_input: whether examples with the same `input` come from one document.
    """
    numbers: dict[tuple[str, str | int], int] = {}

    def number(example: Example) -> int:
        said: tuple[str, str | int] = owner_of(example)
        if not said[1]:
            said = ("input", example.input) if shared_input and example.input else ("example", id(example))
        return numbers.setdefault(said, len(numbers))

    owners = np.array([number(example) for example in examples], np.int64)
    return owners if len(numbers) < len(owners) else None


class BaselineNotFitted(ValueError):
    """A baseline that the training examples give nothing to learn from: its row of the table says so."""


def unless_unfit(measure: Callable[[], Scores]) -> Scores:
    """What `measure` gives; where it raises `BaselineNotFitted`, scores without metrics that note why."""
    try:
        return measure()
    except BaselineNotFitted as error:
        return Scores({}, note=str(error))


class Task:
    """One task family. Subclasses fill in the methods below; what others need to know of a task is a property here.

    So nothing outside of `tasks` asks for a task's type.
    """

    context: TaskContext
    labels: list[str]  # of tasks that choose among labels
    problem_type: str | None = None  # what HuggingFace calls it in config.json, where that has a name for it

    @property
    def ranking(self) -> "RankingTask | None":
        """The task, where it ranks the items of a catalogue."""
        return None

    @property
    def language_model(self) -> "LanguageModelTask | None":
        """The task, where it is a language model's, which can write."""
        return None

    couples_examples = False  # whether one example's loss depends on the others of the batch
    metric = "loss"  # what the best checkpoint and early stopping look at, unless the config says otherwise
    greater_is_better = True

    # What of an example the task reads: all of a conversation (reasoning, calls, weights of turns), what `render` shows
    # of it, or single fields without messages and system. `tasks.encoding` refuses what would be left out.
    reads: Literal["conversation", "rendered", "fields"] = "rendered"
    encodes_together = False  # whether what is made of an example depends on the examples that are encoded beside it

    needs_pooler = False  # whether the backbone's own pooler (BERT's) is part of the model
    freeze: Sequence[str] = ()  # regular expressions of parameters that the task leaves as they are

    def model(self, source: Source) -> nnx.Module:
        """The network: the task's head on the backbone of a checkpoint (there may be none)."""
        raise TypeError(f"{type(self).__name__} has no model().")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenises examples and checks their targets; an error names the example.

        An example may become several (a long context in windows) or none (too long, and to be dropped).
        """
        raise TypeError(f"{type(self).__name__} has no encode().")

    def prepare(self, train: Sequence[Encoded]) -> None:
        """Notes what batches and buffers need to know of all training examples together, such as their largest size.

        Called once before training; not for a stream, whose batches are as large as their own examples need.
        """

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """The texts and arrays of one batch."""
        raise TypeError(f"{type(self).__name__} has no gather().")

    def loss(self, model: Any, batch: Arrays, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """(Σ w ℓ, Σ w), float32 scalars."""
        raise TypeError(f"{type(self).__name__} has no loss().")

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """[rows, segments, ...] or [rows, length, ...]: see `per_token`."""
        raise TypeError(f"{type(self).__name__} has no predict().")

    def draw(self, model: Any, batch: Arrays, dropout: DropoutKeys) -> jax.Array:
        """What `predict` gives, with dropout: see `Predict.draw`."""
        raise TypeError(f"{type(self).__name__} has no draw().")

    predicts_words = False  # whether the loss is over the backbone's own vocabulary
    per_token = False  # whether `predict` answers for every token instead of every text
    writes = False  # whether `score` needs the answers that the model writes
    max_target_length: int | None = None  # tokens that a text's target may have; None: its texts have no targets

    def check(self, encoded: Sequence[Encoded]) -> None:
        """Whether `score` can be computed for these examples, as far as that is known without the network.

        It is asked before training begins, so that no run dies in its first evaluation.

        Raises:
          ValueError: it cannot; the error names the example and the setting.
        """

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        """Metrics over examples."""
        raise TypeError(f"{type(self).__name__} has no score().")

    @property
    def subtasks(self) -> Mapping[str, "Task"]:
        """Further ways to predict with the same model, by name: `Predict.subtasks` has each of them."""
        return {}

    head_name: str | None = None  # of its head among those of a model with several (`tasks.multitask`)

    def view(self, model: Any) -> Any:
        """What of a model its own methods work with: all of it, or the backbone and its own of several heads."""
        return model if self.head_name is None else HeadView(model, self.head_name)

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Baselines on the same cases, by name; one that cannot be fitted has a note instead of metrics."""
        return {}

    refresh_every = 0  # steps between refreshes of the buffers; 0: never

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        """New values of the state's buffers, from the parameters as they stand."""
        return {}

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the float32 arrays that `refresh` gives, for a backbone of so many features."""
        return {}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Five examples, drawn by seed, as `shown`; none where the task predicts nothing that one could read."""
        records = self.score(predict, self.drawn(encoded)).predictions
        return [self.shown(record) for record in records if "prediction" in record]

    def drawn(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """All parts of five examples, drawn by seed."""
        by_example = pieces(encoded)
        drawn = np.random.default_rng(self.context.seed).permutation(len(by_example))[:5]
        return [e for number in drawn for e in by_example[number]]

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One of `Scores.predictions` for a person: instruction, wanted, and answers (text and score), best first."""
        wanted, said = (x if isinstance(x, list) else [x] for x in (record["reference"], record["prediction"]))
        answer = {"text": ", ".join(map(str, said)), "score": record["score"]}
        return {"instruction": record["input"], "wanted": ", ".join(map(str, wanted)), "answers": [answer]}


def pieces(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """What was made of each example, in order: several windows of a long context, say."""
    by_example: dict[int, list[Encoded]] = {}
    for e in encoded:
        by_example.setdefault(id(e.example), []).append(e)
    return list(by_example.values())


def name_of(example: Example, number: int) -> str:
    """What errors call an example: by its id, else by its number."""
    return f"example {example.id or number!r}"


def microbatches(batch: Arrays, count: int) -> Arrays:
    """[rows, ...] -> [count, rows / count, ...]. Rows are dealt out in turn, so each device keeps its own."""
    return {name: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0) for name, x in batch.items()}


def in_microbatches(
    function: Callable[[Any, Arrays, DropoutKeys | None], jax.Array],
    model: Any,
    rows: Arrays,
    inputs: LossInputs,
) -> jax.Array:
    """function(model, rows, dropout) -> [rows, ...], worked out in `inputs.microbatches`.

    For losses that couple the examples of a batch: each micro-batch runs again in the backward pass, so that only these
    results are held of the whole batch.
    """
    count, dropout = inputs.microbatches, inputs.dropout
    if count == 1:
        return function(model, rows, dropout)
    graphdef, params = nnx.split(model)

    @jax.checkpoint
    def one(part: tuple[Arrays, DropoutKeys | None]) -> jax.Array:
        return function(nnx.merge(graphdef, params), *part)

    keys = None if dropout is None else microbatches({"tokens": dropout.tokens}, count)["tokens"]
    found = jax.lax.map(one, (microbatches(rows, count), None if keys is None else DropoutKeys(keys)))
    return jnp.moveaxis(found, 0, 1).reshape(-1, *found.shape[2:])


def with_default_prompt(context: TaskContext) -> TaskContext:
    """The context of a task that makes one vector of a text: with the default prompt that the folder declares.

    Raises ValueError where cutting texts from the left would cut the prompt.
    """
    prompt = "" if context.folder is None else read_pooling(context.folder).prompt
    if prompt and context.truncate == "left":
        raise ValueError(
            f"data.truncate left would cut the prompt {prompt!r}, which the checkpoint puts before each text "
            "(default_prompt_name in config_sentence_transformers.json). Choose right, drop or error."
        )
    return replace(context, prompt=prompt)


def check_cases(task: Task, encoded: Sequence[Encoded]) -> None:
    """`task.check`, without leaving a trace in the counts of what was cut or dropped: the evaluation counts it."""
    before = dict(task.context.counts)
    try:
        task.check(encoded)
    finally:
        task.context.counts.clear()
        task.context.counts.update(before)
