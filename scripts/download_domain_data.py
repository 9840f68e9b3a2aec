"""Download the public data sets of medicine, law and education (needs a network).

    python scripts/download_domain_data.py pubmedqa --out raw
    python scripts/domain_data.py pubmedqa --source raw/pubmedqa --out data/pubmedqa

A broken download is resumed by the same command. --sha256 checks a set of one file, of which you know the sum. Read the
license first: docs/domains.md names it. clear is an Excel file: save its sheet as raw/clear.csv (UTF-8).
"""

import argparse
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HUB = "https://huggingface.co/datasets"
RAW = "https://raw.githubusercontent.com"
ADDRESSES: dict[str, Sequence[str]] = {  # the files of a set; archives are unpacked
    "pubmedqa": [f"{RAW}/pubmedqa/pubmedqa/master/data/{name}.json" for name in ("ori_pqal", "test_ground_truth")],
    "unfair_terms": ["http://claudette.eui.eu/corpus_multilingual_NLLP2021.zip"],
    "unfair_tos": ["https://zenodo.org/records/5532997/files/unfair_tos.tar.gz"],
    "legalbench": [f"{HUB}/nguha/legalbench/resolve/main/data.tar.gz"],
    "arc": [
        f"{HUB}/allenai/ai2_arc/resolve/main/{part}/{split}-00000-of-00001.parquet"
        for part in ("ARC-Easy", "ARC-Challenge")
        for split in ("train", "validation", "test")
    ],
    "mmlu": ["https://people.eecs.berkeley.edu/~hendrycks/data.tar"],
    "cmmlu": [f"{HUB}/haonan-li/cmmlu/resolve/main/cmmlu_v1_0_1.zip"],
    "ceval": [f"{HUB}/ceval/ceval-exam/resolve/main/ceval-exam.zip"],
    "onestop": ["https://github.com/nishkalavallabhi/OneStopEnglishCorpus/archive/refs/heads/master.zip"],
    "clear": [f"{RAW}/scrosseye/CLEAR-Corpus/main/CLEAR_corpus_final.xlsx"],
}
ARCHIVES = (".zip", ".tar", ".tar.gz")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ADDRESSES)
    parser.add_argument("--out", type=Path, default=Path("raw"), help="parent of the folder (default: raw)")
    parser.add_argument("--sha256", help="what the file should have")
    options = parser.parse_args(args)
    try:
        folder = fetch(options.name, options.out, sha256=options.sha256)
    except (ValueError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SystemExit(f"download_domain_data: {error}") from None
    print(f"written: {folder}")


def fetch(
    name: str, out: Path, addresses: Mapping[str, Sequence[str]] = ADDRESSES, *, sha256: str | None = None
) -> Path:
    """Downloads the files of `name` to OUT/NAME, which is there completely or not at all.

    What is downloaded so far waits in OUT/.NAME.parts for the next try.

    Raises ValueError for what is there already, cannot be reached, is incomplete or has another sum.
    """
    target, parts = out / name, out / f".{name}.parts"
    if target.exists():
        raise ValueError(f"{target} exists already: remove it to download it again.")
    if sha256 and len(addresses[name]) > 1:
        raise ValueError(f"--sha256 is for sets of one file; {name} has {len(addresses[name])}.")
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as temporary:
        whole = Path(temporary) / name
        whole.mkdir()
        for address in addresses[name]:
            folder, file_name = address.split("/")[-2:]
            several = len({each.split("/")[-1] for each in addresses[name]}) < len(addresses[name])
            file = download(address, parts / (f"{folder}/{file_name}" if several else file_name))
            check(file, sha256)
            if file.name.endswith(ARCHIVES):
                opened(file, whole)
            else:
                place = whole / file.relative_to(parts)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)
        os.rename(whole, target)
    shutil.rmtree(parts)
    return target


def download(address: str, file: Path) -> Path:
    """Downloads `address` to `file`, from where an earlier try ended. Raises ValueError for an incomplete download."""
    if file.is_file():
        return file
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    there = part.stat().st_size if part.exists() else 0
    asked = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(asked, timeout=60) as response:
            resumed = there > 0 and response.status == 206
            announced = response.headers.get("Content-Length")
            size = None if announced is None else int(announced) + (there if resumed else 0)
            print(f"{address} ({'size unknown' if size is None else f'{size / 1e6:.1f} MB'})")
            with open(part, "ab" if resumed else "wb") as to:
                shutil.copyfileobj(response, to, length=1 << 20)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is no beginning of the file that is there now
            part.unlink()
            raise ValueError(f"{address} has changed since the last try: try again.") from None
        raise ValueError(f"{address} answers {error.code} {error.reason}: look whether the set has moved.") from None
    except urllib.error.URLError as error:
        raise ValueError(f"{address} cannot be reached: {error.reason}. Is this machine online?") from None
    if size is not None and part.stat().st_size != size:
        raise ValueError(f"{address} was interrupted after {part.stat().st_size:,} of {size:,} bytes: try again.")
    part.rename(file)
    return file


def check(file: Path, sha256: str | None) -> None:
    """Raises ValueError, after removing the file, unless it has the sum (if there is one)."""
    with open(file, "rb") as opened_file:
        found = hashlib.file_digest(opened_file, "sha256").hexdigest()
    if sha256 and found != sha256.lower():
        file.unlink()
        raise ValueError(f"{file.name} has the SHA-256 {found} instead of {sha256}: it is damaged or another version.")


def opened(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive. Raises ValueError for what is none, or has a link or a path outside `folder`."""
    if archive.suffix == ".zip":
        if not zipfile.is_zipfile(archive):
            archive.unlink()
            raise ValueError(f"{archive.name} is not a zip archive: the download is damaged or is a page. Try again.")
        return unpack(archive, folder)
    if not tarfile.is_tarfile(archive):
        archive.unlink()
        raise ValueError(f"{archive.name} is not a tar archive: the download is damaged or is a page. Try again.")
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"{archive.name} contains {member.name!r}, which is neither a file nor a folder.")
        try:
            files.extractall(folder, filter="data")
        except tarfile.FilterError as error:
            raise ValueError(f"{archive.name}: {error}") from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks into `folder`. Raises ValueError, before writing, for a link or a path outside `folder`."""
    root = folder.resolve()
    with zipfile.ZipFile(archive) as files:
        for member in files.infolist():
            inside = (root / member.filename).resolve().is_relative_to(root)
            if not inside or "\\" in member.filename or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{archive.name} contains {member.filename!r}, which is a link or outside the folder.")
        files.extractall(folder)


if __name__ == "__main__":
    main()
