"""Names and layouts of a checkpoint's tensors, and the parameters they hold.

A checkpoint stores [out, in] where Flax has [in, out]. Qwen3-Next stores the
projections of Gated DeltaNet key head by key head, q|k|v|z and b|a; Qwen3.5
all heads of q, then k, then v, and z, b and a apart, as `GatedDeltaNet` does.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model_config import ModelConfig

Path = tuple[Any, ...]  # keys of modules, indices of layers
# What names of layers begin with: in a text model, in a vision-language one.
_TEXT, _INSIDE = "model.", "model.language_model."


def text_name(name: str) -> str:
  """The name in a text model of what either kind of model has."""
  return name.replace(_INSIDE, _TEXT, 1)


def inside_name(name: str) -> str:
  """The name in a vision-language model of what a text model has."""
  return _INSIDE + name.removeprefix(_TEXT)


class Piece(NamedTuple):
  """A part of a tensor that a file may hold as a tensor of its own.

  Attributes:
    name: of the piece.
    shape: of the piece.
    place: where it lies in the whole.
  """

  name: str
  shape: tuple[int, ...]
  place: tuple[int | slice, ...]


class Tensor(NamedTuple):
  """A tensor of a checkpoint and the parameters that it holds.

  Attributes:
    name: in a text model.
    shape: in the checkpoint.
    params: paths of the parameters in a model of separate layers.
    split: the tensor -> its parameters.
    join: parameters -> the tensor.
    pieces: the tensors that a file may hold instead.
  """

  name: str
  shape: tuple[int, ...]
  params: tuple[Path, ...]
  split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  join: Callable[..., np.ndarray]
  pieces: "Experts | tuple[()]" = ()


@dataclasses.dataclass(frozen=True)
class Experts:
  """The pieces of a tensor of experts, as Qwen3-Next is published: one each.

  They are named when they are asked for: a file of a few bytes can say that
  there are a billion.

  Attributes:
    owner: name of the block.
    leaf: of the parameter.
    whole: shape of the tensor, [E, out, in].
  """

  owner: str
  leaf: str
  whole: tuple[int, int, int]

  def __len__(self) -> int:
    """Experts times their projections."""
    return self.whole[0] * len(self._parts())

  def __iter__(self) -> Iterator[Piece]:
    """Expert by expert."""
    parts = self._parts()
    shape = (self.whole[1] // len(parts), self.whole[2])
    for e in range(self.whole[0]):
      for part, place in parts.items():
        yield Piece(f"{self.owner}.{e}.{part}.weight", shape, (e, place))

  def _parts(self) -> dict[str, slice]:
    # Gate and up are one matrix in the model, and in fused files: gate first.
    rows = self.whole[1]
    if self.leaf == "down_proj":
      return {"down_proj": slice(0, rows)}
    half = rows // 2
    return {"gate_proj": slice(0, half), "up_proj": slice(half, rows)}


def param_shapes(config: ModelConfig) -> dict[Path, tuple[int, ...]]:
  """Shapes of all parameters by path, in the model's order."""
  # Names and shapes come from the model itself: a layer added there is in the
  # checkpoint too. One layer of each kind is made: a layer takes a tenth of a
  # second, and 64 of them are of two kinds.
  kinds = [
    (kind, config.is_sparse(i)) for i, kind in enumerate(config.layer_types)
  ]
  places = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
  short = dataclasses.replace(
    config,
    num_hidden_layers=len(places),
    layer_types=tuple(kind for kind, _ in places),
    mlp_only_layers=tuple(i for (_, sparse), i in places.items() if not sparse),
    decoder_sparse_step=1,
  )
  model = nnx.eval_shape(lambda: LanguageModel(short, rngs=nnx.Rngs(0)))
  flat = {
    path: tuple(param.shape)
    for path, param in nnx.to_flat_state(nnx.state(model))
  }
  shapes: dict[Path, tuple[int, ...]] = {}
  for path, shape in flat.items():
    if path[0] != "layers":
      shapes[path] = shape
    elif not any(other[0] == "layers" for other in shapes):
      # All of them, where the first stands: files are cut in this order.
      shapes |= {
        ("layers", i, *inner[2:]): shape
        for i, kind in enumerate(kinds)
        for inner, shape in flat.items()
        if inner[:2] == ("layers", places[kind])
      }
  return shapes


