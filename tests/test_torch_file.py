"""The reader of torch's files: every tensor exactly, and nothing else."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from posterior_jax.priors.checkpoints import torch_file
from tests.oracles import refused

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "unets"
STORED = FIXTURES / "storages.pt"


def rewritten(target, changes, *, compression=zipfile.ZIP_STORED):
  """The stored file with some entries replaced, or left out where None."""
  with zipfile.ZipFile(STORED) as old:
    entries = {name: old.read(name) for name in old.namelist()}
  folder = next(iter(entries)).split("/")[0]
  entries |= {f"{folder}/{name}": data for name, data in changes.items()}
  with zipfile.ZipFile(target, "w", compression) as new:
    for name, data in entries.items():
      if data is not None:
        new.writestr(name, data)
  return target


def _pickled():
  with zipfile.ZipFile(STORED) as file:
    return next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))


def test_every_kind_of_tensor_is_read_exactly():
  """Turned, sliced, expanded, shared, empty; all floating-point dtypes."""
  found = torch_file.read(STORED)
  with np.load(FIXTURES / "expected.npz") as file:
    expected = {
      name.split("/")[1]: file[name]
      for name in file.files
      if name.startswith("storages/")
    }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].shape == value.shape
    np.testing.assert_array_equal(found[name].astype(np.float64), value)
  kinds = {name: found[name].dtype.name for name in found}
  for name in ("bfloat16", "float16", "float64", "int64", "bool"):
    assert kinds[name] == name
  assert kinds["whole"] == kinds["turned"] == "float32"


def test_shared_storages_stay_shared():
  found = torch_file.read(STORED)
  assert np.shares_memory(found["whole"], found["turned"])
  assert np.shares_memory(found["whole"], found["part"])
  assert not found["whole"].flags.writeable


class _Calls:
  """Pickles as a call of any function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path):
  trace = tmp_path / "trace"
  calls = {
    f"{os.mkdir.__module__}.mkdir": _Calls(os.mkdir, str(trace)),
    "__builtin__.eval": _Calls(eval, f"open({str(trace)!r}, 'w')"),
    "__builtin__.getattr": _Calls(getattr, "x", "upper"),
    "collections.Counter": collections.Counter("a"),
  }
  for name, call in calls.items():
    for entry in (call, {"weight": call}):
      data = pickle.dumps(entry, protocol=2)
      path = rewritten(tmp_path / "evil.pt", {"data.pkl": data})
      with refused(ValueError, f"evil.pt names the class {name}"):
        torch_file.read(path)
  assert not trace.exists()


def test_dotted_names_do_not_reach_attributes(tmp_path):
  """Protocol 4 finds "OrderedDict.fromkeys" by attributes."""
  data = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."
  path = rewritten(tmp_path / "a.pt", {"data.pkl": data})
  with refused(ValueError, "the class collections.OrderedDict.fromkeys"):
    torch_file.read(path)


@pytest.mark.parametrize(
  "name",
  [
    "torch._utils\n_rebuild_tensor_v2",
    "torch\nFloatStorage",
    "collections\nOrderedDict",
  ],
)
def test_a_pickle_cannot_change_the_reader(tmp_path, name):
  """BUILD sets attributes on whatever is at the top of the stack."""
  data = b"\x80\x02c" + name.encode() + b"\n}X\x05\x00\x00\x00dtypeK\x01sb."
  path = rewritten(tmp_path / "a.pt", {"data.pkl": data})
  with refused(ValueError, "pickle that is broken"):
    torch_file.read(path)
  test_every_kind_of_tensor_is_read_exactly()


def test_truncated_files_are_refused(tmp_path):
  whole = STORED.read_bytes()
  path = tmp_path / "cut.pt"
  for length in (4, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:length])
    with refused(ValueError, "cut.pt is truncated or changed"):
      torch_file.read(path)


