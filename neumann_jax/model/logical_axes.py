"""Logical axes of parameters, found from their names.

"embed" is the side of a matrix that meets the residual stream, "heads", "mlp"
and "vocab" are widths that devices can share, "expert" counts experts.
"""

import re
from collections.abc import Mapping
from typing import Any

from neumann_jax.layers.mixer import Axes

# Outside of the mixers, which name their own, by the end of the path; other
# parameters are whole everywhere.
_KNOWN: tuple[tuple[str, Axes], ...] = (
  (r"embed_tokens/embedding$", ("vocab", "embed")),
  (r"lm_head/kernel$", ("embed", "vocab")),
  (r"experts/gate_up_proj$", ("expert", "embed", "mlp")),
  (r"experts/down_proj$", ("expert", "mlp", "embed")),
  (r"(gate_proj|up_proj)/kernel$", ("embed", "mlp")),
  (r"down_proj/kernel$", ("mlp", "embed")),
)


def of_model(path: tuple[Any, ...], layers: Any) -> Axes:
  """Of the last axes of a model's parameter; the axes before them are whole.

  Args:
    path: of the parameter in the model.
    layers: of the model.
  """
  if path[0] == "layers":
    return of_layer(path[2:], layers[path[1]])
  return _of(path, {})


def of_layer(path: tuple[Any, ...], layer: Any) -> Axes:
  """Of the last axes of a parameter of a `DecoderLayer`.

  Args:
    path: of the parameter in the layer.
    layer: which.
  """
  if path[0] == layer.mixer_name:
    return _of(path[1:], layer.mixer.logical_axes, known=())
  return _of(path, {})


def _of(
  path: tuple[Any, ...],
  named: Mapping[str, Axes],
  known: tuple[tuple[str, Axes], ...] = _KNOWN,
) -> Axes:
  # Codes lie as the matrix that they stand for; so do scales, whose groups of
  # rows take the place of the rows.
  name = "/".join(map(str, path))
  name = name.removesuffix("/codes").removesuffix("/scale")
  if name in named:
    return named[name]
  return next((axes for end, axes in known if re.search(end, name)), ())
