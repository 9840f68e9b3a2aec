"""What `prepare` does with the user's own files: inspect and mask."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.preparation.inspection.inspect import InspectConfig, inspect
from instructrec_jax.preparation.inspection.showing import show
from instructrec_jax.preparation.mask_files import MaskFilesConfig, mask_files

FORMS: Mapping[str, type[InspectConfig] | type[MaskFilesConfig]] = {"inspect": InspectConfig, "mask": MaskFilesConfig}


def of_files(settings: InspectConfig | MaskFilesConfig) -> dict[str, object]:
    """Runs `prepare inspect` (with or without --out) or `prepare mask`; prints and returns its card."""
    with heartbeat(f"reading {len(settings.files)} files"):
        if isinstance(settings, MaskFilesConfig):
            masked = mask_files(settings)
            print(masked.describe(settings.out))
            return asdict(masked)
        if not settings.out:
            shown = show(settings)
            print(shown.describe())
            return {"form": shown.form, "rows": shown.rows, "bad": shown.bad, "duplicates": shown.duplicates}
        found = inspect(settings)
        print(found.describe())
        return {"settings": str(found.settings), "task": found.guess.type}


def split_arguments(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, options with their values) of a command line: arguments without dashes are files."""
    files, options, rest = [], [], list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            files.append(arg)
            continue
        options.append(arg)
        options += [rest.pop(0)] if rest and "=" not in arg and arg != "--help" else []
    return files, options
