"""The loss that keeps a router from sending all tokens to a few experts."""

import jax
import jax.numpy as jnp

from neumann_jax.layers.feed_forward import Routing


def balance_loss(routing: Routing | None) -> jax.Array:
  """E sum_e f_e p_e of all sparse layers together.

  f_e is the share of tokens that expert e was chosen by and p_e the mean of its
  softmax, both over the tokens of all layers: the load balancing loss of the
  Switch Transformer (arXiv 2101.03961, eq. 4 to 6), for K experts per token as
  transformers computes it. It is K where all experts are used alike, and more
  where choices and scores gather on the same experts. The shares have no
  gradient; the softmax has.

  Args:
    routing: from `LanguageModel.routed_hidden_states`; sums of several batches
      or devices may be added up first.

  Returns:
    Scalar float32.

  Raises:
    ValueError: for None, the routing of a model without experts.
  """
  if routing is None:
    raise ValueError("routing must be of a model with experts, got None")
  experts = routing.counts.shape[-1]
  tokens = jnp.maximum(routing.tokens, 1)
  share = routing.counts / tokens
  return experts * jnp.sum(share * routing.scores / tokens)
