"""Files made to harm: each ends in one sentence that cost next to nothing."""

import bz2
import json
import math
import pathlib
import struct
import zipfile
import zlib

import hypothesis
import numpy as np
import pytest

from experiments.data import photo_tiles, text_tokens
from experiments.restore import input as restore_input
from foreign_files import folder as folders
from foreign_files import json_file, messages, tensor_file
from neumann_jax import checkpoint
from neumann_jax.checkpoint import hf_config, safetensors_io
from posterior_jax import priors
from posterior_jax.priors.checkpoints import (
  diffusers_config,
  named_tensors,
  torch_file,
)
from tests.faults import kinds, reading_table
from tests.faults.spending import cheap
from tests.oracles import refused

STORED = kinds.FIXTURES / "unets/storages.pt"
PNG = b"\x89PNG\r\n\x1a\n"
MARKED = "\x1b[31m" + "Q" * 5000  # what no message may hold


def torch_save(path, pickled, *, flags=0, storages=None):
  """A file of torch around a pickle."""
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/data.pkl", pickled)
    for name, data in (storages or {}).items():
      file.writestr(f"a/data/{name}", data)
  if flags:
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + 8, flags)
    path.write_bytes(data)
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


# --- Pickles -----------------------------------------------------------------

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
    b"\x80\x02" + b"N" * 600_000,
    "more than tensors",
  ),
  "a long program of one value": (
    b"\x80\x02N" + b"q\0h\0q\1" * 10 + b"q\0" * 600_000 + b".",
    "over 500000 operations",
  ),
  "many memo entries": (
    b"\x80\x02N"
    + b"".join(b"r" + struct.pack("<L", i) for i in range(210_000)),
    "more than tensors need",
  ),
  "a tuple as a key": (b"\x80\x02}K\1K\2\x86Ns.", "key of type tuple"),
  "a long name": (
    b"\x80\x02X" + struct.pack("<L", 5000) + b"x" * 5000 + b".",
    "5000 letters",
  ),
  "a huge number": (b"\x80\x02}I" + b"9" * 100_000 + b"\nNs.", "broken"),
  "an unknown operation": (b"\x80\x04\x8f.", "has EMPTY_SET in its data.pkl"),
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


# --- Configs and manifests ---------------------------------------------------


@pytest.fixture
def model(tmp_path):
  return kinds.make(kinds.KINDS["config"], tmp_path)


def edit(path, /, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1024"),
    (
      {"num_hidden_layers": 1000, "layer_types": None},
      r"num_hidden_layers must be at most the \d+ tensors",
    ),
    ({"hidden_size": 10**12}, "hidden_size must be at most the .* numbers"),
    ({"head_dim": 2**40}, "head_dim must be at most the .* numbers"),
    ({"hidden_size": 10**30}, "hidden_size must be"),
    ({"hidden_size": 8.5}, "hidden_size must be an integer, got 8.5"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be a number"),
    ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
    ({"layer_types": [3, 4]}, "must be a string, got 3"),
    ({"layer_types": [MARKED] * 2}, r"layer_types .* got '\\x1b\[31mQQ"),
    ({"model_type": MARKED}, r"model_type must be one of"),
    ({"rms_norm_eps": math.nan}, "config.json is not JSON"),
    ({"initializer_range": math.inf}, "config.json is not JSON"),
    ({"vocab_size": {"a": [1] * 100_000}}, "vocab_size must be an integer"),
  ],
)
def test_configs_that_eat_the_machine(model, changes, pattern):
  edit(model / "config.json", **changes)
  with cheap(), refused(ValueError, pattern) as raised:
    checkpoint.load(model)
  check_message(raised, model)


def check_message(raised, folder):
  """At most 200 characters of a file, each printable."""
  said = str(raised.value).replace(str(folder), "")
  assert said.isprintable() and said.count("Q") <= 200 and len(said) < 400, said


