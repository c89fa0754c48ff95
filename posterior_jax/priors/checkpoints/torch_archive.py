"""The zip that `torch.save` writes: one folder, stored as it is, no more.

A zip's directory is a list of promises: entries may overlap, be encrypted or
unpack to anything. What torch writes is none of that, so all of it is refused
before an entry is read.
"""

import pathlib
import struct
import zipfile

from posterior_jax.foreign_files import folder
from posterior_jax.foreign_files.messages import clean, shown

# 46 bytes and a name an entry: 60,000 storages.
_MOST_DIRECTORY = 8 << 20
# Of the largest description of tensors, 100 bytes each.
_MOST_PICKLE = 16 << 20
# How files of torch before 1.6 begin: the pickle of a number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# The end of a zip: marks, then the directory's size.
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_END_BYTES, _END64_BYTES, _COMMENT = 22, 76, 65535


class Refused(Exception):
  """What is wrong with a file, as a clause of the message."""


class Archive:
  """The entries of a file of torch.

  Args:
    path: of the file.

  Attributes:
    held: bytes of all storages.

  Raises:
    Refused: if it is no such file.
  """

  def __init__(self, path: pathlib.Path) -> None:
    try:
      size = folder.size(path)
      _check_directory(path)
      self._file = zipfile.ZipFile(path)
    except ValueError as error:
      raise Refused(clean(str(error))) from None
    except (
      Exception
    ) as error:  # struct, codecs and zlib have words of their own
      raise Refused(_reason(path, error)) from None
    entries = self._file.infolist()
    # Entries that overlap would be read once each, whatever the file's size.
    if sum(entry.file_size for entry in entries) > size:
      raise Refused("is truncated or changed: its entries overlap")
    names = [entry.filename for entry in entries]
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise Refused("must hold one data.pkl as torch.save writes it")
    self._folder = pickles[0].removesuffix("data.pkl")
    data = self._folder + "data/"
    self.held = sum(e.file_size for e in entries if e.filename.startswith(data))

  def __enter__(self) -> "Archive":
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def pickle(self) -> bytes:
    """What describes the tensors, of little-endian numbers."""
    names = self._file.namelist()
    order = self._folder + "byteorder"
    if order in names and self.read("byteorder") != b"little":
      raise Refused("was written by a big-endian machine, which is not read")
    data = self.read("data.pkl")
    if len(data) > _MOST_PICKLE:
      raise Refused(
        f"has a data.pkl of {len(data)} bytes, above {_MOST_PICKLE}"
      )
    return data

  def read(self, name: str) -> bytes:
    """An entry whose checksum is right."""
    try:
      entry = self._file.getinfo(self._folder + name)
    except KeyError:
      raise Refused(f"lacks {clean(name)}") from None
    if entry.flag_bits & 1:
      raise Refused(f"has an encrypted {clean(name)}")
    if entry.compress_type != zipfile.ZIP_STORED:
      raise Refused(
        f"has a compressed {clean(name)}, which torch.save never writes"
      )
    try:
      data = self._file.read(entry)
    except Exception as error:  # as above
      raise Refused(f"is truncated or changed: {clean(str(error))}") from None
    if len(data) != entry.file_size:
      raise Refused(f"is truncated or changed: {shown(name)} is cut")
    return data


def _check_directory(path: pathlib.Path) -> None:
  """Raises ValueError for a list of entries that takes long to read."""
  with path.open("rb") as file:
    length = file.seek(0, 2)
    file.seek(max(0, length - _END_BYTES - _END64_BYTES - _COMMENT))
    tail = file.read()
  end, end64 = tail.rfind(_END), tail.rfind(_END64)
  sizes: list[int] = []
  if 0 <= end <= len(tail) - _END_BYTES:
    sizes += struct.unpack_from("<L", tail, end + 12)
  # 32 bits do not hold the directory's size, or say so: 64 follow elsewhere.
  if 0 <= end64 <= len(tail) - 48:
    sizes += struct.unpack_from("<Q", tail, end64 + 40)
  sizes = [size for size in sizes if size != 0xFFFFFFFF]
  if max(sizes, default=0) > min(length, _MOST_DIRECTORY):
    raise ValueError(
      f"is truncated or changed: it lists entries in {max(sizes)} bytes"
    )


def _reason(path: pathlib.Path, error: Exception) -> str:
  """Why a file is no zip."""
  with path.open("rb") as file:
    start = file.read(512)
  if start.startswith(_LEGACY):
    return "is of torch before 1.6: load it there and save it again"
  if start[257:262] == b"ustar":
    return "is a tar of torch before 0.2: load it there and save it again"
  if start.startswith(b"PK"):
    return f"is truncated or changed: {clean(str(error))}"
  return "must be a zip file as torch.save writes it, and is none"
