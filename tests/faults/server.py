"""A server's life, call by call: programs, memory and memory maps.

One server draws samples with `posterior_jax.run`, one continues texts with
`neumann_jax.generate`. No two calls ask for the same; what a library keeps of
each call kills the process in the end, by its memory or by its maps, of which
Linux allows 65,530.
"""

import contextlib
import pathlib
import resource
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import posterior_jax as pj
from neumann_jax import (
  Execution,
  LanguageModel,
  ModelConfig,
  RuleOptions,
  SamplingSpec,
  generation,
)
from posterior_jax import baselines

COMPILED = "/jax/core/compile/backend_compile_duration"
SIDE = 8  # of images
LONGEST = 2000  # tokens of a prompt
PROC = pathlib.Path("/proc/self")  # of Linux
CONFIG = ModelConfig(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=16,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=8,
  linear_value_head_dim=8,
  initializer_range=0.3,
)


class Seen(NamedTuple):
  """After a call.

  Attributes:
    call: its number, the first is 1.
    programs: that this call and all before it have compiled.
    megabytes: resident.
    maps: memory maps of the process.
  """

  call: int
  programs: int
  megabytes: float
  maps: int


def life(calls: Iterable[Callable[[], Any]]) -> Iterator[Seen]:
  """Makes the calls; what prepares one compiles on its own account."""
  compiled = 0
  with counting() as programs:
    for i, call in enumerate(calls, 1):
      before = len(programs)
      call()
      compiled += len(programs) - before
      yield Seen(i, compiled, _megabytes(), _maps())


@contextlib.contextmanager
def counting() -> Iterator[list[str]]:
  """A list of the functions that XLA compiles, JAX's own among them."""
  programs: list[str] = []
  listening = True

  def heard(event: str, _: float, fun_name: str = "", **__: Any) -> None:
    if listening and event == COMPILED:
      programs.append(fun_name.removeprefix("jit(").removesuffix(")"))

  # There is no public way to take one listener back: it is told to be deaf.
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    yield programs
  finally:
    listening = False


def restoring(count: int) -> Iterator[Callable[[], None]]:
  """Four samplers in turn, built anew like prior, measurement and key."""
  builders = (
    lambda prior: pj.nfc(
      pj.NFCConfig.calibrated(levels=3), spectrum=prior.spectrum
    ),
    lambda prior: pj.nfc(
      pj.NFCConfig.calibrated(levels=3, inner_noise_std=0.1),
      spectrum=prior.spectrum,
    ),
    lambda prior: baselines.dps(baselines.DPSConfig.published(levels=3)),
    lambda prior: baselines.ddrm(baselines.DDRMConfig.published(levels=3)),
  )
  for i in range(count):
    spectrum = pj.priors.power_law_spectrum(
      SIDE, SIDE, exponent=2.0 + 0.001 * i
    )
    prior = pj.priors.gaussian_prior(spectrum)
    operator = pj.operators.gaussian_blur((SIDE, SIDE, 1), size=3, std=1.0)
    y = jax.random.normal(jax.random.key(i), (1, SIDE, SIDE, 1))
    observation = pj.Observation(y, operator, 0.1 + 0.001 * i)
    key = jax.random.key(i)

    def call(i=i, prior=prior, observation=observation, key=key) -> None:
      x, _ = pj.run(builders[i % 4](prior), prior.denoise, observation, key)
      assert np.isfinite(x).all()

    yield call


@nnx.jit
def small_model() -> LanguageModel:
  """Of random weights."""
  execution = Execution(rule=RuleOptions(chunk_size=8))
  return LanguageModel(CONFIG, execution, rngs=nnx.Rngs(1))


def requests(
  count: int, longest: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
  """Prompts of any length, and other parameters for each."""
  rng = np.random.default_rng(seed)
  keys = [jax.random.key(i) for i in range(3)]
  for i in range(count):
    temperature = float(rng.choice([0.0, rng.uniform(0.1, 2)]))
    cuts: dict[str, Any] = {}
    if temperature:
      cuts = {
        "top_k": [None, int(rng.integers(1, 61))][rng.integers(2)],
        "top_p": [None, float(rng.uniform(0.1, 1))][rng.integers(2)],
        "min_p": [0.0, 0.05][rng.integers(2)],
      }
    yield {
      "prompts": [rng.integers(0, 61, rng.integers(1, longest + 1))],
      "max_new_tokens": int(rng.integers(1, 40)),
      "spec": SamplingSpec(
        temperature,
        **cuts,
        repetition_penalty=float(rng.uniform(1, 1.3)),
        presence_penalty=float(rng.uniform(0, 1)),
      ),
      "stop_tokens": rng.integers(0, 61, rng.integers(0, 4)).tolist(),
      "key": keys[i % 3] if temperature else None,
    }


def generating(
  model: LanguageModel, count: int
) -> Iterator[Callable[[], None]]:
  """Plain calls, and every fifth a turn of a chat after the last one."""
  cache: Any = None
  for i, request in enumerate(requests(count, LONGEST)):
    if i % 5 == 4:
      request |= {"prompts": [request["prompts"][0][:100]], "cache": cache}

    def call(request=request) -> None:
      nonlocal cache
      cache = generation.generate(model, **request).cache

    yield call


def _megabytes() -> float:
  pages = int((PROC / "statm").read_text().split()[1])
  return pages * resource.getpagesize() / 1e6


def _maps() -> int:
  return (PROC / "maps").read_text().count("\n")
