"""How good a restored photograph is: one row of the benchmark's table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.degradations import Problem
from posterior_jax import Observation, metrics
from posterior_jax.base import normalised_residual

# Parts of the benchmark, as the rows' first column names them.
METHODS, ABLATION, ROBUSTNESS = "methods", "ablation", "robustness"


class Row(NamedTuple):
  """One photograph restored by one program; means over its samples.

  Attributes:
    part: of the study.
    task: which.
    kernel: of motion blur.
    assumed: what the sampler believed wrongly, "" for nothing.
    method: a key of `samplers.METHODS`.
    setting: of the method.
    variant: changes of the setting.
    budget: denoiser calls asked for; 0: as the setting does.
    photograph: which.
    samples: m, drawn of the photograph.
    calls: of the denoiser for every sample.
    products: with its Jacobian (VJPs), likewise.
    psnr: of one sample, in dB, averaged over the m.
    ssim: likewise.
    residual: |y - A x|^2 / (m noise_std^2) likewise; near 1 for the truth.
    psnr_mean: of the mean of the samples; None for m = 1.
    ssim_mean: likewise.
    lpips: as psnr, but small is good; None without the weights.
    lpips_mean: as psnr_mean.
    spread: standard deviation of a pixel over the samples, root mean square.
    seconds: of all photographs and samples of the case, compiled.
    compile_seconds: of the program, others compiling beside it.
    note: why the numbers are missing, else "".
  """

  part: str
  task: str
  kernel: str
  assumed: str
  method: str
  setting: str
  variant: str
  budget: int
  photograph: str
  samples: int
  calls: int | None = None
  products: int | None = None
  psnr: float | None = None
  ssim: float | None = None
  residual: float | None = None
  psnr_mean: float | None = None
  ssim_mean: float | None = None
  lpips: float | None = None
  lpips_mean: float | None = None
  spread: float | None = None
  seconds: float | None = None
  compile_seconds: float | None = None
  note: str = ""


def judge(
  samples: jax.Array, problem: Problem, lpips: metrics.LPIPS | None
) -> list[dict[str, float | None]]:
  """How good samples are.

  Args:
    samples: [m, N, H, W, C].
    problem: what they restore.
    lpips: that distance, or None without its weights.

  Returns:
    Fields of `Row`, for every photograph.
  """
  found = _numbers(samples, problem.truth, problem.observation, lpips)
  columns = {
    name: None if values is None else np.asarray(values, float)
    for name, values in found.items()
  }
  return [
    {
      name: None if values is None else float(values[i])
      for name, values in columns.items()
    }
    for i in range(len(problem.truth))
  ]


@jax.jit
def _numbers(
  samples: jax.Array,
  truth: jax.Array,
  observation: Observation,
  lpips: metrics.LPIPS | None,
) -> dict[str, jax.Array | None]:
  """[N] each."""
  several = len(samples) > 1
  mean = jnp.mean(samples, axis=0)
  residual = normalised_residual(observation, samples)
  deviation = jnp.var(samples, axis=0, ddof=1) if several else None
  near, near_mean = None, None
  if lpips is not None:
    near = jnp.mean(lpips(samples, truth), axis=0)
    near_mean = lpips(mean, truth) if several else None
  return {
    "psnr": jnp.mean(metrics.psnr(samples, truth), axis=0),
    "ssim": jnp.mean(metrics.ssim(samples, truth), axis=0),
    "residual": jnp.mean(residual, axis=0),
    "psnr_mean": metrics.psnr(mean, truth) if several else None,
    "ssim_mean": metrics.ssim(mean, truth) if several else None,
    "lpips": near,
    "lpips_mean": near_mean,
    "spread": None
    if deviation is None
    else jnp.sqrt(jnp.mean(deviation, axis=(-3, -2, -1))),
  }
