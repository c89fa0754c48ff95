"""From one noise level to the next: the transition of DDIM."""

import jax
import jax.numpy as jnp


def ddim(
  key: jax.Array,
  x: jax.Array,
  x0: jax.Array,
  *,
  sigma: jax.Array,
  following: jax.Array,
  eta: jax.Array | float,
) -> jax.Array:
  """The DDIM transition (Song et al. 2021, eq. 12) in VE variables.

    x' = x0 + sqrt(sigma'^2 - s^2) (x - x0) / sigma + s n,
    s = eta sigma' sqrt(1 - sigma'^2 / sigma^2)

  eta = 1 is the ancestral step of DDPM with the smaller of its two variances,
  the exact draw from q(x' | x, x0); eta = 0 the probability-flow step.

  Args:
    key: of the noise n.
    x: [..., H, W, C] at noise sigma.
    x0: the clean image.
    sigma: > 0.
    following: sigma', from 0 to sigma.
    eta: in [0, 1].

  Returns:
    x' at the following noise; x0 itself where that is 0.
  """
  # sigma' / sigma and not their squares' difference: no digits are lost where
  # neighbouring levels are close.
  ratio = following / sigma
  spread = eta * following * jnp.sqrt(1 - ratio**2)
  kept = jnp.sqrt(following**2 - spread**2) / sigma
  noise = jax.random.normal(key, x.shape, x.dtype)
  return x0 + kept * (x - x0) + spread * noise
