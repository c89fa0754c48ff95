"""Files as strangers make them: damaged by chance, and changed with skill.

Strategies of hypothesis. Chance cuts files, flips their bits and moves their
parts; skill keeps lengths and checksums right and changes what a file says.
"""

import ast
import copy
import functools
import io
import json
import struct
import zipfile
import zlib

from hypothesis import strategies as st

# Names outside of the folder; `kinds` puts real files there.
OUTSIDE = (
  *("../outside/model.safetensors", "../outside/secret", "/etc/passwd", ".."),
  *("link.safetensors", "circle", "pipe", "folder", "\0", "\ud800", "C:\\x"),
)
DEEP = "@deep@"  # stands for what json.dumps cannot write
VALUES = (
  *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, 1e-320, 1e308),
  *(2**31 - 1, 2**31, 2**63, 10**30, float("nan"), float("inf"), -float("inf")),
  *("", "x", "x" * 10_000, "\x1b[31mred\n\u202e", "a" * 64, DEEP, *OUTSIDE),
  *([], {}, [[]] * 1000, [1] * 10_000, ["x"] * 300, {"a": {"b": [None]}}),
  *([10**6] * 4, [0], [-1, 2**40], [float("nan")], [2, 2], {"": 1}, [[1, 2]]),
)
SIZES = (0, 1, 2, 255, 4097, 13_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)


