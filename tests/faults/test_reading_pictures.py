"""Pictures and arrays are measured before they are decoded."""

import bz2
import concurrent.futures
import struct
import threading
import warnings
import zlib

import numpy as np
import PIL.Image

from experiments.data import photo_tiles
from experiments.restore.picture_files import kernel_file
from experiments.restore.picture_files.mask import read_mask
from experiments.restore.picture_files.picture import read_picture
from posterior_jax.foreign_files import picture_file
from tests.faults.spending import cheap
from tests.oracles import refused

PNG = b"\x89PNG\r\n\x1a\n"


def _png(width, height):
  chunk = lambda kind, body: (  # noqa: E731
    struct.pack(">L", len(body))
    + kind
    + body
    + struct.pack(">L", zlib.crc32(kind + body))
  )
  header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
  rows = zlib.compress(bytes((width // 8 + 1) * min(height, 13_000)))
  return (
    PNG + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
  )


def test_pictures_are_measured_before_they_are_decoded(tmp_path):
  path = tmp_path / "a.png"
  path.write_bytes(_png(13_000, 13_000))
  for read in (
    lambda: read_picture(str(path)),
    lambda: kernel_file.read(str(path)),
    lambda: read_mask(str(path), (64, 64)),
    lambda: photo_tiles._pixels("a.png", path),
  ):
    with cheap(), refused(ValueError, "has 13000 x 13000 pixels, more than"):
      read()
  path.write_bytes(_png(5000, 8))
  with cheap(), refused(ValueError, "has 5000 x 8 pixels, more than are read"):
    read_picture(str(path))
  path.write_bytes(_png(1000, 10**6))  # which pillow itself refuses
  with cheap(), refused(ValueError, "cannot be read as a picture"):
    read_picture(str(path))


def test_pictures_are_read_side_by_side_and_warnings_stay(tmp_path):
  """A thread that begins second and leaves last finds the other's filters."""
  PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  begun, joined, left = (threading.Event() for _ in range(3))

  def first(_):
    begun.set()
    assert joined.wait(10)

  def second(_):
    joined.set()
    assert left.wait(10)
    return warnings.filters[0][0]

  before = list(warnings.filters)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one = pool.submit(picture_file.read, tmp_path / "a.png", first)
    assert begun.wait(10)
    other = pool.submit(picture_file.read, tmp_path / "a.png", second)
    one.result()
    left.set()
    assert other.result() == "ignore"
  assert list(warnings.filters) == before


def test_formats_that_run_programs_are_no_pictures(tmp_path):
  path = tmp_path / "a.png"
  head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"
  path.write_bytes(head + b"%%EndComments\nshowpage\n%%EOF\n")
  with refused(ValueError, "as a picture: PNG, JPEG"):
    read_picture(str(path))


def test_arrays_are_measured_before_they_are_read(tmp_path):
  path = tmp_path / "k.npy"
  for shape, held in (((16_385, 16_385), 2 << 30), ((16_385, 16_385), 100)):
    with path.open("wb") as file:
      np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
      )
      file.truncate(held)  # sparse: a byte on the disk takes none
    with cheap(), refused(ValueError, "kernel .* cannot be read as .npy"):
      kernel_file.read(str(path))
  np.save(path, np.array([{}], object), allow_pickle=True)
  with cheap(), refused(ValueError, "kernel .* cannot be read as .npy"):
    kernel_file.read(str(path))


def test_a_packed_picture_unpacks_to_its_size():
  # The process itself grows by some megabytes while this runs.
  bomb = bz2.compress(bytes(40_000_000))
  with cheap(megabytes=20), refused(ValueError, "not the 2359296 bytes"):
    photo_tiles._raccoon(bomb)
  found = photo_tiles._raccoon(bz2.compress(bytes(2_359_296)))
  assert found.shape == (768, 1024, 3) and not found.any()
