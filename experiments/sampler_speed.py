"""Throughput of the sampler in JAX beside the same method in PyTorch.

  python -m experiments.sampler_speed

Settings: `configs/sampler_speed.py`. Both restore the same blurred photographs
by the same network, levels and closed-form step; PyTorch runs on CUDA devices
only, eager and compiled. The three frozen kernels take turns, and the
compilations that JAX makes after the first of them are counted.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import photographs
from experiments.harness import record, runner
from experiments.harness.settings import DTYPES, Checked, setting
from experiments.harness.speed import timing
from experiments.harness.speed.timing import Job, Timing
from experiments.peers import gpu, torch_sampler, torch_unet
from posterior_jax import NFCConfig, Observation, metrics, operators, priors
from posterior_jax import schedule as schedules
from posterior_jax.nfc_sampler import Mean, Sigma
from posterior_jax.operators import frozen

COMPILATION = "/jax/core/compile/backend_compile_duration"
EAGER, NETWORK = "torch eager", "torch, network compiled"
COMPILED, GRAPHS = "torch compiled", "torch CUDA graphs"
# torch.compile's mode for a whole step, None without it. It has no kernels for
# complex numbers, so that compiling the network alone may be faster.
MODES = {
  EAGER: None,
  NETWORK: None,
  COMPILED: "default",
  GRAPHS: "reduce-overhead",
}


_COUNTS = "batch, levels and repeats must be at least 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the timing."""

  batch: int = setting(at_least=1, words=_COUNTS)  # images a run
  # their side, at least 64 and divisible by 8
  size: int = setting(at_least=64, multiple_of=8)
  levels: int = setting(at_least=1, words=_COUNTS)  # denoiser calls a run
  noise_std: float = setting(above=0)  # of the measurements
  # of the network's arithmetic
  dtype: str = setting(among=DTYPES)
  repeats: int = setting(at_least=1, words=_COUNTS)  # measurements


def config(settings: Settings) -> NFCConfig:
  """The sampler that is timed."""
  return NFCConfig(
    levels=settings.levels, width=Sigma(), inner=Mean(tolerance=1e-4)
  )


def problems(settings: Settings) -> tuple[jax.Array, list[Observation]]:
  """Truth [B, H, W, 3] and an observation for every frozen kernel."""
  names = [
    photographs.HELD_OUT[i % len(photographs.HELD_OUT)]
    for i in range(settings.batch)
  ]
  truth = jnp.asarray(photographs.stack(tuple(names), settings.size))
  found = []
  for i, kernel in enumerate(frozen.PATHS):
    operator = operators.motion_blur(
      (settings.size, settings.size, 3), kernel, boundary="circular"
    )
    noise = jax.random.normal(jax.random.key(i), truth.shape)
    y = operator.forward(truth) + settings.noise_std * noise
    noise_std = jnp.asarray(settings.noise_std)
    found.append(Observation(jax.block_until_ready(y), operator, noise_std))
  return truth, found


@contextlib.contextmanager
def counted_compilations() -> Iterator[Callable[[], int]]:
  """How many programs JAX has compiled within the context, so far."""
  count = 0

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    nonlocal count
    count += event == COMPILATION

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield lambda: count
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def speed(settings: Settings, run: record.Run) -> None:
  """Times every form, writes and prints the table."""
  about = {
    name: getattr(settings, name) for name in ("batch", "size", "levels")
  }
  found: dict[str, dict] = {}
  for job in jobs(settings):
    row = timing.row(job, about, ("images_per_s", "psnr", "compilations"))
    del row["implementation"]
    found[job.name] = row = {"form": row.pop("name"), **row}
    shown, median = row["note"], row["median_ms"]
    if median is not None:
      row["images_per_s"] = 1e3 * settings.batch / median
      spread = (row["highest_ms"] - row["lowest_ms"]) / median
      shown = (
        f"{row['images_per_s']:.3f} images/s, spread {spread:.1%}, "
        f"{row['psnr']:.2f} dB"
      )
    run.write("sampler_speed", row)
    print(f"{job.name}: {shown}")
    if row["compilations"] is not None:
      print(f"programs compiled after the first run: {row['compilations']}")
  for name in MODES:
    ratio = timing.ratio(found[name], found["jax"])
    if ratio is not None:
      print(f"jax's throughput over {name}: {ratio:.3f}")


