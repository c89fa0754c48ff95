"""A checkpoint names files of its own folder, and they hold numbers."""

import json
import struct

import numpy as np
import pytest

from neumann_jax import checkpoint
from neumann_jax.checkpoint import safetensors_io
from neumann_jax.foreign_files import json_file
from posterior_jax import priors
from posterior_jax.foreign_files import folder as folders
from posterior_jax.foreign_files import tensor_file
from posterior_jax.priors.checkpoints import diffusers_unet, named_tensors
from tests.faults import kinds
from tests.faults.kinds import check_message, edit
from tests.faults.spending import cheap
from tests.oracles import refused

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


def test_folders_of_a_pipeline_are_its_own(tmp_path):
  """A subfolder that is a link, and a revision that is named elsewhere."""
  sound = kinds.FIXTURES / "unets/diffusers_new"
  pipeline, cache = tmp_path / "pipeline", tmp_path / "models--a--b"
  pipeline.mkdir()
  (pipeline / "unet").symlink_to(sound)
  with refused(ValueError, "'config.json' in .*pipeline must lie in that"):
    priors.load_diffusers(pipeline)
  (cache / "snapshots/0123").mkdir(parents=True)
  (cache / "refs").mkdir()
  (tmp_path / "secret").write_text("QQQ")
  (cache / "refs/main").symlink_to(tmp_path / "secret")
  with refused(ValueError, "'main' in .* must lie in that folder") as raised:
    priors.load_diffusers(cache)
  assert "QQQ" not in str(raised.value)
  (cache / "refs/main").unlink()
  for data in (b"\xff", b"0" * 1000):
    (cache / "refs/main").write_bytes(data)
    with refused(ValueError, "refs/main names no snapshot: "):
      priors.load_diffusers(cache)
  (cache / "refs/main").write_text("0123")
  (cache / "snapshots/0123/unet").mkdir()
  for file in sound.iterdir():
    copy = cache / "snapshots/0123/unet" / file.name
    copy.write_bytes(file.read_bytes())
  assert diffusers_unet._model_folder(cache) == copy.parent


def test_what_is_saved_like_a_folder_comes_of_that_folder(tmp_path):
  """Its other files are copied; what a link of it leads to is not."""
  folder = kinds.make(kinds.KINDS["config"], tmp_path)
  model = checkpoint.load(folder)
  with refused(ValueError, "leads out of it"):
    checkpoint.save(model, tmp_path / "new", like=folder)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
def test_weights_are_finite(value, tmp_path):
  """1e39 is a number of float64, and none of the models' float32."""
  model = kinds.make(kinds.KINDS["config"], tmp_path)
  held = kinds.tensors()
  name = "model.layers.1.mlp.up_proj.weight"
  held[name] = held[name].astype(np.float64)
  held[name][3, 2] = value
  kinds._save(model / safetensors_io.SINGLE, held)
  with refused(ValueError, "layers.1.mlp.up_proj.weight in .* must be finite"):
    checkpoint.load(model)
  wide = {"w": np.array([1, value])}
  source = {"w": named_tensors.Source("w", (2,), np.asarray)}
  with refused(ValueError, "w in a.pt must be finite"):
    named_tensors.collect("a.pt", wide, source)
  (tmp_path / "prior").mkdir()
  kinds.prior_files(tmp_path / "prior")
  shapes = kinds._prior_shapes()
  held = {name: np.full(s, value) for name, s in shapes.items()}
  kinds.promise(tmp_path / "prior", held, network=vars(kinds.NETWORK))
  with refused(ValueError, "in m.safetensors must be finite"):
    priors.load_prior(tmp_path / "prior/m.json")


def test_a_header_lists_no_more_tensors_than_files_have(tmp_path, monkeypatch):
  """A kilobyte each, once they are read."""
  one = b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
  header = b"{" + b",".join(one % i for i in range(280_000)) + b"}"
  data = struct.pack("<Q", len(header)) + header
  pattern = "its header lists more than 50000 tensors"
  model = kinds.make(kinds.KINDS["config"], tmp_path)
  (model / safetensors_io.SINGLE).write_bytes(data)
  (model / "a.safetensors").write_bytes(data)
  with cheap(), refused(ValueError, pattern):
    checkpoint.load(model)
  with cheap(), refused(ValueError, pattern):
    priors.load_adm(model / "a.safetensors")
  with cheap(), refused(ValueError, pattern):
    tensor_file.parse(data)
  # As many files, each of few.
  few = kinds.KINDS["index"]
  (tmp_path / "few").mkdir()
  few.make(tmp_path / "few")
  file = tmp_path / "few/b.safetensors"
  more = {f"mtp.{i}": np.ones(1, np.float32) for i in range(3)}
  kinds._save(file, tensor_file.read(file) | more)
  monkeypatch.setattr(json_file, "MOST_NAMES", len(kinds.tensors()) + 2)
  with refused(ValueError, "holds more than .* tensors"):
    safetensors_io.Files(tmp_path / "few")


def test_a_header_is_no_longer_than_its_file(tmp_path):
  path = tmp_path / "a.safetensors"
  for length, held in ((2**63, 10), (10**8, 10), (20 << 20, 21 << 20)):
    with path.open("wb") as file:
      file.write(struct.pack("<Q", length))
      file.truncate(held)  # sparse
    with cheap(), refused(ValueError, "its header"):
      tensor_file.opened(path)