@pytest.mark.parametrize(
  "family", [{"num_experts": 10**6}, {"num_experts": 10**9}]
)
def test_a_million_experts(tmp_path, family):
  """None is named before there are tensors for it."""
  said = hf_config.to_json(kinds.CONFIG, np.dtype("float32"))
  said |= {"model_type": "qwen3_next", "num_experts_per_tok": 2} | family
  said |= {"moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}
  shapes = {"model.norm.weight": (8,), "model.big": (10**6, 2)}
  config = hf_config.from_json(said)
  with cheap():
    if family["num_experts"] > 10**7:
      with refused(ValueError, "num_experts must be at most the 2000008"):
        hf_config.check_held(config, shapes, "x")
    else:
      hf_config.check_held(config, shapes, "x")
      files = object.__new__(safetensors_io.Files)
      files.path, files.shapes = pathlib.Path("x"), shapes
      with refused(ValueError, "do not fit its config.json"):
        files.check(checkpoint.hf_layout.tensors(config), tied=False)


@pytest.mark.parametrize(
  ("text", "pattern"),
  [
    ("[" * 10**6 + "]" * 10**6, "nested more than 32 deep"),
    ('{"a":' * 500 + "1" + "}" * 500, "nested more than 32 deep"),
    ("1e999", "out of range"),
    ("-Infinity", "malformed"),
    ('"' + "x" * 3_000_000 + '"', "bytes, more than"),
    ("\xff", "malformed|UTF-8"),
    ("9" * 100_000, "out of range"),
    ("[" + "[]," * 300_000 + "[]]", None),
  ],
)
def test_json_is_small_shallow_and_finite(tmp_path, text, pattern):
  path = tmp_path / "a.json"
  path.write_text(text, encoding="latin-1")
  with cheap():
    if pattern is None:
      assert len(json_file.read(path)) == 300_001
    else:
      with refused(ValueError, pattern):
        json_file.read(path)


def test_an_index_names_no_more_than_models_have(model):
  index = model / safetensors_io.INDEX
  (model / safetensors_io.SINGLE).unlink()
  many = ",".join(f'"{i:x}":"a"' for i in range(700_000))
  index.write_text(f'{{"weight_map":{{{many}}}}}')
  with cheap(), refused(ValueError, "names more than 300000 tensors"):
    checkpoint.load(model)
  index.write_text('{"weight_map":{"a":' + "[" * 10**6 + "]" * 10**6 + "}}")
  with cheap(), refused(ValueError, "must be JSON with a weight_map"):
    checkpoint.load(model)


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    ({"layers_per_block": 2000}, "blocks must be at most the .* tensors"),
    ({"block_out_channels": [2**40] * 3}, "must be at most the .* numbers"),
    ({"norm_eps": -1.0}, "norm_eps lie in"),
    ({"block_out_channels": ["8", 16]}, 'must be an integer, got "8"'),
    ({"down_block_types": [MARKED] * 2}, "block types of config.json must"),
    ({MARKED: 1}, "which is not known here"),
    ({"attention_head_dim": -8}, "positive"),
  ],
)
def test_configs_of_diffusers_that_eat_the_machine(changes, pattern):
  folder = kinds.FIXTURES / "unets/diffusers_new"
  said = json.loads((folder / "config.json").read_text()) | changes
  held = {str(i): np.zeros((8, 8), np.float32) for i in range(100)}
  with cheap(), refused(ValueError, pattern) as raised:
    network = diffusers_config.read_network(said, priors.VP())
    named_tensors.check_held("a", held, network)
  check_message(raised, folder)


def test_schedules_are_typed_and_small():
  said = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
  for changes, pattern in (
    ({"num_train_timesteps": 10**9}, "steps must be at most 100000"),
    ({"beta_start": "x"}, "beta_start must be a number"),
    ({"beta_schedule": [1]}, "beta_schedule of DDPMScheduler"),
    ({"prediction_type": MARKED}, "prediction must be one of"),
  ):
    with cheap(), refused(ValueError, pattern) as raised:
      diffusers_config.read_schedule(said | changes)
    check_message(raised, "")


@pytest.mark.parametrize("which", ["prior", "model"])
def test_manifests_that_eat_the_machine(tmp_path, which):
  kind = kinds.KINDS[f"manifest ({which})"]
  folder = kinds.make(kind, tmp_path)
  said = json.loads((folder / "m.json").read_text())
  if which == "prior":
    field = "network"
    cases = [
      ({"blocks": [10**7]}, "blocks must be at most the .* tensors"),
      ({"embedding": 2**40}, "embedding must be at most the .* numbers"),
      ({"sigma_data": "x"}, "sigma_data must be a number"),
      (
        {"widths": [4] * 10**5, "blocks": [1] * 10**5},
        "at most the .* tensors",
      ),
    ]
  else:
    field = "config"
    cases = [
      ({"num_hidden_layers": 10**7, "layer_types": []}, "at most 1024"),
      ({"hidden_size": 2**40}, "hidden_size must be at most the .* numbers"),
      ({"mlp_only_layers": [0] * 10**5}, "mlp_only_layers must be some of"),
    ]
  cases.append(({"Q" * 500: 1}, "has no field"))
  for changes, pattern in cases:
    (folder / "m.json").write_text(
      json.dumps(said | {field: said[field] | changes})
    )
    with cheap(), refused(ValueError, pattern) as raised:
      kind.load(folder)
    check_message(raised, folder)


