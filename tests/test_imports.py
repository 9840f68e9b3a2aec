"""The effects and output of `import instructrec_jax`."""

import subprocess
import sys

WITHOUT_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import instructrec_jax.runs.run
import transformers
print("known" if transformers.utils.is_torch_available() else "hidden")
"""


def test_nothing_is_said_where_there_is_no_pytorch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == "hidden\n" and "PyTorch" not in done.stderr