@functools.lru_cache(maxsize=8)
def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
  """All tensors of a checkpoint of `config`, in the model's order."""
  shapes = param_shapes(config)
  if config.model_type != "qwen3_next":
    return tuple(_tensor(path, shapes[path]) for path in shapes)
  found = []
  for path, shape in shapes.items():
    if path[-2] == "in_proj_qkv":
      found.append(_by_key_head(config, path[:-2], "qkvz"))
    elif path[-2] == "in_proj_a":
      found.append(_by_key_head(config, path[:-2], "ba"))
    elif path[-2] not in ("in_proj_z", "in_proj_b"):
      found.append(_tensor(path, shape))
  return tuple(found)


def _tensor(path: Path, shape: tuple[int, ...]) -> Tensor:
  """The tensor of one parameter."""
  *owner, leaf = path
  if leaf == "kernel":
    return _one(_name(*owner, "weight"), path, shape[::-1], _transpose)
  if leaf == "embedding":
    return _one(_name(*owner, "weight"), path, shape)
  if leaf == "conv1d":
    # torch's Conv1d stores [channels, 1, taps], the middle one of its groups.
    channels = shape[::-1]
    flat = (channels[0], 1, channels[1])
    return Tensor(
      _name(*path, "weight"),
      flat,
      (path,),
      lambda x: (x[:, 0].T,),
      lambda x: x.T[:, None],
    )
  if "experts" in owner:
    # [E, in, out] here, [E, out, in] in a file: the transpose of each expert.
    whole = (shape[0], shape[2], shape[1])
    tensor = _one(_name(*path), path, whole, lambda x: x.swapaxes(1, 2))
    return tensor._replace(pieces=Experts(_name(*owner), leaf, whole))
  return _one(_name(*path), path, shape)


def _one(
  name: str,
  path: Path,
  shape: tuple[int, ...],
  turn: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Tensor:
  """A parameter that is a tensor, up to `turn`, which undoes itself."""
  return Tensor(name, shape, (path,), lambda x: (turn(x),), turn)


def _transpose(x: np.ndarray) -> np.ndarray:
  return x.T


def _name(*path: Any) -> str:
  dotted = ".".join(map(str, path))
  return dotted if path[0] == "lm_head" else f"model.{dotted}"


def _by_key_head(config: ModelConfig, owner: Path, letters: str) -> Tensor:
  """Two projections of Qwen3-Next in one tensor, key head by key head.

  Args:
    config: the architecture.
    owner: path of the block.
    letters: "qkvz", in_proj_qkv beside in_proj_z, or "ba".
  """
  heads, hidden = config.linear_num_key_heads, config.hidden_size
  ratio = config.linear_num_value_heads // heads
  if letters == "qkvz":
    keys, values = config.linear_key_head_dim, config.linear_value_head_dim
    rows = [keys, keys, ratio * values, ratio * values]
    outputs = ("in_proj_qkv", "in_proj_z")
  else:
    rows, outputs = [ratio, ratio], ("in_proj_b", "in_proj_a")
  cuts = np.cumsum(rows)[:-1]
  # The first output has all parts but the last, the second has the last.

  def split(tensor: np.ndarray) -> tuple[np.ndarray, ...]:
    parts = np.split(tensor.reshape(heads, -1, hidden), cuts, axis=1)
    flat = [part.reshape(-1, hidden) for part in parts]
    return np.concatenate(flat[:-1]).T, flat[-1].T

  def join(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    ends = heads * cuts[:-1]
    flat = [*np.split(first.T, ends), second.T]
    parts = [part.reshape(heads, -1, hidden) for part in flat]
    return np.concatenate(parts, axis=1).reshape(-1, hidden)

  return Tensor(
    _name(*owner, f"in_proj_{letters}", "weight"),
    (heads * sum(rows), hidden),
    tuple((*owner, name, "kernel") for name in outputs),
    split,
    join,
  )
