"""What `import instructrec_jax`, the verbs and their `--help` leave unloaded. (`instructrec_jax.hf_types` too)"""

import json
import subprocess
import sys

from instructrec_jax.__main__ import VERBS

WITHOUT_TORCH = """
import importlib.util, sys
from instructrec_jax.__main__ import VERBS
for verb in VERBS:
    importlib.import_module(f"instructrec_jax.{verb}")
import instructrec_jax.service.server
slow = ("torch", "transformers", "sklearn", "scipy.stats", "matplotlib", "datasets", "pandas", "grain", "tensorboardX")
also = ("jax.experimental.pallas.tpu", "scipy.special", "scipy.sparse", "pyarrow.compute", "joblib")
print([name for name in (*slow, *also, "instructrec_jax.masking.kinds") if name in sys.modules])
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import transformers
print("known" if transformers.utils.is_torch_available() else "hidden")
"""

# Runs the command lines of stdin, one after the other. Prints the packages beside Python's own that `import
# instructrec_jax` loads, what each command line has loaded of `heavy`, and its exit status, stdout and stderr.
FIRST = """
import contextlib, io, json, runpy, sys
before = set(sys.modules)
import instructrec_jax
own = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
heavy = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "safetensors", "transformers", "huggingface_hub")
heavy += ("sklearn", "scipy.special", "matplotlib", "tensorboardX", "tqdm", "joblib", "torch", "fastapi", "uvicorn")
told = {}
for words in json.load(sys.stdin):
    sys.argv, out, err = words, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"instructrec_jax.{words[0]}", run_name="__main__", alter_sys=False)
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    told[" ".join(words)] = [[name for name in heavy if name in sys.modules], code, out.getvalue(), err.getvalue()]
print(json.dumps([sorted(own), told, sorted(sys.modules)]))
"""
WRONG = {  # a command line, and what its error names
    "train --steps abc": "`steps`",
    "train nowhere.yaml": "nowhere.yaml does not exist",
    "train --lr 1": "'optimizer.learning_rate'",
    "tune --trials x": "--trials: invalid int value",
    "evaluate": "required: RUN",
    "evaluate runs/a --split tset": "--split: invalid choice",
    "evaluate runs/a --spilt test": "'split'",
    "evaluate runs/a --weights tuned": "--weights is for an ensemble",
    "predict runs/a": "give --text TEXT or --input FILE",
    "generate runs/a --prompt x --samples 3": "--samples is for --task image",
    "recommend runs/a --user 1 --input x.csv": "--user cannot be combined with --input",
    "export runs/a": "required: --out",
    "prepare movilens": 'mean "movielens"',
    "prepare movielens --sorce x": "'source'",
    "serve runs/a --drain_second 5": "'drain_seconds'",
    "watch runs/a --least x": "--least: invalid int value",
}
# What help and settings are made of.
SETTINGS = (
    "instructrec_jax.adapters.adapter_config",
    "instructrec_jax.answering.prepare_arguments",
    "instructrec_jax.data.source_config",
    "instructrec_jax.distributed.mesh_config",
    "instructrec_jax.evaluation.evaluation_config",
    "instructrec_jax.preparation.own_config",
    "instructrec_jax.tasks.generation.writing_config",
    "instructrec_jax.tasks.ranking.ranking_config",
    "instructrec_jax.tasks.text.text_config",
    "instructrec_jax.training.training_config",
)


def test_verbs_load_nothing_slow_and_nothing_is_said_where_there_is_no_pytorch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nhidden\n" and "PyTorch" not in done.stderr


def test_help_and_wrong_arguments_load_no_jax() -> None:
    helps = ["__main__ --help", *(f"{verb} --help" for verb in VERBS)]
    helps += ["train --help all", "train --help task.sequence", "prepare movielens --help", "serve keys --help"]
    asked = json.dumps([line.split() for line in [*helps, *WRONG]])
    done = subprocess.run([sys.executable, "-c", FIRST], input=asked, capture_output=True, text=True, check=True)
    own, told, loaded = json.loads(done.stdout)
    assert {line: heavy for line, (heavy, *_) in told.items() if heavy} == {}
    assert own == ["instructrec_jax"] and set(SETTINGS) <= set(loaded)
    for line in helps:
        _, code, out, err = told[line]
        assert code == 0 and "--" in out and err == "", line
    for line, named in WRONG.items():
        _, code, out, err = told[line]
        assert code == 2 and err.startswith("error: ") and named in err and out == "", line
