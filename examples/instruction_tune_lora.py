"""Make a small random language model, tune it by LoRA to turn words around, and let it write. Offline, about a minute.

    python examples/instruction_tune_lora.py

With `backbone.path: Qwen/Qwen3-0.6B` (and without the first step) the same settings tune a real network.
"""

import runpy
import sys
from pathlib import Path

import instructrec_jax as ir
from instructrec_jax.files import write_jsonl

FOLDER = Path("data/example_lora")
SCRIPT = Path(__file__).parents[1] / "scripts" / "new_language_model.py"
WORDS = "red green blue white black one two three four five cat dog bird fish horse".split()
SIZES = "--vocab_size 300 --hidden_size 64 --num_layers 2 --num_heads 2 --mlp_size 128 --max_length 256".split()


def examples() -> list[dict[str, str]]:
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    return [{"instruction": f"Swap the words: {a} {b}", "output": f"{b} {a}"} for a, b in pairs]


def main() -> None:
    write_jsonl(FOLDER / "train.jsonl", examples())
    network = FOLDER / "network"
    if not network.exists():
        sys.argv = [str(SCRIPT), str(FOLDER / "train.jsonl"), "--out", str(network), *SIZES]
        runpy.run_path(str(SCRIPT), run_name="__main__")
    settings = f"""
run_dir: runs/example_lora
steps: 100
backbone: {{path: {network}}}
lora: {{rank: 8}}
task: {{type: language_model, template: chatml}}
data:
  train: [{{path: {FOLDER}/train.jsonl}}]
  max_length: 64
"""
    (FOLDER / "settings.yaml").write_text(settings, encoding="utf-8")
    run_dir = ir.tune(ir.load_config(FOLDER / "settings.yaml"))

    model = ir.LanguageModel(run_dir)
    for answer in model.generate(["Swap the words: cat dog"], ir.GenerationConfig(max_new_tokens=8)):
        print("answer:", answer.text)
    ir.export_run(Path(run_dir), FOLDER / "adapter", format="peft")
    print("written:", FOLDER / "adapter")


if __name__ == "__main__":
    main()
