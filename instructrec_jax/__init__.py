"""Instruction tuning of HuggingFace pretrained networks in JAX/Flax, with recommendation as instruction following.

    from pathlib import Path
    import instructrec_jax as ir

    config = ir.load_config(Path("configs/films.yaml"))
    run_dir = ir.tune(config)                              # what `python -m instructrec_jax.train` does
    ir.score(run_dir, config, Path("results"))             # ... evaluate
    ir.export_run(run_dir, Path("exported"), format="hf")  # ... export
    model = ir.LanguageModel(run_dir)                      # ... generate: opened once
    model.generate(["Name a river."], ir.GenerationConfig(max_new_tokens=50))
    ir.prepare_data(ir.MovieLensConfig(source="ml-latest-small", out="data/movielens"))  # ... prepare
    films = ir.Recommender("runs/films")                   # ... recommend: opened once
    films.recommend([ir.RecommendationRequest(instruction="something scary in space")], k=5)

Names are imported when first asked for, so that `import instructrec_jax` is quick.
"""

import os
import sys
from importlib import import_module
from typing import Any

from instructrec_jax.distributed.host_memory import keep_freed_memory

# Python's sign for `python -m instructrec_jax.VERB`: the process is ours, and jax is yet to come.
if sys.argv[:1] == ["-m"]:
    keep_freed_memory()

# transformers says at each start that it misses PyTorch, of which only its tokenizers and configurations are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_HOMES = {
    "Config": "runs.config:Config",
    "Example": "data.example:Example",
    "GenerationConfig": "inference.generation_config:GenerationConfig",
    "LanguageModel": "generate:LanguageModel",
    "MovieLensConfig": "preparation.formats:MovieLensConfig",
    "RecBoleConfig": "preparation.formats:RecBoleConfig",
    "RecommendationRequest": "answering.requests:Request",
    "Recommender": "recommend:Recommender",
    "export_run": "export:export",
    "load_config": "runs.config:load",
    "prepare_data": "preparation.prepare_data:prepare",
    "score": "evaluate:evaluate",
    "tune": "train:train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'instructrec_jax' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(import_module(f"instructrec_jax.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(_HOMES)
