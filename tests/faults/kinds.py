"""Every kind of file that is read: a sound one, its readers, its mutations."""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import strategies as st

from experiments.restore.picture_files import kernel_file
from experiments.restore.picture_files.picture import read_picture
from neumann_jax import ModelConfig, checkpoint, shipped
from neumann_jax.checkpoint import hf_config, hf_layout, safetensors_io
from neumann_jax.generation import tokenizer as tokens
from posterior_jax import priors
from posterior_jax.foreign_files import manifest
from posterior_jax.priors.checkpoints import named_tensors, torch_file
from tests.faults import mutations

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
VOCABULARY = 64
MARKED = "\x1b[31m" + "Q" * 5000  # what no message may hold
CONFIG = ModelConfig(
  vocab_size=VOCABULARY,
  hidden_size=8,
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  intermediate_size=8,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=4,
  linear_value_head_dim=4,
)
NETWORK = priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)


class Kind(NamedTuple):
  """A kind of file.

  Attributes:
    file: its name in the folder.
    make: writes a folder of sound files.
    load: what a user calls, with the folder.
    read: the part of it that reads, before a model is made: milliseconds.
    skilled: bytes -> mutations that know the format.
  """

  file: str
  make: Callable[[pathlib.Path], None]
  load: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Any]
  skilled: Callable[[bytes], st.SearchStrategy[bytes]]

  def mutations(self, sound: bytes) -> st.SearchStrategy[bytes]:
    """By chance and with skill, half each."""
    return st.one_of(mutations.by_chance(sound), self.skilled(sound))


def tensors() -> dict[str, np.ndarray]:
  """Of `CONFIG`, without a model."""
  rng = np.random.default_rng(0)
  return {
    tensor.name: np.float32(rng.normal(size=tensor.shape))
    for tensor in hf_layout.tensors(CONFIG)
  }


def text_model(folder: pathlib.Path) -> None:
  """One file of weights, as `checkpoint.save` writes it."""
  said = hf_config.to_json(CONFIG, np.dtype("float32"))
  (folder / "config.json").write_text(json.dumps(said))
  _save(folder / safetensors_io.SINGLE, tensors())


def sharded_model(folder: pathlib.Path) -> None:
  """Two files and their index."""
  text_model(folder)
  (folder / safetensors_io.SINGLE).unlink()
  names, held = ("a.safetensors", "b.safetensors"), tensors()
  homes = {name: names[i % 2] for i, name in enumerate(held)}
  for file in names:
    part = {name: held[name] for name, home in homes.items() if home == file}
    _save(folder / file, part)
  (folder / safetensors_io.INDEX).write_text(json.dumps({"weight_map": homes}))


def tokenizer(folder: pathlib.Path) -> None:
  """Words as tokens, and the one that ends a text."""
  said = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": "a",
      "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3},
      "merges": [["a", "b"], ["ab", "b"]],
    },
  }
  (folder / "tokenizer.json").write_text(json.dumps(said))
  stops = {"eos_token_id": [1, 2], "temperature": 0.7, "do_sample": True}
  (folder / "generation_config.json").write_text(json.dumps(stops))


def prior_files(folder: pathlib.Path) -> None:
  """A prior as `save_prior` writes it, its parameters 0."""
  zeros = {n: np.zeros(s, np.float16) for n, s in _prior_shapes().items()}
  promise(folder, zeros, network=vars(NETWORK))


def model_files(folder: pathlib.Path) -> None:
  """A model as `save_model` writes it, its parameters 0."""
  shapes = hf_layout.param_shapes(CONFIG)
  zeros = {
    ".".join(map(str, path)): np.zeros(shape, np.float32)
    for path, shape in shapes.items()
  }
  promise(folder, zeros, config=vars(CONFIG))


def promise(
  folder: pathlib.Path, held: dict[str, np.ndarray], **said: Any
) -> None:
  """A manifest and its weights."""
  weights = safetensors.numpy.save(held)
  (folder / "m.safetensors").write_bytes(weights)
  said |= {
    "file": "m.safetensors",
    "sha256": hashlib.sha256(weights).hexdigest(),
  }
  (folder / "m.json").write_text(json.dumps(said))


def adm(folder: pathlib.Path) -> None:
  """The small network of the loaders' tests."""
  (folder / "adm.pt").write_bytes((FIXTURES / "unets/adm.pt").read_bytes())


def pictures(folder: pathlib.Path) -> None:
  """A picture in two formats, and a kernel."""
  import PIL.Image

  ramp = np.uint8(np.add.outer(np.arange(40), np.arange(48)))
  image = PIL.Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], -1))
  for name in ("p.png", "p.jpg"):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if name == "p.png" else "JPEG")
    (folder / name).write_bytes(buffer.getvalue())
  np.save(folder / "k.npy", np.full((5, 7), 0.1))


def _save(path: pathlib.Path, held: dict[str, np.ndarray]) -> None:
  path.write_bytes(safetensors.numpy.save(held, metadata={"format": "pt"}))


@functools.cache
def _prior_shapes() -> dict[str, tuple[int, ...]]:
  return priors.learned.param_shapes(NETWORK)


def _read_weights(folder: pathlib.Path) -> Any:
  config = hf_config.read_config(folder)
  files = safetensors_io.Files(folder)
  hf_config.check_held(config, files.shapes, str(folder))
  return files


def _read_tokens(folder: pathlib.Path) -> Any:
  return tokens.load_tokenizer(folder, VOCABULARY)


