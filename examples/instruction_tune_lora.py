"""Tune a small language model from nothing, then teach it a second task by LoRA, and let it write. Offline, minutes.

    python examples/instruction_tune_lora.py

To tune a real network, leave out the first part and set `backbone.path` to its hub id, such as Qwen/Qwen3-0.6B.
"""

import runpy
import sys
from pathlib import Path

import instructrec_jax as ir
from instructrec_jax.files import write_jsonl

FOLDER = Path("data/example_lora")
SCRIPT = Path(__file__).parents[1] / "scripts" / "new_language_model.py"
WORDS = "red green blue white black one two three four five cat dog bird fish horse".split()
PAIRS = [(a, b) for a in WORDS for b in WORDS if a != b]
SIZES = "--vocab_size 300 --hidden_size 64 --num_layers 2 --num_heads 2 --mlp_size 128 --max_length 256".split()
SETTINGS = """
run_dir: runs/example_{name}
steps: {steps}
backbone: {backbone}
lora: {{rank: {rank}}}
task: {{type: language_model, template: chatml}}
data: {{train: [{{path: {folder}/{name}.jsonl}}], max_length: 64}}
"""


def tune(name: str, **settings: object) -> Path:
    file = FOLDER / f"{name}.yaml"
    file.write_text(SETTINGS.format(name=name, folder=FOLDER, **settings), encoding="utf-8")
    return ir.train_run(file).path


def main() -> None:
    write_jsonl(FOLDER / "repeat.jsonl", [{"instruction": f"Repeat: {a} {b}", "output": f"{a} {b}"} for a, b in PAIRS])
    write_jsonl(FOLDER / "swap.jsonl", [{"instruction": f"Swap: {a} {b}", "output": f"{b} {a}"} for a, b in PAIRS])

    if not (FOLDER / "base").exists():
        sys.argv = [str(SCRIPT), str(FOLDER / "repeat.jsonl"), "--out", str(FOLDER / "new"), *SIZES]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        base = tune("repeat", steps=200, backbone=f"{{path: {FOLDER}/new, random_init: true}}", rank=0)
        ir.export_run(base, FOLDER / "base", format="hf")
    run_dir = tune("swap", steps=200, backbone=f"{{path: {FOLDER}/base}}", rank=8)

    model = ir.LanguageModel(run_dir)
    for answer in model.generate(["Swap: cat dog", "Swap: one red"], ir.GenerationConfig(max_new_tokens=8)):
        print("answer:", answer.text)
    if not (FOLDER / "adapter").exists():
        ir.export_run(run_dir, FOLDER / "adapter", format="peft")
    print("the adapter for PEFT:", FOLDER / "adapter")


if __name__ == "__main__":
    main()
