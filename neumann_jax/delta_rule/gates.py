"""What the decays of a chunk weigh: pairs of tokens, and the incoming state.

G is the cumulative log decay inside a chunk. Documents are borders that no
weight crosses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from neumann_jax.chunk_inverse import masks
from neumann_jax.delta_rule import inputs

# exp of it is 0 in float32, and sums of it within a chunk stay finite: kernels
# that subtract sums of log decays would make NaN of -inf.
_FORGET = -104.0


class Gates(NamedTuple):
  """Decay between the tokens of a chunk and across its borders, in [0, 1].

  Attributes:
    decay: [N, B, Hk, R, C, C], exp(G_i - G_j) for i >= j; 0 above the diagonal
      and between documents.
    enter: [N, B, Hk, R, C], exp(G_i): the weight of the incoming state at
      token i, 0 once a document has started inside the chunk.
  """

  decay: jax.Array
  enter: jax.Array


def chunk_gates(
  log_decay: jax.Array, documents: jax.Array | None = None
) -> Gates:
  """Every decay that a chunk needs.

  Args:
    log_decay: [N, B, Hk, R, C], <= 0, -inf allowed.
    documents: [N, B, 1, 1, C] from `layout.split_documents`, or None.

  Returns:
    Gates; weights between documents are exactly 0 and so are their gradients,
    because the mask acts on the exponent.
  """
  total = jnp.cumsum(log_decay, axis=-1)  # [N, B, Hk, R, C]
  if documents is not None:
    # The state that enters a chunk belongs to the document that the chunk
    # before ended in; initial_state belongs to the first document.
    first, last = documents[:1, ..., :1], documents[:-1, ..., -1:]
    incoming = jnp.concatenate([first, last])  # [N, B, 1, 1, 1]
    total = jnp.where(documents == incoming, total, -jnp.inf)
  return Gates(masks.decay_matrix(log_decay, documents), jnp.exp(total))


def finite_decay(
  log_decay: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
  """The gates as kernels read them: a document begins by forgetting.

  Args:
    log_decay: [B, T, Hv], <= 0, -inf allowed.
    segment_ids: [B, T] or None.

  Returns:
    [B, T, Hv] float32, at least -104.
  """
  finite = jnp.maximum(log_decay.astype(jnp.float32), _FORGET)
  if segment_ids is None:
    return finite
  starts = inputs.segment_starts(jnp.asarray(segment_ids))  # [B, T]
  return jnp.where(starts[..., None], _FORGET, finite)
