"""Files out of packages that apt-get downloads and does not install."""

import io
import lzma
import pathlib
import subprocess
import tarfile
from collections.abc import Iterable, Iterator

_MAGIC = b"!<arch>\n"
_HEADER = 60  # bytes before every member of an ar archive
_DAMAGED = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, ValueError)


def download(requirement: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads one package, without its dependencies.

  Args:
    requirement: NAME=VERSION, of the release of Debian that apt-get knows.
    folder: that is there, and empty of other packages.

  Returns:
    The archive, NAME_VERSION_ARCHITECTURE.deb.

  Raises:
    RuntimeError: if there is no apt-get, or it finds no such package.
  """
  _apt_get(requirement, cwd=folder)
  archives = list(folder.glob("*.deb"))
  if not archives:
    raise RuntimeError(f"apt-get could not download {requirement}: no message")
  return archives[0]


def look_up(requirement: str) -> None:
  """Asks apt-get for a package and downloads nothing.

  Raises:
    RuntimeError: if `download` would raise it.
  """
  _apt_get(requirement, "--print-uris")


def _apt_get(
  requirement: str, *options: str, cwd: pathlib.Path | None = None
) -> None:
  try:
    done = subprocess.run(
      ["apt-get", "download", "-q", *options, requirement],
      capture_output=True,
      text=True,
      cwd=cwd,
    )
  except OSError:
    raise RuntimeError(
      f"{requirement} is a package of Debian: it needs apt-get, which is not "
      "there"
    ) from None
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"apt-get could not download {requirement}: {last}")


def members(archive: pathlib.Path, names: Iterable[str]) -> dict[str, bytes]:
  """Files of a package, in memory.

  Args:
    archive: .deb, its data packed by xz.
    names: of the files from the root on, without a leading slash.

  Returns:
    Their bytes by name.

  Raises:
    ValueError: if the archive is none, or a file is not in it.
  """
  wanted = set(names)
  found: dict[str, bytes] = {}
  try:
    data = dict(_ar(archive.read_bytes()))["data.tar.xz"]
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
      for entry in tar:
        name = entry.name.removeprefix("./")
        if name in wanted and (file := tar.extractfile(entry)) is not None:
          found[name] = file.read()
  except (*_DAMAGED, KeyError):
    raise ValueError(f"{archive.name} is no package that can be read") from None
  if missing := sorted(wanted - set(found)):
    raise ValueError(f"{archive.name} has no file {missing[0]}")
  return found


def _ar(data: bytes) -> Iterator[tuple[str, bytes]]:
  """Members of an ar archive: names of 16 bytes, sizes of 10, even starts."""
  if not data.startswith(_MAGIC):
    raise ValueError("not an ar archive")
  start = len(_MAGIC)
  while start + _HEADER <= len(data):
    header = data[start : start + _HEADER]
    size, start = int(header[48:58]), start + _HEADER
    name = header[:16].decode("ascii").rstrip(" /")
    yield name, data[start : start + size]
    start += size + size % 2
