"""Looking at a run: the residual by frequency, a stream of steps, all images.

`streamed` and `recorded` take a sampler and return one that `run` takes as
well, so that the scan stays one and nothing is paid for what is not asked for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from posterior_jax.base import Denoiser, Info, Observation, Sampler, State
from posterior_jax.linalg import fourier

BANDS = 8


def band_energy(
  observation: Observation, x: jax.Array, *, bands: int = BANDS
) -> jax.Array:
  """The normalised residual of every radial band of the measurement.

  The power of F (y - A x) in a band over that of the noise, F the orthonormal
  FFT: near 1 in every band for the truth. The bands' mean, weighted by how
  many frequencies they hold, is `types.normalised_residual`. A band that a
  small measurement leaves empty holds 0.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].
    bands: K, of equal width up to Nyquist.

  Returns:
    [..., N, K] float32, low frequencies first.
  """
  operator = observation.operator
  height, width, channels = operator.measurement_shape
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  misfit = observed * (observation.y - operator.forward(x))
  power = jnp.abs(jnp.fft.fft2(misfit, axes=(-3, -2), norm="ortho")) ** 2
  index = fourier.radial_bands(height, width, bands)
  member = jax.nn.one_hot(index, bands, dtype=power.dtype)  # [h, w, K]
  energy = jnp.einsum(
    "...hwc,hwk->...k", power, member, precision=jax.lax.Precision.HIGHEST
  )
  noise = observation.noise_std**2 * jnp.mean(observed) * channels
  return energy / (noise * jnp.maximum(jnp.sum(member, axis=(0, 1)), 1))


def streamed(
  sampler: Sampler, callback: Callable[[int, Info], None]
) -> Sampler:
  """A sampler that reports every step to the host as it is done.

    bar = tqdm.tqdm(total=sampler.num_steps)
    watched = streamed(sampler, lambda step, info: bar.update())
    samples, info = run(watched, ...)
    jax.effects_barrier()  # all reports are in

  Steps arrive in order. On several devices JAX has no order to give: use one.

  Args:
    sampler: any; pass the streamed one again to reuse what `run` compiled.
    callback: (step, Info of host arrays), step from 0; it must not call JAX.

  Returns:
    The sampler, its samples unchanged.

  Raises:
    TypeError: if the callback is not callable.
  """
  if not callable(callback):
    raise TypeError(f"callback must be callable, got {type(callback).__name__}")

  def report(level: jax.Array, info: Info) -> None:
    callback(int(level), info)

  def step(
    state: State,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[State, Info]:
    following, info = sampler.step(state, denoise, observation, key)
    jax.debug.callback(report, state.level, info, ordered=True)
    return following, info

  return sampler._replace(step=step)


def recorded(sampler: Sampler) -> Sampler:
  """A sampler whose Info keeps the image of every step.

  Args:
    sampler: any whose step returns `Info`; `run` then holds num_steps images
      a sample in memory.

  Returns:
    The sampler; after `run`, `info.trajectory` is [K, B, N, H, W, C], the state
    after each of the K steps, at the noise of the next level.
  """

  def step(
    state: State,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[State, Info]:
    following, info = sampler.step(state, denoise, observation, key)
    return following, info._replace(trajectory=following.x)

  return sampler._replace(step=step)
