"""Files of torch made to harm: one sentence each, at next to no cost."""

import struct
import zipfile

import numpy as np
import pytest

from posterior_jax.priors.checkpoints import torch_file
from tests.faults.kinds import MARKED
from tests.faults.spending import cheap
from tests.oracles import refused


def torch_save(path, pickled, *, storages=None):
  """A file of torch around a pickle."""
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/data.pkl", pickled)
    for name, data in (storages or {}).items():
      file.writestr(f"a/data/{name}", data)
  return path


def _tensor(shape, strides):
  """The pickle of {"w": a view of four numbers}."""
  number = lambda n: b"\x8a\x0a" + n.to_bytes(10, "little")  # noqa: E731
  numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"  # noqa: E731
  return (
    b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
    b"ctorch\nFloatStorage\nX\1\0\0\0"
    + b"0X\3\0\0\0cpuK\x04tQK\0"
    + numbers(shape)
    + numbers(strides)
    + b"\x89ccollections\nOrderedDict\n)RtRs."
  )


NESTED = b"\x80\x02)q\0" + b"".join(
  b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)
)
# A hundred to the seventh entries for whoever hashes or prints it.
WIDE = b"\x80\x02)q\0" + (b"(" + b"h\0" * 100 + b"tq\0") * 7
PICKLES = {
  "wide tuples as a name": (WIDE + b"h\0\x93.", "a name is no text"),
  "wide tuples as a storage": (WIDE + b"Q.", "broken"),
  "wide tuples as a key": (WIDE + b"}h\0Ns.", "key of type tuple"),
  "wide tuples": (WIDE + b"}X\1\0\0\0wh\0s.", "its 'w' is of type tuple"),
  "nested tuples": (NESTED + b".", "tuples more than 8 deep"),
  "nested tuples as a key": (b"\x80\x02}" + NESTED[2:] + b"Ns.", "8 deep"),
  "lists in lists": (
    b"\x80\x02]q\0" + b"]h\0h\0eq\0".join([b""] * 50) + b".",
    "broken|list",
  ),
  "a memo of 4 GB": (
    b"\x80\x02Nr\xff\xff\xff\x7f.",
    "dict of tensors, got None",
  ),
  "a name of 4 GB": (b"\x80\x02\x8d" + b"\xff" * 8 + b".", "broken"),
  "bytes of 8 GB": (
    b"\x80\x05\x96" + struct.pack("<q", 2**33) + b".",
    "broken",
  ),
  "a long program": (
    b"\x80\x02" + b"N" * 300_000,
    "more than arrays",
  ),
  "a long program of one value": (
    b"\x80\x02N" + b"q\0h\0q\1" * 10 + b"q\0" * 300_000 + b".",
    "over 200000 operations",
  ),
  "many memo entries": (
    b"\x80\x02N"
    + b"".join(b"r" + struct.pack("<L", i) for i in range(110_000)),
    "more than arrays need",
  ),
  "a tuple as a key": (b"\x80\x02}K\1K\2\x86Ns.", "key of type tuple"),
  "a long name": (
    b"\x80\x02X" + struct.pack("<L", 5000) + b"x" * 5000 + b".",
    "5000 letters",
  ),
  "a huge number": (b"\x80\x02}I" + b"9" * 100_000 + b"\nNs.", "broken"),
  "an unknown operation": (b"\x80\x04\x8f.", "has EMPTY_SET in its pickle"),
  "a class": (
    b"\x80\x02cos\n" + MARKED.encode() + b"\n.",
    r"names the class os.\\x1b\[31mQQ",
  ),
  "no end": (b"\x80\x02N", "broken"),
  "nothing on the stack": (b"\x80\x02.", "broken"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_eat_the_machine(tmp_path, name):
  pickled, pattern = PICKLES[name]
  path = torch_save(tmp_path / "a.pt", pickled)
  with cheap(), refused(ValueError, pattern) as raised:
    torch_file.read(path)
  assert len(str(raised.value)) < 300


def test_a_tensor_is_no_larger_than_its_storage(tmp_path):
  """A stride of 0 makes any size of one number."""
  path, storages = tmp_path / "a.pt", {"0": np.arange(4, dtype=np.float32)}
  torch_save(path, _tensor([2, 2], [2, 1]), storages=storages)
  np.testing.assert_array_equal(torch_file.read(path)["w"], [[0, 1], [2, 3]])
  torch_save(path, _tensor([2**20, 2**20], [0, 0]), storages=storages)
  with cheap(), refused(ValueError, "repeat their storages too often"):
    torch_file.read(path)
  torch_save(path, _tensor([2**70], [0]), storages=storages)
  with cheap(), refused(ValueError, "broken|impossible strides"):
    torch_file.read(path)


@pytest.mark.parametrize(
  ("field", "value", "pattern"),
  [
    (8, 1, "encrypted|truncated or changed"),
    (10, 99, "compressed data.pkl"),
    (24, 2**31 - 1, "entries overlap|truncated"),
    (42, 2**31 - 1, "truncated or changed"),
  ],
)
def test_odd_zip_entries(tmp_path, field, value, pattern):
  path = torch_save(tmp_path / "a.pt", b"\x80\x02}.")
  data = bytearray(path.read_bytes())
  width = "<L" if field > 20 else "<H"
  struct.pack_into(width, data, data.rindex(b"PK\1\2") + field, value)
  path.write_bytes(data)
  with cheap(), refused(ValueError, pattern):
    torch_file.read(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
  """Read one by one, 400 entries of the same megabyte are 400 MB."""
  path = tmp_path / "a.pt"
  torch_save(path, b"\x80\x02}.", storages={"0": bytes(1 << 20)})
  with zipfile.ZipFile(path, "a") as file:
    (first,) = (e for e in file.infolist() if e.filename.endswith("data/0"))
    for i in range(400):
      other = zipfile.ZipInfo(f"a/data/{i + 1}")
      for field in ("header_offset", "file_size", "compress_size", "CRC"):
        setattr(other, field, getattr(first, field))
      file.filelist.append(other)
    file._didModify = True
  with cheap(), refused(ValueError, "entries overlap"):
    torch_file.read(path)
