"""A PNG of the top of a run's report, by headless Chromium.

    python scripts/report_picture.py runs/films --out docs/images/report.png

Needs a Chromium or Chrome on the machine (Debian: apt-get install chromium). The report has no external parts, so no
network is used.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str:
    """Path of the first browser at hand. Raises OSError where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise OSError(f"no browser found: install one of {', '.join(BROWSERS)}.")


def picture(report: Path, out: Path, width: int, height: int) -> None:
    """Writes the top `height` pixels of an HTML file, drawn `width` pixels wide.

    Raises OSError: the report does not exist, or the browser gave no picture.
    """
    if not report.is_file():
        raise OSError(f"{report} does not exist: finish a run first (python -m instructrec_jax.train).")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [find_browser(), "--headless", "--disable-gpu", "--hide-scrollbars", "--no-sandbox"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={out.absolute()}"]
        done = subprocess.run([*command, report.absolute().as_uri()], capture_output=True, text=True, timeout=300)
    if done.returncode != 0 or not out.is_file():
        raise OSError(f"the browser wrote no {out}: {done.stderr.strip()[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory, or its report.html")
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"), help="PNG file to write")
    parser.add_argument("--width", type=int, default=1200, help="pixels (default: 1200)")
    parser.add_argument("--height", type=int, default=900, help="pixels (default: 900)")
    options = parser.parse_args()
    report = options.run if options.run.suffix == ".html" else options.run / "report.html"
    picture(report, options.out, options.width, options.height)
    print(f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
