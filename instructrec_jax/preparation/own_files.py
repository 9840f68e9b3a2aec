"""What `prepare` does with the user's own files: inspect and mask."""

from dataclasses import asdict

from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.preparation.inspection.inspect import inspect
from instructrec_jax.preparation.inspection.showing import show
from instructrec_jax.preparation.mask_files import mask_files
from instructrec_jax.preparation.own_config import InspectConfig, MaskFilesConfig


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