def test_changed_numbers_are_refused(tmp_path):
  """A zip has checksums, which torch writes."""
  whole = bytearray(STORED.read_bytes())
  with zipfile.ZipFile(io.BytesIO(whole)) as file:
    storage = next(n for n in file.namelist() if n.endswith("data/0"))
    place = whole.index(file.read(storage))
  whole[place] ^= 1
  path = tmp_path / "changed.pt"
  path.write_bytes(whole)
  with refused(ValueError, "changed.pt is truncated or changed: Bad CRC"):
    torch_file.read(path)


def test_files_of_other_kinds_are_refused(tmp_path):
  path = tmp_path / "other.pt"
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"more")
  with refused(ValueError, "other.pt is of torch before 1.6"):
    torch_file.read(path)
  path.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 250)
  with refused(ValueError, "a tar of torch before 0.2"):
    torch_file.read(path)
  path.write_bytes(b"<!DOCTYPE html>")
  with refused(ValueError, "must be a zip file as torch.save writes it"):
    torch_file.read(path)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("weights.txt", "none")
  with refused(ValueError, "must hold one data.pkl"):
    torch_file.read(path)


def test_broken_archives_are_refused(tmp_path):
  path = tmp_path / "broken.pt"
  data = _pickled()
  for changes, pattern in (
    ({"data/0": None}, "lacks data/0"),
    ({"data/0": b"\0" * 8}, "storage 0 of 8 bytes, not 60 of float32"),
    ({"byteorder": b"big"}, "big-endian"),
    ({"data.pkl": data[:-40]}, "pickle that is broken"),
    ({"data.pkl": b""}, "pickle that is broken"),
    ({"data.pkl": data.replace(b"K\x3c", b"K\x3b")}, "not 59 of float32"),
  ):
    with refused(ValueError, f"broken.pt .*{pattern}"):
      torch_file.read(rewritten(path, changes))
  rewritten(path, {}, compression=zipfile.ZIP_DEFLATED)
  with refused(ValueError, "compressed"):
    torch_file.read(path)


WHOLE = b"K\x03K\x04K\x05\x87"  # the shape (3, 4, 5), offset 0 before it


@pytest.mark.parametrize(
  ("shape", "pattern"),
  [
    (b"K\x03K\x04K\x06\x87", "ends outside of its storage"),
    (b"K\x03K\x04J\xff\xff\xff\xff\x87", "impossible strides"),
    (b"K\x0cK\x05\x86", "impossible strides"),
  ],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, shape, pattern):
  data = _pickled()
  assert WHOLE in data
  changes = {"data.pkl": data.replace(WHOLE, shape, 1)}
  with refused(ValueError, pattern):
    torch_file.read(rewritten(tmp_path / "a.pt", changes))


def test_what_is_no_dict_of_tensors_is_refused(tmp_path):
  for entry, pattern in (
    ([], "must hold a dict of tensors, got list"),
    ({"epoch": 3}, "its 'epoch' is of type int"),
    ({"state_dict": {}}, "its 'state_dict' is of type dict"),
    ({7: "x"}, "its 7 is of type str"),
    (collections.OrderedDict(a=1.0), "its 'a' is of type float"),
  ):
    data = pickle.dumps(entry, protocol=2)
    path = rewritten(tmp_path / "a.pt", {"data.pkl": data})
    with refused(ValueError, pattern):
      torch_file.read(path)


def test_files_of_the_torch_at_hand_are_read(tmp_path):
  torch = pytest.importorskip("torch")
  whole = torch.randn(5, 7)
  tensors = {"a": whole, "b": whole.T[2:], "c": torch.nn.Parameter(whole[0])}
  module = torch.nn.Linear(3, 2)
  state = module.state_dict() | tensors  # an OrderedDict with _metadata
  torch.save(state, tmp_path / "new.pt")
  found = torch_file.read(tmp_path / "new.pt")
  assert found.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(found[name], value.detach().numpy())
  torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
  with refused(ValueError, "is of torch before 1.6"):
    torch_file.read(tmp_path / "old.pt")
  torch.save(module, tmp_path / "module.pt")
  with refused(ValueError, "names the class torch.nn.modules.linear.Linear"):
    torch_file.read(tmp_path / "module.pt")
