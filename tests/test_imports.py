"""The effects and output of `import instructrec_jax`, and what it leaves unloaded (`instructrec_jax.hf_types`)."""

import subprocess
import sys

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


def test_verbs_load_nothing_slow_and_nothing_is_said_where_there_is_no_pytorch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nhidden\n" and "PyTorch" not in done.stderr
