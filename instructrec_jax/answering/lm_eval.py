"""Adapter for EleutherAI's lm-evaluation-harness: its tasks on a run directory or a HuggingFace language model.

    python -m instructrec_jax.evaluate RUN --lm_eval arc_easy hellaswag --limit 100
    python -m instructrec_jax.evaluate RUN --lm_eval my_task --lm_eval_tasks FOLDER     # FOLDER/my_task.yaml

Needs the extra lm-eval. Prompts are lm-eval's own, without this project's templates.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.batch import Text, end_to_end
from instructrec_jax.data.chat_template import exported_template
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.distributed.launch import say
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import write_text
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.tasks.targets import TokenLabels

NEW_TOKENS = 256  # lm-eval's default length of an answer


def run_harness(
    language_model: LanguageModel,
    out: Path,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
) -> dict[str, object]:
    """Runs lm-eval tasks, writes the results to `out`/lm_eval.json and prints the table.

    Args:
      folder: folder of additional tasks, one YAML file each.
      limit: number of examples per task; None: all.
    """
    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ValueError(f"--lm_eval: unknown task {unknown[0]!r}: name a task of lm-eval or of --lm_eval_tasks.")
    model = Harness(language_model)
    found = simple_evaluate(model, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False)
    kept = {name: found[name] for name in ("results", "groups", "configs", "n-samples") if name in found}
    write_text(out / "lm_eval.json", json.dumps(kept, indent=2, default=str, ensure_ascii=False) + "\n")
    print(make_table(found))
    if model.cut:
        say(f"{model.cut:,} prompts were longer than the network's limit and lost their beginning.")
    say(f"written: {out / 'lm_eval.json'}", sys.stdout)
    return kept


class Harness(TemplateLM):
    """A language model with lm-eval's interface; tokenizes like lm-eval's own `hf` model.

    Attributes:
      cut: number of prompts that lost their beginning.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model, self.tokenizer = model, model.tokenizer
        self.is_pair = model.writer.decoder.encoder_decoder
        self.backend = "seq2seq" if self.is_pair else "causal"
        folder = model.task.context.folder
        assert folder is not None  # that of an opened run's backbone
        self.limit = input_limit(read_config(folder))
        self.cut = 0

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options: dict[str, object] = dict(tokenize=False, add_generation_prompt=add_generation_prompt)
        options |= dict(continue_final_message=not add_generation_prompt)
        if not self.is_pair:
            options |= dict(chat_template=self.chat_template_used)
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except TemplateError:  # the template has no system turn: drop it, as lm-eval's own model does
            rest = [turn for turn in chat_history if turn["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, **options))

    @cached_property
    def chat_template_used(self) -> str | dict[str, str]:
        """The template that `export --format hf` writes."""
        task = self.model.task
        return exported_template(task.template, self.tokenizer, task.rendering)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids with special tokens, unless the text already begins with BOS."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def _prompt_tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt: the source of an encoder–decoder always has special tokens, as in lm-eval's model."""
        bos = self.tokenizer.bos_token
        begins = not self.is_pair and bos is not None and prompt.startswith(bos)
        return self.tok_encode(prompt, add_special_tokens=not begins)

    def _loglikelihood_tokens(
        self, requests: list[tuple[object, list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Per (_, context, continuation): Σ log p of the continuation, and whether greedy decoding gives it."""
        texts, labels, supervised = [], [], []
        for _, context, continuation in requests:
            if len(continuation) > self.limit:
                raise ValueError(f"an answer has {len(continuation)} tokens, but the network's limit is {self.limit}.")
            target = np.array(continuation, np.int32)
            if self.is_pair:
                start = self.model.task.context.decoder_start_token_id
                source = self._fitting(context, self.limit)
                texts.append(Text(source, target=np.array([start, *continuation[:-1]], np.int32)))
                labels.append(target)
                supervised.append(np.ones(len(target), np.int32))
                continue
            read = self._fitting(context, self.limit + 1 - len(target))
            whole = np.append(read, target[:-1])
            texts.append(Text(whole))
            labels.append(np.append(whole[1:], target[-1]).astype(np.int32))
            supervised.append((np.arange(len(whole)) >= len(read) - 1).astype(np.int32))
        longest = max(len(text.tokens) for text in texts)
        decoder, task = self.model.writer.decoder, self.model.task
        buckets = length_buckets(min(self.limit, 2 ** int(longest).bit_length()))
        predict = predictor(task, decoder.graphdef, decoder.mesh, buckets)(self.model.params)
        found = predict(texts, TokenLabels(end_to_end(labels), end_to_end(supervised)))
        answers = [each[counts > 0] for each, counts in zip(found, supervised, strict=True)]
        return [(-float(each[:, 0].astype(np.float64).sum()), bool(each[:, 1].all())) for each in answers]

    def _fitting(self, tokens: Sequence[int], most: int) -> np.ndarray:
        self.cut += len(tokens) > most
        return np.array(tokens[-most:], np.int32)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Σ log p of whole texts, in disjoint windows, each with the last token before it as context."""
        if self.is_pair:
            raise ValueError(
                "--lm_eval: an encoder–decoder has no likelihood of a text without a source: choose other tasks."
            )
        asked, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.limit, 1):
                asked.append((None, *make_disjoint_window(window)))
                owners.append(number)
        found = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(asked) if asked else [], strict=True):
            found[number] += value
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each (prompt, {until, max_gen_toks, do_sample, temperature, ...})."""
        answers = [""] * len(requests)
        groups: dict[GenerationConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._config(request.args[1]), []).append(number)
        for config, numbers in groups.items():
            room = self.limit if self.is_pair else self.limit - config.max_new_tokens
            if room < 1:
                raise ValueError(f"max_gen_toks {config.max_new_tokens} leaves no room for a prompt in {self.limit}.")
            prompts = [self._fitting(self._prompt_tokens(requests[n].args[0]), room) for n in numbers]
            names = [f"request {n}" for n in numbers]
            written = self.model.writer.write(self.model.params, prompts, names, config, progress=not disable_tqdm)
            for number, answer in zip(numbers, written, strict=True):
                answers[number] = answer.text
        return answers

    def _config(self, asked: Mapping[str, object]) -> GenerationConfig:
        settings = normalize_gen_kwargs(dict(asked), NEW_TOKENS)
        stop = tuple(text for text in settings["until"] if text)
        draws = bool(settings.get("do_sample"))
        return GenerationConfig(
            max_new_tokens=settings["max_gen_toks"],
            temperature=float(settings.get("temperature", 1.0)) if draws else 0.0,
            top_p=float(settings.get("top_p", 1.0)) if draws else 1.0,
            stop=stop,
        )
