"""Each module has a test file of its name in the same room, or is named here with the file that tests it."""

from pathlib import Path

import instructrec_jax

PACKAGE = Path(instructrec_jax.__file__).parent
TESTS = Path(__file__).parent
# Module -> the test file that covers it: whole runs, or cases of every family at once.
ELSEWHERE = {
    "arrays": "adapters/test_dual_encoder.py",  # a name for a type
    "hf_types": "test_imports.py",  # names for types
    **{
        name: "test_imports.py"
        for name in (
            *(
                "adapters/adapter_config",
                "data/source_config",
                "distributed/mesh_config",
                "evaluation/evaluation_config",
            ),
            *("tasks/text/text_config", "tasks/generation/writing_config", "tasks/ranking/ranking_config"),
            *(
                "evaluation/evaluation_config",
                "training/training_config",
                "preparation/own_config",
                "answering/prepare_arguments",
            ),
        )
    },
    "adapters/mixture": "runs/test_ensemble.py",
    "adapters/vector_classifier": "tasks/text/test_setfit.py",
    "audit": "labeling/test_audit.py",
    "label": "labeling/test_rounds.py",
    "compress": "compression/test_compress.py",
    "explain": "explanation/test_explain.py",
    **{
        f"explanation/{name}": "explanation/test_training_examples.py"
        for name in ("example_gradients", "kept_gradients")
    },
    **{
        name: "explanation/test_counterfactual.py"
        for name in ("answering/answer_options", "explanation/asked", "explanation/files")
    },
    "explanation/shown_answers": "explanation/test_counterfactual.py",
    "labeling/questions": "labeling/test_asking.py",
    "answering/comparison": "test_evaluate.py",
    **{
        name: "test_uncertainty_runs.py"
        for name in (
            *("answering/uncertainty_arguments", "answering/uncertainty_report", "evaluation/doubts"),
            *("runs/abstention", "runs/domain_scores", "runs/kept_calibration"),
        )
    },
    "answering/exporting": "test_export.py",
    "answering/language_model": "test_generate.py",
    "answering/recommender": "test_recommend.py",
    **{
        f"backbones/{name}": "backbones/test_parity.py"
        for name in (
            *("bert", "clip", "dinov2", "distilbert", "gemma", "gemma3", "gpt2", "llama", "llava", "modernbert"),
            *("mpnet", "paligemma", "roberta", "siglip", "vit"),
        )
    },
    "tune": "tuning/test_search.py",
    "tuning/search_table": "tuning/test_search.py",
    "tuning/trials": "tuning/test_search.py",
    "tasks/search_space": "tuning/test_space.py",
    "labeling/shots_table": "labeling/test_shots.py",
    "tasks/generation/written_objectives": "explanation/test_explain.py",
    "preparation/films/texts": "preparation/test_films.py",
    "data/text_rows": "data/test_rows.py",
    **{
        f"masking/{name}": "masking/test_kinds.py"
        for name in ("addresses", "known_secrets", "national_ids", "numbers", "plain", "spans")
    },
    "preparation/inspection/inspect": "preparation/test_inspection.py",
    "preparation/own_files": "preparation/test_mask_files.py",
    "preparation/inspection/table": "preparation/inspection/test_guessing.py",
    "adapters/peft_config": "adapters/test_peft.py",
    "runs/adapting": "runs/test_model.py",
    "runs/bucket_lock": "runs/test_bucket.py",
    "runs/encoding": "answering/test_preparing.py",
    "runs/fitted_head": "tasks/text/test_setfit.py",
    "runs/initial": "answering/test_beginning.py",
    "runs/stored": "answering/test_beginning.py",
    "tasks/scores": "evaluation/test_evaluator.py",
    "evaluation/explained": "explanation/test_overview.py",
    "evaluation/behavior": "robustness/test_checking.py",
    "tasks/text/regression": "tasks/text/test_classification.py",
    "tasks/text/sequence_task": "tasks/text/test_classification.py",
    "answering/ensembles": "runs/test_ensemble.py",
    "tasks/encoded": "tasks/test_encoded_store.py",
    "runs/vectors": "runs/test_predictions.py",
    "runs/training_data": "runs/test_unlabeled.py",
    **{f"service/{name}": "service/test_models.py" for name in ("scenarios", "settings", "warm_up")},
    **{f"service/routes/{name}": "service/test_models.py" for name in ("items", "records", "status", "vectors")},
    "synthesis/instruction_texts": "synthesis/test_rules.py",
    "service/connections": "service/test_server.py",
    "service/routes/asked_texts": "service/routes/test_generation.py",
    "service/writer": "service/routes/test_generation.py",
    "service/key_commands": "service/test_keys.py",
    "service/routes/drawings": "service/test_drawings.py",
    "service/routes/parts": "service/test_door.py",
}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
)


def namesake(module: str) -> Path:
    """tests/data/test_rows.py of data/rows, tests/test_main.py of __main__."""
    room, _, name = module.rpartition("/")
    return TESTS / room / f"test_{name.strip('_')}.py"


def problem(module: str) -> str | None:
    """What is wrong with the tests of a module; None: nothing."""
    own = namesake(module)
    if own.exists():
        return f"{own.relative_to(TESTS)} exists: remove {module} from the table" if module in ELSEWHERE else None
    if module not in ELSEWHERE:
        return f"write {own.relative_to(TESTS)}, or name the file that tests {module} in the table"
    file = TESTS / ELSEWHERE[module]
    named = f"instructrec_jax.{module.replace('/', '.')}"
    if module.startswith("backbones/"):
        named = f'("{module.removeprefix("backbones/")}'  # by the model_type of a case
    if not file.exists() or named not in file.read_text(encoding="utf-8"):
        return f"{ELSEWHERE[module]} does not mention {named}"
    return None


def test_each_module_has_a_test_file() -> None:
    assert [found for module in MODULES if (found := problem(module)) is not None] == []


def test_the_table_names_modules_that_there_are() -> None:
    assert sorted(set(ELSEWHERE) - set(MODULES)) == []