def jobs(settings: Settings) -> list[Job]:
  """JAX, and PyTorch in every mode, on the same observations."""
  prior = priors.photo_prior(dtype=settings.dtype)
  truth, observations = problems(settings)
  sampler = posterior_jax.nfc(config(settings))
  options: dict[str, Any] = {"repeats": settings.repeats, "inner": 1}

  def draw(observation: Observation, key: jax.Array) -> jax.Array:
    return posterior_jax.run(sampler, prior.denoise, observation, key)[0][0]

  def in_jax() -> tuple[Timing, dict[str, Any]]:
    keys = jax.random.split(jax.random.key(0), len(observations))
    inputs = list(zip(observations, keys))
    with counted_compilations() as count:
      first = jax.block_until_ready(draw(*inputs[0]))
      before = count()
      taken = timing.measure(draw, inputs, **options)
      after = count() - before
    psnr = float(jnp.mean(metrics.psnr(first, truth)))
    return taken, {"psnr": psnr, "compilations": after}

  def in_torch(form: str) -> tuple[Timing, dict[str, Any]]:
    import torch

    denoise = _last_channels(
      torch_unet.denoiser(
        prior.params, prior.config, device="cuda", dtype=settings.dtype
      )
    )
    step = _compiled(MODES[form])
    if form == NETWORK:
      denoise = torch.compile(denoise)
    sigmas = [
      torch.tensor(float(s), device="cuda") for s in _levels(config(settings))
    ]
    inputs = [tensors(observation) for observation in observations]

    def call(y: Any, transfer: Any) -> Any:
      return torch_sampler.loop(
        step, denoise, y, transfer, settings.noise_std, sigmas
      )

    with torch.no_grad():
      x = call(*inputs[0]).permute(0, 2, 3, 1).cpu().numpy()
      taken = timing.measure(call, inputs, wait=gpu.wait, **options)
    psnr = float(np.mean(metrics.psnr(jnp.asarray(x), truth)))
    return taken, {"psnr": psnr}

  reason = gpu.missing("torch")
  peers = [
    Job(name, "torch", functools.partial(in_torch, name), reason)
    for name in MODES
  ]
  return [Job("jax", "xla", in_jax), *peers]


def tensors(observation: Observation) -> tuple[Any, Any]:
  """y [N, C, H, W] and the kernel's half spectrum, as torch tensors."""
  operator = observation.operator
  assert isinstance(operator, operators.Blur)
  width = operator.image_shape[1]
  half = operator.transfer[:, : width // 2 + 1]
  y = gpu.shared(observation.y).permute(0, 3, 1, 2).contiguous()
  return y, gpu.shared(half)


def _compiled(mode: str | None) -> Callable[..., Any]:
  """PyTorch's step, compiled in a mode, or None for as it is."""
  import torch

  if mode is None:
    return torch_sampler.step
  step = torch.compile(torch_sampler.step, mode=mode)
  if mode != MODES[GRAPHS]:
    return step
  # A graph writes into the same buffer again at its next replay.
  return lambda *arguments: step(*arguments).clone()


def _last_channels(denoise: torch_sampler.Denoise) -> torch_sampler.Denoise:
  """The network on the memory format that its kernels are fastest in."""
  import torch

  def call(x: Any, sigma: Any) -> Any:
    return denoise(x.contiguous(memory_format=torch.channels_last), sigma)

  return call


def _levels(config: NFCConfig) -> np.ndarray:
  return schedules.karras(
    config.levels,
    sigma_max=config.schedule.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.schedule.rho,
  )


if __name__ == "__main__":
  gpu.share_memory()
  runner.main("sampler_speed", Settings, speed)