# --- Outside of the folder ---------------------------------------------------

LEADING_OUT = (
  "../outside/model.safetensors",
  "link.safetensors",
  "circle",
  "..",
  "",
  "C:\\model.safetensors",
  "a/b.safetensors",
  "x" * 300,
  "\0",
  "\ud800",
  "/etc/passwd",
)


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_checkpoint_names_files_of_its_own_folder(tmp_path, name):
  folder = kinds.make(kinds.KINDS["index"], tmp_path)
  index = folder / safetensors_io.INDEX
  homes = json.loads(index.read_text())["weight_map"]
  homes |= {"model.norm.weight": name}
  index.write_text(json.dumps({"weight_map": homes}))
  pattern = "own folder|leads out of it|names .* no file|weight_map"
  with kinds.inside(folder), cheap(), refused(ValueError, pattern) as raised:
    checkpoint.load(folder)
  check_message(raised, folder)


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_pipes_and_folders_are_no_files(tmp_path, name):
  folder = kinds.make(kinds.KINDS["manifest (prior)"], tmp_path)
  edit(folder / "m.json", file=name)
  with refused(ValueError, f"names {name}, which is not there"):
    priors.load_prior(folder / "m.json")
  with refused(ValueError, "is no regular file"):
    folders.size(folder / name)


@pytest.mark.parametrize("name", ["../outside/secret", "/etc/passwd"])
@pytest.mark.parametrize("which", ["prior", "model"])
def test_a_manifest_names_a_file_beside_it(tmp_path, which, name):
  """Neither its contents nor its hash come to light."""
  kind = kinds.KINDS[f"manifest ({which})"]
  folder = kinds.make(kind, tmp_path)
  edit(folder / "m.json", file=name)
  with kinds.inside(folder), refused(ValueError, "own folder") as raised:
    kind.load(folder)
  assert "sha256" not in str(raised.value)


def test_what_leads_out_is_heard(tmp_path):
  """`inside` fails where a reader opens another file."""
  folder = kinds.make(kinds.KINDS["index"], tmp_path)
  for path in (tmp_path / "outside/secret", folder / "link.safetensors"):
    with pytest.raises(AssertionError), kinds.inside(folder):
      path.read_bytes()
  with pytest.raises(AssertionError), kinds.inside(folder):
    tensor_file.opened(folder / "link.safetensors")


def test_caches_of_the_hub_are_read(tmp_path):
  """Links into `blobs` beside `snapshots`; others stay refused."""
  sound = kinds.make(kinds.KINDS["index"], tmp_path)
  blobs = tmp_path / "models--a--b/blobs"
  snapshot = tmp_path / "models--a--b/snapshots/0123"
  blobs.mkdir(parents=True)
  snapshot.mkdir(parents=True)
  for i, file in enumerate(("config.json", safetensors_io.INDEX, *"ab")):
    name = file if "." in file else f"{file}.safetensors"
    (blobs / str(i)).write_bytes((sound / name).read_bytes())
    (snapshot / name).symlink_to(f"../../blobs/{i}")
  files = safetensors_io.Files(snapshot)
  assert set(files.shapes) == set(kinds.tensors())
  (snapshot / "a.safetensors").unlink()
  (snapshot / "a.safetensors").symlink_to(sound / "a.safetensors")
  with refused(ValueError, "leads out of it"):
    safetensors_io.Files(snapshot)


# --- Numbers -----------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_are_finite(model, value, tmp_path):
  held = kinds.tensors()
  held["model.layers.1.mlp.up_proj.weight"][3, 2] = value
  kinds._save(model / safetensors_io.SINGLE, held)
  with refused(ValueError, "layers.1.mlp.up_proj.weight in .* must be finite"):
    checkpoint.load(model)
  wide = {"w": np.array([1, value], np.float32)}
  source = {"w": named_tensors.Source("w", (2,), np.asarray)}
  with refused(ValueError, "w in a.pt must be finite"):
    named_tensors.collect("a.pt", wide, source)
  (tmp_path / "prior").mkdir()
  kinds.prior_files(tmp_path / "prior")
  shapes = kinds._prior_shapes()
  held = {name: np.full(s, value, np.float16) for name, s in shapes.items()}
  kinds.promise(tmp_path / "prior", held, network=vars(kinds.NETWORK))
  with refused(ValueError, "in m.safetensors must be finite"):
    priors.load_prior(tmp_path / "prior/m.json")


