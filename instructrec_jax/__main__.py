"""`python -m instructrec_jax VERB ...` and the command `instructrec VERB ...`; without a verb, a list of verbs."""

import ast
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

VERBS = (
    "train",
    "tune",
    "evaluate",
    "predict",
    "generate",
    "recommend",
    "prepare",
    "augment",
    "synthesize",
    "audit",
    "label",
    "export",
    "compress",
    "explain",
    "report",
    "plan",
    "assist",
    "watch",
    "serve",
)


def listing() -> str:
    """The usage and the list of verbs, each with the first line of its docstring."""
    lines = ["usage: instructrec VERB [options]", "       python -m instructrec_jax.VERB [options]   is the same", ""]
    for verb in VERBS:
        spec = find_spec(f"instructrec_jax.{verb}")
        assert spec is not None and spec.origin is not None
        doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        lines.append(f"  {verb:10} {doc.splitlines()[0].partition(': `')[0].rstrip('.')}")
    return "\n".join([*lines, "", "VERB --help shows the options of a verb. The first to try: instructrec train"])


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(listing())
        return
    verb = sys.argv.pop(1)
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}.\n\n{listing()}", file=sys.stderr)
        sys.exit(2)
    sys.argv[0] = verb
    runpy.run_module(f"instructrec_jax.{verb}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
