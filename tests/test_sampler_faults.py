"""What a sampler must refuse before it compiles, and dtypes that must not leak.

Each of these once went wrong without a word.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from posterior_jax import (
  NFCConfig,
  Observation,
  baselines,
  nfc,
  operators,
  priors,
  run,
)
from posterior_jax.base import Operator, SolveInfo
from posterior_jax.nfc_sampler import (
  Band,
  Denoise,
  Fusion,
  Gradient,
  Jacobian,
  Ode,
  Schedule,
  Sigma,
  Snr,
  Spectrum,
)
from tests.oracles import refused

SIZE = (8, 8, 1)
SPECTRUM = priors.power_law_spectrum(*SIZE[:2])


def never(x, sigma):
  raise AssertionError("refused before the denoiser is traced")


BANDED = {
  "hard": nfc(NFCConfig(levels=2, width=Sigma(), band=Band())),
  "that stays": nfc(
    NFCConfig(
      levels=2, width=Sigma(), band=Band(blend_start=0.0, blend_end=0.5)
    )
  ),
  "by spectrum": nfc(NFCConfig(levels=2, band=Band(Snr())), spectrum=SPECTRUM),
  "of FGPS": baselines.fgps(baselines.FGPSConfig(levels=2)),
}


@pytest.mark.parametrize("name", BANDED)
def test_a_list_of_numbers_has_no_band(name):
  operator = operators.dense(SIZE, np.eye(5, 64))
  observation = Observation(jnp.zeros((1, 5, 1, 1)), operator, 0.1)
  prior = priors.gaussian_prior(SPECTRUM)
  denoise = prior.denoise if name == "of FGPS" else never
  with pytest.raises(ValueError, match="must measure a picture"):
    run(BANDED[name], denoise, observation, jax.random.key(0))


def test_a_list_of_numbers_has_no_energy_by_band():
  operator = operators.dense(SIZE, np.eye(5, 64))
  observation = Observation(jnp.zeros((1, 5, 1, 1)), operator, 0.1)
  sampler = nfc(NFCConfig(levels=2, width=Sigma()))
  denoise = priors.gaussian_prior(SPECTRUM).denoise
  _, info = run(sampler, denoise, observation, jax.random.key(0))
  assert info.band_energy is None
  assert np.isfinite(info.residual).all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Twice(Operator):
  """Every pixel seen four times: a measurement larger than the image."""

  gain: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )

  @property
  def measurement_shape(self):
    height, width, channels = self.image_shape
    return 2 * height, 2 * width, channels

  @property
  def gram_gain(self):
    return 4 * self.gain**2

  def forward(self, x):
    return self.gain * jnp.repeat(jnp.repeat(x, 2, -3), 2, -2)

  def adjoint(self, y):
    h, w, c = self.image_shape
    return self.gain * y.reshape(*y.shape[:-3], h, 2, w, 2, c).sum((-4, -2))

  def normal_solve(self, rhs, *, precision, noise_std, **how):
    x = rhs / (self.gram_gain / noise_std**2 + jnp.mean(precision))
    return x, SolveInfo.closed_form()


def test_a_spectrum_has_no_power_beyond_the_image():
  """Indices out of range would be clamped to the last row, silently."""
  operator = Twice(jnp.ones(()), SIZE)
  observation = Observation(jnp.zeros((1, 16, 16, 1)), operator, 0.1)
  with pytest.raises(ValueError, match=r"no larger than the image \(8, 8, 1\)"):
    run(BANDED["by spectrum"], never, observation, jax.random.key(0))


EVERY_PART = {
  "paper": NFCConfig.paper(levels=2, inner={"steps": 2}),
  "calibrated": NFCConfig.calibrated(levels=2),
  "jacobian": NFCConfig.calibrated(levels=2, width=Jacobian()),
  "restoration": NFCConfig.restoration(levels=4),
  "fast": NFCConfig.fast(levels=5),
  "perceptual": NFCConfig.perceptual(levels=2),
  "guided": NFCConfig.guided(levels=2),
  "heeding": NFCConfig(levels=2, predictor=Denoise(discrepancy=0.5)),
  "led": NFCConfig(levels=2, schedule=Schedule(momentum=0.5)),
  "inflated": NFCConfig(levels=2, width=Spectrum(inflation=1.5)),
  "bands": NFCConfig(
    levels=2,
    inner=Gradient(steps=2),
    band=Band(Snr()),
    predictor=Ode("heun"),
    fusion=Fusion("db2", high=(0.3, 0.2, 0.1)),
  ),
}


@pytest.mark.parametrize(
  "made, stepped, words",
  [
    ("calibrated", "restoration", "without its field average"),
    ("restoration", "calibrated", "with its field average"),
    ("calibrated", "heeding", "without its field misfit"),
    ("heeding", "calibrated", "with its field misfit"),
    ("calibrated", "led", "without its field predicted"),
    ("led", "calibrated", "with its field predicted"),
  ],
)
def test_a_state_of_another_sampler_is_refused(made, stepped, words):
  one, other = (nfc(EVERY_PART[n], spectrum=SPECTRUM) for n in (made, stepped))
  given = Observation(jnp.zeros((1, *SIZE)), MEASURED["random"], 0.1)
  key = jax.random.key(0)
  state = jax.eval_shape(lambda key: one.init(key, given, 1), key)
  with refused(ValueError, f"state must be from init of the same .* {words}"):
    jax.eval_shape(lambda s: other.step(s, never, given, key), state)


def test_arguments_of_init_in_another_order_are_refused():
  given = Observation(jnp.zeros((1, *SIZE)), MEASURED["random"], 0.1)
  for name in ("paper", "fast"):
    sampler = nfc(EVERY_PART[name], spectrum=SPECTRUM)
    with refused(TypeError, "init takes a key, an Observation and a batch, go"):
      sampler.init(given, jax.random.key(0), 1)


# What a start from the measurement shows of an image: the measurement, the
# minimiser, or both. No blur with an SVD, which is made in float64 on purpose.
MEASURED = {
  "blur": operators.blur(SIZE, np.eye(3) / 3),
  "random": operators.random_inpainting(SIZE, seed=0, fraction=0.5),
}


def avals(jaxpr):
  """Every value of a program and of those within it."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield equation, variable.aval
    for inner in jaxprs_in_params(equation.params):
      yield from avals(inner)


@pytest.mark.parametrize(
  "measured, name",
  [
    *(("blur", name) for name in EVERY_PART),
    ("random", "fast"),  # which starts from what it shows of an image
    *(
      pytest.param("random", name, marks=pytest.mark.slow)
      for name in EVERY_PART
      if name != "fast"
    ),
  ],
)
def test_nothing_is_float64_within_a_run(measured, name):
  """A scalar of NumPy in a step would double everything that it meets."""
  operator = MEASURED[measured]
  sampler = nfc(EVERY_PART[name], spectrum=SPECTRUM)
  denoise = priors.gaussian_prior(SPECTRUM).denoise
  with jax.enable_x64(True):
    observation = Observation(
      jnp.zeros((1, *SIZE), jnp.float64), operator, np.float64(0.1)
    )
    program = jax.make_jaxpr(
      lambda key: run(sampler, denoise, observation, key)
    )
    found = {
      str(equation.primitive)
      for equation, aval in avals(program(jax.random.key(0)).jaxpr)
      if getattr(aval, "dtype", None) in (jnp.float64, jnp.complex128)
    }
  # The one conversion that `run` itself makes, of what it was given.
  assert found <= {"convert_element_type"}, found
