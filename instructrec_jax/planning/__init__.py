"""Training runs on devices that are not there."""

from pathlib import Path

ARCHITECTURES = Path(__file__).parent / "architectures"  # a config.json of each
