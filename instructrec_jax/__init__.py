"""Instruction tuning of HuggingFace pretrained networks in JAX/Flax, with recommendation as instruction following.

    import instructrec_jax as ir

    run = ir.train_run("configs/films.yaml")                     # what `python -m instructrec_jax.train` does
    run = ir.Run.open("runs/films")                              # opens a run directory
    ir.evaluate_run(run, "results")                              # ... evaluate
    ir.export_run(run.path, "exported", format="hf")             # ... export
    films = ir.Recommender(run.path)                             # ... recommend
    films.recommend("something scary in space", k=5)             # or a list of ir.Request
    model = ir.LanguageModel("Qwen/Qwen3-0.6B")                  # ... generate
    model.generate("Name a river.", ir.GenerationConfig(max_new_tokens=50))
    ir.prepare_data(ir.MovieLensConfig(source="ml-latest-small", out="data/movielens"))  # ... prepare

Names are imported on first use, so that `import instructrec_jax` is fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instructrec_jax.answering.classifier import Classifier
    from instructrec_jax.answering.comparison import evaluate as evaluate_run
    from instructrec_jax.answering.exporting import export as export_run
    from instructrec_jax.answering.language_model import LanguageModel
    from instructrec_jax.answering.recommender import Recommender
    from instructrec_jax.answering.requests import Request
    from instructrec_jax.data.example import Example
    from instructrec_jax.inference.generation_config import GenerationConfig
    from instructrec_jax.preparation.formats import MovieLensConfig, RecBoleConfig, TableConfig
    from instructrec_jax.preparation.prepare_data import prepare as prepare_data
    from instructrec_jax.runs.config import Config
    from instructrec_jax.runs.config import load as load_config
    from instructrec_jax.runs.run import Run
    from instructrec_jax.train import train_run

# Silences transformers' note about missing PyTorch: only its tokenizers and configs are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.2.0"

# name -> module:attribute
_HOMES = {
    "Classifier": "answering.classifier:Classifier",
    "Config": "runs.config:Config",
    "Example": "data.example:Example",
    "GenerationConfig": "inference.generation_config:GenerationConfig",
    "LanguageModel": "answering.language_model:LanguageModel",
    "MovieLensConfig": "preparation.formats:MovieLensConfig",
    "RecBoleConfig": "preparation.formats:RecBoleConfig",
    "Recommender": "answering.recommender:Recommender",
    "Request": "answering.requests:Request",
    "Run": "runs.run:Run",
    "TableConfig": "preparation.formats:TableConfig",
    "evaluate_run": "answering.comparison:evaluate",
    "export_run": "answering.exporting:export",
    "load_config": "runs.config:load",
    "prepare_data": "preparation.prepare_data:prepare",
    "train_run": "train:train_run",
    "tune": "train:train_run",  # its name in 0.1
}

__all__ = [
    "Classifier",
    "Config",
    "Example",
    "GenerationConfig",
    "LanguageModel",
    "MovieLensConfig",
    "RecBoleConfig",
    "Recommender",
    "Request",
    "Run",
    "TableConfig",
    "evaluate_run",
    "export_run",
    "load_config",
    "prepare_data",
    "train_run",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'instructrec_jax' has no attribute {name!r}")
        module, attribute = _HOMES[name].split(":")
        return getattr(import_module(f"instructrec_jax.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
