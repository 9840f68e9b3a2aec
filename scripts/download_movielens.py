"""Download and unpack a MovieLens data set (needs a network).

    python scripts/download_movielens.py ml-latest-small --out data
    python -m instructrec_jax.prepare movielens --source data/ml-latest-small --out data/ml-prepared

Read the README in the folder: MovieLens is for non-commercial research and may not be redistributed (except the small
set, under the same terms).
"""

import argparse
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from download_domain_data import download, unpack

ADDRESS = "https://files.grouplens.org/datasets/movielens/{name}.zip"

# MD5 published beside the archive; None for the set that is updated from time to time.
ARCHIVES: dict[str, str | None] = {
    "ml-latest-small": None,
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ARCHIVES)
    parser.add_argument("--out", type=Path, default=Path("data"), help="parent of the folder (default: data)")
    settings = parser.parse_args()
    try:
        folder = fetch(settings.name, settings.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"download_movielens: {error}") from None
    print(f"written: {folder}")


def fetch(name: str, out: Path, address: str = ADDRESS) -> Path:
    """Downloads `name` and unpacks it to OUT/NAME, completely or not at all."""
    target = out / name
    if target.exists():
        raise ValueError(f"{target} exists already: remove it to download it again.")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as temporary:
        archive = Path(temporary) / f"{name}.zip"
        download(address.format(name=name), archive)
        check(archive, ARCHIVES[name])
        unpacked = Path(temporary) / "unpacked"
        unpack(archive, unpacked)
        if not (unpacked / name).is_dir():
            raise ValueError(f"the archive of {name} does not contain a folder {name}.")
        os.rename(unpacked / name, target)
    return target


def check(archive: Path, md5: str | None) -> None:
    """Raises ValueError unless the archive has the published MD5 (if there is one) and all its files are intact."""
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 and found != md5:
        raise ValueError(f"{archive.name} has MD5 {found} instead of {md5}: the download is damaged.")
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{archive.name} is not a zip archive: the download is damaged.")
    with zipfile.ZipFile(archive) as files:
        if broken := files.testzip():
            raise ValueError(f"{broken} in {archive.name} is damaged: try again.")


if __name__ == "__main__":
    main()