@st.composite
def by_chance(draw, data: bytes) -> bytes:
  """Cut, flipped, overwritten, or put together anew."""
  place = st.integers(0, len(data) - 1)
  start = draw(place)
  how = draw(st.sampled_from(("cut", "flip", "write", "move", "drop", "twice")))
  if how == "cut":
    return data[:start]
  if how == "flip":
    flipped = bytearray(data)
    for at in draw(st.lists(place, min_size=1, max_size=6)):
      flipped[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(flipped)
  if how == "write":
    extremes = (b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f")
    new = draw(st.one_of(st.sampled_from(extremes), st.binary(max_size=16)))
    return data[:start] + new + data[start + len(new) :]
  end = draw(st.integers(start, min(len(data), start + 64)))
  part = data[start:end]
  if how == "drop":
    return data[:start] + data[end:]
  if how == "twice":
    return data[:end] + part + data[end:]
  to = draw(place)
  return data[:to] + part + data[to:]


def paths(value, path=()):
  """Every place in what a JSON file says."""
  yield path
  if isinstance(value, dict | list):
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys)[:60]:
      yield from paths(value[key], (*path, key))


@st.composite
def json_edited(draw, data: bytes) -> bytes:
  """What a JSON file says, with one to three values replaced."""
  said = json.loads(data)
  for _ in range(draw(st.integers(1, 3))):
    *above, key = draw(st.sampled_from([p for p in paths(said) if p] or [(0,)]))
    place = said
    for step in above:
      place = place[step]
    how = draw(
      st.sampled_from(("replace", "replace", "replace", "drop", "add"))
    )
    new = copy.deepcopy(draw(st.sampled_from(VALUES)))
    if how == "drop":
      del place[key]
    elif how == "add" and isinstance(place, dict):
      place[draw(st.sampled_from(("x" * 5000, "\x1b[2J", *OUTSIDE)))] = new
    else:
      place[key] = new
    if not said:
      break
  deep = "[" * 100_000 + "]" * 100_000
  return json.dumps(said).replace(json.dumps(DEEP), deep).encode()


@st.composite
def header_edited(draw, data: bytes) -> bytes:
  """A safetensors file whose header says something else, of right length."""
  (length,) = struct.unpack_from("<Q", data)
  header = draw(json_edited(data[8 : 8 + length]))
  claimed = draw(st.sampled_from((len(header), len(header), 2**31, 2**63)))
  return struct.pack("<Q", claimed) + header + data[8 + length :]


@st.composite
def png_edited(draw, data: bytes) -> bytes:
  """A PNG of other sizes or with another chunk, checksums right."""
  parts = list(_chunks(data))
  if draw(st.booleans()):
    header = bytearray(parts[0][1])
    for at in draw(st.sampled_from(((0,), (4,), (0, 4)))):
      struct.pack_into(">L", header, at, draw(st.sampled_from(SIZES)))
    if draw(st.booleans()):
      header[8 + draw(st.integers(0, 4))] = draw(st.sampled_from((0, 1, 3, 16)))
    parts[0] = (b"IHDR", bytes(header))
  else:
    bomb = b"x\0\0" + _packed(draw(st.sampled_from((10, 50_000_000))))
    kinds = (b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"IDAT")
    body = draw(st.one_of(st.just(bomb), st.binary(max_size=40)))
    at = draw(st.integers(1, len(parts)))
    parts.insert(at, (draw(st.sampled_from(kinds)), body))
  return data[:8] + b"".join(_chunk(*part) for part in parts)


@functools.cache
def _packed(size: int) -> bytes:
  """What unpacks to `size` bytes."""
  return zlib.compress(bytes(size), 9)


def _chunks(data: bytes):
  at = 8
  while at < len(data):
    (length,) = struct.unpack_from(">L", data, at)
    yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
  check = struct.pack(">L", zlib.crc32(kind + body))
  return struct.pack(">L", len(body)) + kind + body + check


@st.composite
def jpeg_edited(draw, data: bytes) -> bytes:
  """A JPEG whose frame has other sides."""
  at = next(
    data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data
  )
  edited = bytearray(data)
  for place in draw(st.sampled_from(((5,), (7,), (5, 7)))):
    side = min(draw(st.sampled_from(SIZES)), 65_535)
    struct.pack_into(">H", edited, at + place, side)
  return bytes(edited)


@st.composite
def npy_edited(draw, data: bytes) -> bytes:
  """An array of another shape or kind, its header of right length."""
  (length,) = struct.unpack_from("<H", data, 8)
  header = ast.literal_eval(data[10 : 10 + length].decode())
  sides = st.one_of(
    st.sampled_from(SIZES), st.sampled_from((-1, 3, 2**63, "x"))
  )
  shapes = st.one_of(st.tuples(sides, sides), st.lists(sides, max_size=5))
  kinds = (
    "<f4",
    "<f8",
    ">f8",
    "<i8",
    "|b1",
    "|O",
    "<U100000",
    "<c16",
    "|V8",
    "x",
  )
  if draw(st.booleans()):
    header["shape"] = draw(shapes)
  if draw(st.booleans()):
    header["descr"] = draw(st.sampled_from((*kinds, [("a", "<f8")], 3, None)))
  text = repr(header)
  if draw(st.integers(0, 9)) == 0:
    text = "(" * draw(st.sampled_from((90, 5000, 60_000)))
  body = text.encode() + b"\n"
  version = draw(st.sampled_from((b"\1\0", b"\2\0", b"\3\0", b"\x09\0")))
  width = "<H" if version == b"\1\0" else "<L"
  if version == b"\1\0":
    body = body[:65_535]
  size = struct.pack(width, len(body))
  return data[:6] + version + size + body + data[10 + length :]


@st.composite
def pickle_edited(draw, data: bytes) -> bytes:
  """A file of torch with another pickle or other flags, checksums right."""
  with zipfile.ZipFile(io.BytesIO(data)) as old:
    entries = {name: old.read(name) for name in old.namelist()}
  name = next(name for name in entries if name.endswith("data.pkl"))
  how = draw(st.sampled_from(("chance", "program", "chance", "flags", "lost")))
  if how == "chance":
    entries[name] = draw(by_chance(entries[name]))
  elif how == "program":
    entries[name] = draw(programs())
  elif how == "lost":
    del entries[draw(st.sampled_from(sorted(entries)))]
  new = io.BytesIO()
  packed = draw(st.sampled_from((0, 0, 0, 8, 12, 14))) if how == "flags" else 0
  with zipfile.ZipFile(new, "w", packed) as file:
    for entry, body in entries.items():
      file.writestr(entry, body)
  made = bytearray(new.getvalue())
  if how == "flags" and not packed:
    at = made.rindex(b"PK\1\2")
    field = draw(st.sampled_from((6, 8, 10, 20, 24, 42)))  # version to offset
    struct.pack_into("<H", made, at + field, draw(st.integers(0, 65_535)))
  return bytes(made)


# Operations by their codes, with operands of any size.
_OPERATIONS = (
  *(b"(", b"t", b"\x85", b"\x86", b"\x87", b")", b"]", b"}", b"a", b"e", b"u"),
  *(b"s", b"R", b"b", b"Q", b"0", b"1", b"2", b"N", b"\x88", b"q\0", b"q\1"),
  *(b"h\0", b"h\1", b"r\xff\xff\xff\x7f", b"j\0\0\0\0", b"\x94", b"K\7", b"."),
  *(
    b"X\3\0\0\0abc",
    b"\x8d\xff\xff\xff\xff\xff\0\0\0",
    b"\x8b\xff\xff\xff\x7f",
  ),
  *(
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"\x93",
    b"\x81",
  ),
  *(
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cos\nsystem\n",
    b"I99\n",
    b"L9L\n",
  ),
  *(b"\x96\xff\xff\xff\xff\0\0\0\0", b"\x95\0\0\0\0\0\0\0\0", b"\x8f", b"\x90"),
)


@st.composite
def programs(draw) -> bytes:
  """Pickles of any operations, one of which may run many times."""
  steps = draw(st.lists(st.sampled_from(_OPERATIONS), max_size=40))
  again = draw(st.sampled_from((1, 1, 30, 1000)))
  return b"\x80\2" + b"".join(steps) * again + b"."