def test_a_header_is_no_longer_than_its_file(tmp_path):
  path = tmp_path / "a.safetensors"
  for length, held in ((2**63, 10), (10**8, 10), (20 << 20, 21 << 20)):
    with path.open("wb") as file:
      file.write(struct.pack("<Q", length))
      file.truncate(held)  # sparse
    with cheap(), refused(ValueError, "its header"):
      tensor_file.opened(path)


# --- Pictures and arrays -----------------------------------------------------


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
    lambda: restore_input.read_picture(str(path)),
    lambda: restore_input.read_kernel(str(path)),
    lambda: restore_input.read_mask(str(path), (64, 64)),
    lambda: photo_tiles._pixels(path),
  ):
    with cheap(), refused(ValueError, "has 13000 x 13000 pixels, more than"):
      read()
  path.write_bytes(_png(1000, 10**6))  # which pillow itself refuses
  with cheap(), refused(ValueError, "cannot be read as a picture"):
    restore_input.read_picture(str(path))


def test_formats_that_run_programs_are_no_pictures(tmp_path):
  path = tmp_path / "a.png"
  head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"
  path.write_bytes(head + b"%%EndComments\nshowpage\n%%EOF\n")
  with refused(ValueError, r"as a picture \(cannot identify"):
    restore_input.read_picture(str(path))


def test_arrays_are_measured_before_they_are_read(tmp_path):
  path = tmp_path / "k.npy"
  for shape, held in (((16_385, 16_385), 2 << 30), ((16_385, 16_385), 100)):
    with path.open("wb") as file:
      np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
      )
      file.truncate(held)  # sparse: a byte on the disk takes none
    with cheap(), refused(ValueError, "kernel .* cannot be read as .npy"):
      restore_input.read_kernel(str(path))
  np.save(path, np.array([{}], object), allow_pickle=True)
  with cheap(), refused(ValueError, "kernel .* cannot be read as .npy"):
    restore_input.read_kernel(str(path))


def test_a_packed_picture_unpacks_to_its_size():
  bomb = bz2.compress(bytes(10_000_000))
  with cheap(megabytes=8), refused(ValueError, "not the 2359296 bytes"):
    photo_tiles._raccoon(bomb)
  found = photo_tiles._raccoon(bz2.compress(bytes(2_359_296)))
  assert found.shape == (768, 1024, 3) and not found.any()


# --- Tokenizers --------------------------------------------------------------


def test_tokens_that_end_a_text_are_integers(tmp_path):
  folder = kinds.make(kinds.KINDS["generation_config"], tmp_path)
  file = folder / "generation_config.json"
  for value in (True, 1.5, math.nan, {"a": 1}, [[1]], 10**30, MARKED):
    edit(file, eos_token_id=value)
    pattern = "eos_token_id|no readable JSON"
    with cheap(), refused(ValueError, pattern) as raised:
      text_tokens.load_tokenizer(folder, 64)
    check_message(raised, folder)


# --- Messages ----------------------------------------------------------------


def test_messages_repeat_little_and_nothing_that_a_terminal_obeys():
  assert messages.clean("a\nb\t c") == "a b c"
  assert messages.clean("\x1b]0;x\x07") == r"\x1b]0;x\x07"
  assert messages.clean("\u202e\x7f\ud800") == r"\u202e\x7f\ud800"
  for value in (
    MARKED,
    [MARKED],
    {MARKED: 1},
    10**4000,
    b"x" * 999,
    [[]] * 999,
  ):
    for said in (messages.shown(value), messages.as_json(value)):
      assert said.isprintable() and len(said) <= 85


# --- By chance ---------------------------------------------------------------


@pytest.mark.parametrize("name", kinds.KINDS)
def test_mutated_files_end_in_a_sentence(tmp_path, name):
  """What reads is fast enough for many; `reading_table` builds models too."""
  kind = kinds.KINDS[name]
  folder = kinds.make(kind, tmp_path)
  file = folder / kind.file
  sound = file.read_bytes()
  kind.read(folder)

  @hypothesis.settings(
    max_examples=40,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(kind.mutations(sound))
  def one(data):
    file.write_bytes(data)
    with kinds.inside(folder):
      kinds.outcome(lambda: kind.read(folder), folder)

  one()


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.KINDS)
def test_files_cut_at_every_length(tmp_path, name):
  """At most 2000 lengths, evenly."""
  kind = kinds.KINDS[name]
  folder = kinds.make(kind, tmp_path)
  file = folder / kind.file
  sound = file.read_bytes()
  for length in np.unique(np.linspace(0, len(sound), 2000).astype(int)):
    file.write_bytes(sound[:length])
    kinds.outcome(lambda: kind.read(folder), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_thousand_mutated_files(name):
  (row,) = reading_table.table([name], 1000)
  assert row["files"] >= 1000 and not row["failures"], row
