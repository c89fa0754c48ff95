"""Running a sampler: the one scan, and two ways to look into it.

`streamed` and `recorded` take a sampler and return one that `run` takes as
well, so that the scan stays one and nothing is paid for what is not asked for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  State,
  check_observation,
)


def run(
  sampler: Sampler,
  denoise: Denoiser,
  observation: Observation,
  key: jax.Array,
  *,
  num_samples: int = 1,
) -> tuple[jax.Array, Any]:
  """Draws posterior samples: the package's only scan, compiled once.

  Samplers of equal settings, built again or not, new spectra, observations,
  operators of the same kind and shape, noise levels, keys and denoisers that
  are pytrees (such as `GaussianPrior.denoise`) reuse the compiled program. A
  plain function is part of it: pass the same object again.

  Args:
    sampler: from `nfc`, `baselines`, or of one's own.
    denoise: (x [M, H, W, C], sigma [M]) -> E[x0 | x] [M, H, W, C].
    observation: y [N, h, w, C], its operator and noise.
    key: the same key gives the same bits on one backend.
    num_samples: B, posterior samples of every observation.

  Returns:
    Samples [B, N, H, W, C] float32 and the Info of every step, stacked.

  Raises:
    TypeError: if `sampler` is no `Sampler`, `denoise` not callable, observation
      no `Observation`, its operator no `Operator`, y no array of floating
      point, key no single key, or num_samples no integer.
    ValueError: for a measurement of the wrong shape, not finite or far beyond
      [-1, 1], a noise level that is not positive, num_samples < 1, an image
      that spectrum or Haar levels do not fit, or a denoiser that returns
      another shape or type, or is no function of JAX; before any compilation.
    FloatingPointError: if the samples are not finite, naming the first step
      that was not, or what the operator measures of them is not.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> truth = prior.sample(jax.random.key(0), (1,), channels=1)
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> observation = pj.Observation(operator.forward(truth), operator, 0.05)
    >>> sampler = pj.nfc(pj.NFCConfig(levels=3), spectrum=prior.spectrum)
    >>> key = jax.random.key(1)
    >>> samples, info = pj.run(
    ...   sampler, prior.denoise, observation, key, num_samples=2
    ... )
    >>> samples.shape, info.residual.shape
    ((2, 1, 8, 8, 1), (3, 2, 1))
  """
  _check_sampler(sampler)
  if not callable(denoise):
    raise TypeError(
      "denoise must be callable, as the denoise of a prior is, got "
      f"{type(denoise).__name__}"
    )
  _check_key(key)
  number = isinstance(num_samples, int | np.integer)
  if isinstance(num_samples, bool) or not number:
    raise TypeError(f"num_samples must be an integer, got {num_samples!r}")
  if num_samples < 1:
    raise ValueError(f"num_samples must be at least 1, got {num_samples}")
  check_observation(observation)
  # float32 whatever came: another dtype would compile anew.
  observation = Observation(
    jnp.asarray(observation.y, jnp.float32),
    observation.operator,
    jnp.asarray(observation.noise_std, jnp.float32),
  )
  functions = _as_pytrees(sampler.init, sampler.step, denoise)
  samples, info = _run(
    *functions, observation, key, sampler.num_steps, int(num_samples)
  )
  _check_finite(samples, info)
  return samples, info


def _as_pytrees(*functions: Callable[..., Any]) -> list[Callable[..., Any]]:
  # A plain function is no pytree and would be an invalid leaf: as a Partial it
  # is part of the program, and only another object compiles anew.
  return [
    jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f
    for f in functions
  ]


def _check_sampler(sampler: Sampler) -> None:
  if not isinstance(sampler, Sampler):
    raise TypeError(
      f"sampler must be a Sampler, as nfc returns, got {type(sampler).__name__}"
    )


def _check_key(key: jax.Array) -> None:
  """One key, of `jax.random.key` or of the older `jax.random.PRNGKey`."""
  found = type(key).__name__
  if isinstance(key, jax.Array | np.ndarray):
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.ndim == (0 if typed else 1) and (typed or key.dtype == np.uint32):
      return
    found = f"{key.dtype} of shape {key.shape}"
  raise TypeError(f"key must be one key, as jax.random.key(0), got {found}")


def _check_finite(samples: jax.Array, info: Any) -> None:
  """Refuses a result that one wrong weight has spread through."""
  if isinstance(samples, jax.core.Tracer) or not samples.is_fully_addressable:
    return
  residuals = info.residual if isinstance(info, Info) else samples
  finite, measured = map(bool, _all_finite(samples, residuals))
  if finite and measured:
    return
  if finite:
    raise FloatingPointError(
      "the residual is not finite: what the operator measures of the "
      "samples is NaN or infinite"
    )
  step = ""
  if isinstance(info, Info):
    residual = np.asarray(info.residual)
    bad = ~np.isfinite(residual).all(tuple(range(1, residual.ndim)))
    step = f" from step {int(bad.argmax())} on" if bad.any() else ""
  raise FloatingPointError(
    f"samples are not finite{step}: denoise returns NaN or infinity, or the "
    "sampler's settings let it diverge"
  )


@jax.jit  # one program of a server's few, not two
def _all_finite(
  samples: jax.Array, residuals: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return jnp.isfinite(samples).all(), jnp.isfinite(residuals[-1:]).all()


@functools.partial(jax.jit, static_argnums=(5, 6))
def _run(
  init: Callable[..., State],
  step: Callable[..., tuple[State, Any]],
  denoise: Denoiser,
  observation: Observation,
  key: jax.Array,
  num_steps: int,
  num_samples: int,
) -> tuple[jax.Array, Any]:
  # One key per step, made before the scan: a step draws the same whatever those
  # before it drew.
  key_init, key_steps = jax.random.split(key)
  state = init(key_init, observation, num_samples)

  def body(state: State, key: jax.Array) -> tuple[State, Any]:
    return step(state, denoise, observation, key)

  keys = jax.random.split(key_steps, num_steps)
  state, info = lax.scan(body, state, keys)
  return state.x, info


def streamed(
  sampler: Sampler, callback: Callable[[int, Info], None]
) -> Sampler:
  """A sampler that reports every step to the host as it is done.

  A progress bar is `streamed(sampler, lambda step, info: bar.update())`. Steps
  arrive in order. On several devices JAX has no order to give: use one.

  Args:
    sampler: any.
    callback: (step, Info of host arrays), step from 0; it must not call JAX. It
      is part of the program of `run`: pass the same object to reuse that.

  Returns:
    The sampler, its samples unchanged.

  Raises:
    TypeError: if the sampler is none or the callback not callable.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> from posterior_jax.nfc_sampler import Sigma
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> observation = pj.Observation(jnp.zeros((1, 8, 8, 1)), operator, 0.1)
    >>> done = []
    >>> sampler = pj.streamed(
    ...   pj.nfc(pj.NFCConfig(levels=3, width=Sigma())),
    ...   lambda step, info: done.append(step),
    ... )
    >>> _ = pj.run(sampler, prior.denoise, observation, jax.random.key(0))
    >>> jax.effects_barrier()  # all reports are in
    >>> done
    [0, 1, 2]
  """
  _check_sampler(sampler)
  if not callable(callback):
    raise TypeError(f"callback must be callable, got {type(callback).__name__}")

  return sampler._replace(step=_wrapped(_Reporting(callback), sampler))


@dataclasses.dataclass(frozen=True)
class _Reporting:
  """A step that calls back; equal where what it calls is."""

  callback: Callable[[int, Info], None]

  def __call__(
    self, step: Callable[..., tuple[State, Info]], state: State, *rest: Any
  ) -> tuple[State, Info]:
    def report(level: jax.Array, info: Info) -> None:
      self.callback(int(level), info)

    following, info = step(state, *rest)
    jax.debug.callback(report, state.level, info, ordered=True)
    return following, info


def recorded(sampler: Sampler) -> Sampler:
  """A sampler whose Info keeps the image of every step.

  Args:
    sampler: any whose step returns `Info`; `run` then holds num_steps images
      a sample in memory.

  Returns:
    The sampler; after `run`, `info.trajectory` is [K, B, N, H, W, C], the state
    after each of the K steps, at the noise of the next level.

  Raises:
    TypeError: if the sampler is none.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> from posterior_jax.nfc_sampler import Sigma
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> observation = pj.Observation(jnp.zeros((1, 8, 8, 1)), operator, 0.1)
    >>> config = pj.NFCConfig(levels=3, width=Sigma())
    >>> sampler = pj.recorded(pj.nfc(config))
    >>> key = jax.random.key(0)
    >>> samples, info = pj.run(sampler, prior.denoise, observation, key)
    >>> info.trajectory.shape
    (3, 1, 1, 8, 8, 1)
  """
  _check_sampler(sampler)
  return sampler._replace(step=_wrapped(_record, sampler))


def _record(
  step: Callable[..., tuple[State, Info]], *arguments: Any
) -> tuple[State, Info]:
  following, info = step(*arguments)
  return following, info._replace(trajectory=following.x)


def _wrapped(wrap: Callable[..., Any], sampler: Sampler) -> Callable[..., Any]:
  """The sampler's step inside of `wrap`, as equal as both are."""
  return jax.tree_util.Partial(wrap, *_as_pytrees(sampler.step))