def _read_prior(folder: pathlib.Path) -> Any:
  config, path, held = manifest.read(
    folder / "m.json", "network", priors.UNetConfig
  )
  named_tensors.check_held(path.name, held, config)


_PT = Kind(
  "adm.pt",
  adm,
  lambda folder: priors.load_adm(
    folder / "adm.pt", config=priors.ADMConfig(head_width=16)
  ),
  lambda folder: torch_file.read(folder / "adm.pt"),
  mutations.pickle_edited,
)
_SAFETENSORS = Kind(
  safetensors_io.SINGLE,
  text_model,
  checkpoint.load,
  _read_weights,
  mutations.header_edited,
)
_PRIOR = Kind(
  "m.json",
  prior_files,
  lambda folder: priors.load_prior(folder / "m.json"),
  _read_prior,
  mutations.json_edited,
)
_PNG = Kind(
  "p.png",
  pictures,
  lambda folder: read_picture(str(folder / "p.png")),
  lambda folder: read_picture(str(folder / "p.png")),
  mutations.png_edited,
)
KINDS = {
  ".pt": _PT,
  "safetensors": _SAFETENSORS,
  "index": _SAFETENSORS._replace(
    file=safetensors_io.INDEX,
    make=sharded_model,
    skilled=mutations.json_edited,
  ),
  "config": _SAFETENSORS._replace(
    file="config.json", skilled=mutations.json_edited
  ),
  "generation_config": Kind(
    "generation_config.json",
    tokenizer,
    _read_tokens,
    _read_tokens,
    mutations.json_edited,
  ),
  "tokenizer": Kind(
    "tokenizer.json",
    tokenizer,
    _read_tokens,
    _read_tokens,
    mutations.json_edited,
  ),
  "manifest (prior)": _PRIOR,
  "manifest (model)": _PRIOR._replace(
    make=model_files,
    load=lambda folder: shipped.load_model(folder / "m.json"),
    read=lambda folder: manifest.read(folder / "m.json", "config", ModelConfig),
  ),
  "PNG": _PNG,
  "JPEG": _PNG._replace(
    file="p.jpg",
    load=lambda folder: read_picture(str(folder / "p.jpg")),
    read=lambda folder: read_picture(str(folder / "p.jpg")),
    skilled=mutations.jpeg_edited,
  ),
  ".npy": _PNG._replace(
    file="k.npy",
    load=lambda folder: kernel_file.read(str(folder / "k.npy")),
    read=lambda folder: kernel_file.read(str(folder / "k.npy")),
    skilled=mutations.npy_edited,
  ),
}


def make(kind: Kind, home: pathlib.Path) -> pathlib.Path:
  """A folder of sound files, with traps in it and beside it.

  Args:
    kind: whose folder.
    home: where to put the folder, and `outside` with what must not be read.
  """
  folder, outside = home / "folder", home / "outside"
  folder.mkdir()
  outside.mkdir()
  kind.make(folder)
  # Sound weights: whoever reads them loads a model, and says nothing.
  _save(outside / "model.safetensors", tensors())
  (outside / "secret").write_text("secret")
  (folder / "link.safetensors").symlink_to(outside / "model.safetensors")
  (folder / "circle").symlink_to(folder / "circle")
  (folder / "folder").mkdir()
  os.mkfifo(folder / "pipe")
  return folder


_opened: list[str] = []


def _hear(event: str, arguments: tuple) -> None:
  if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
    _opened.append(os.fsdecode(arguments[0]))


@contextlib.contextmanager
def inside(folder: pathlib.Path) -> Iterator[None]:
  """Fails if a file is opened that is neither in the folder nor Python's.

  Python announces what it opens; safetensors opens files in Rust, and is asked.
  """
  if not getattr(_hear, "heard", False):
    sys.addaudithook(_hear)  # there is no taking it back
    _hear.heard = True
  real = safetensors.safe_open

  def asked(path, *arguments, **options):
    _opened.append(os.fspath(path))
    return real(path, *arguments, **options)

  _opened.clear()
  safetensors.safe_open = asked
  try:
    yield
  finally:
    safetensors.safe_open = real
  root = pathlib.Path(__file__).parents[2]
  homes = [folder.resolve(), root, pathlib.Path("/proc"), pathlib.Path("/sys")]
  homes += map(pathlib.Path, sysconfig.get_paths().values())
  homes += (pathlib.Path(p) for p in sys.path if p.endswith("site-packages"))
  for name in _opened:
    found = pathlib.Path(name).resolve()
    assert any(found.is_relative_to(home) for home in homes), name


def outcome(call: Callable[[], Any], folder: pathlib.Path) -> str:
  """ "" for a load, else the one sentence; anything else is a failure."""
  try:
    call()
  except (ValueError, FileNotFoundError) as error:
    said = str(error)
    assert type(error) in (ValueError, FileNotFoundError), repr(error)
    assert said.isprintable(), repr(said)[:500]
    # The longest names what this package knows, beside its own folder.
    assert 0 < len(said.replace(str(folder), "")) < 500, said
    return said
  return ""


def edit(path: pathlib.Path, /, **changes: Any) -> None:
  """Replaces entries of a JSON file."""
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_message(raised: Any, folder: pathlib.Path | str) -> None:
  """At most 200 characters of a file, each printable."""
  said = str(raised.value).replace(str(folder), "")
  assert said.isprintable() and said.count("Q") <= 200 and len(said) < 400, said
