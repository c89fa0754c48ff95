"""DPS, PiGDM and MMPS beside azula and deepinv, with the same noise.

Both packages are PyTorch and not required: `pip install azula==0.11.1
deepinv==0.5.0`. What differs there, and is set to the same here:

- azula's DPS takes one norm of the whole batch, ours one of every image: a
  batch of one. Its PGDM has the noise-free form with a pseudo-inverse, ours
  the noisy one: next to no noise. Its eta multiplies the variance, ours (as in
  DDIM) the standard deviation: eta = 1.
- deepinv's samplers step a stochastic differential equation, so its guidance
  terms are compared, not its samples. Its PiGDM uses them as a score
  (weight="score"), not with the paper's adaptive weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  Observation,
  SamplerState,
  baselines,
  operators,
  priors,
  schedule,
)
from tests import oracles

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

SIZE = (8, 8)
SHAPE = (*SIZE, 1)
D = SIZE[0] * SIZE[1]
LEVELS = 25
SIGMAS = schedule.ddpm(LEVELS)


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SIZE, pixel_std=0.6))


OPERATORS = {
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
}


def observe(prior, name, noise_std):
  operator = OPERATORS[name]()
  clean = operator.forward(prior.sample(jax.random.key(0), (1,), channels=1))
  noise = noise_std * jax.random.normal(jax.random.key(1), clean.shape)
  y = (clean + noise) * operator.observed
  return Observation(y, operator, noise_std)


def torch_denoiser(prior):
  """E[x0 | x] of [..., D] or images [N, 1, H, W], by torch's own transform."""
  spectrum = torch.tensor(np.asarray(prior.spectrum, np.float64))

  def denoise(x, sigma, *args, **kwargs):
    images = x.reshape(-1, *SIZE)
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)[0]
    f = torch.fft.fft2(images.double()) * (spectrum / (spectrum + sigma**2))
    return torch.fft.ifft2(f).real.reshape(x.shape).to(x.dtype)

  return denoise


def ours(sampler, prior, observation, monkeypatch):
  """All states of a run [D] float64, and its noises made those of torch."""
  step = oracles.quick_jit(
    lambda state, key: sampler.step(state, prior.denoise, observation, key)
  )
  state = sampler.init(jax.random.key(2), observation, 1)
  states, noises = [state.x], []
  for key in jax.random.split(jax.random.key(3), LEVELS):
    noises.append(np.asarray(jax.random.normal(key, state.x.shape)))
    state, _ = step(state, key)
    states.append(state.x)
  queue = iter(noises)
  monkeypatch.setattr(
    torch,
    "randn_like",
    lambda x: torch.tensor(next(queue).reshape(x.shape)).to(x.dtype),
  )
  return [np.asarray(x, np.float64).ravel() for x in states]


def azula_denoiser(prior):
  denoise = pytest.importorskip("azula.denoise")
  kept = 1 / (1 + torch.tensor(SIGMAS) ** 2)
  clean = torch_denoiser(prior)

  class Exact(denoise.Denoiser):
    def schedule(self, t):
      """The VP scales of DDPM's levels; time 1 is the first, 0 the end."""
      at = int(torch.round((1 - t) * LEVELS))
      return kept[at] ** 0.5, (1 - kept[at]) ** 0.5

    def forward(self, x, t, **kwargs):
      alpha, sigma = self.schedule(t)
      return denoise.DiracPosterior(clean(x / alpha, sigma / alpha))

  return Exact()


def azula_run(sampler, start):
  """Its answer from our start, both at the first level."""
  x = torch.tensor(start)[None] / (1 + SIGMAS[0] ** 2) ** 0.5
  return np.asarray(sampler(x)[0])


# 25 steps in float32, each good to 1e-5, against float64.
ALONG_A_RUN = 2e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_dps_is_azulas(name, prior, monkeypatch):
  dps = pytest.importorskip("azula.guidance.dps")
  observation = observe(prior, name, 0.1)
  config = baselines.DPSConfig(levels=LEVELS, scale=0.4, clip=False)
  states = ours(baselines.dps(config), prior, observation, monkeypatch)
  a = torch.tensor(oracles.dense_operator(observation.operator))
  y = torch.tensor(np.asarray(observation.y, np.float64).ravel())[None]
  other = dps.DPSSampler(
    azula_denoiser(prior),
    y,
    lambda x: x @ a.T,
    zeta=0.4,
    steps=LEVELS,
    silent=True,
    dtype=torch.float64,
  )
  found = azula_run(other, states[0])
  np.testing.assert_allclose(states[-1], found, atol=ALONG_A_RUN)


@pytest.mark.parametrize(
  ("name", "noise_std"), [("resize", 1e-3), ("random", 1e-5)]
)
def test_pigdm_is_azulas_where_noise_vanishes(
  name, noise_std, prior, monkeypatch
):
  """Our solve is float32 on numbers of 1 / noise_std^2, 1e6 at most here.

  Their roundings outside the range of A^T and a last r^2 of 100 noise_std^2
  make up to 3e-3 of the resized image; a mask has neither.
  """
  pgdm = pytest.importorskip("azula.guidance.pgdm")
  observation = observe(prior, name, noise_std)
  config = baselines.PiGDMConfig.published(levels=LEVELS)
  states = ours(baselines.pigdm(config), prior, observation, monkeypatch)
  a = torch.tensor(oracles.dense_operator(observation.operator))
  inverse = torch.linalg.pinv(a)
  y = torch.tensor(np.asarray(observation.y, np.float64).ravel())[None]
  other = pgdm.PGDMSampler(
    azula_denoiser(prior),
    y,
    lambda x: x @ a.T,
    lambda y: y @ inverse.T,
    eta=1.0,
    steps=LEVELS,
    silent=True,
    dtype=torch.float64,
  )
  found = azula_run(other, states[0])
  np.testing.assert_allclose(states[-1], found, atol=2 * ALONG_A_RUN)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_mmps_is_azulas(name, iterations, prior, monkeypatch):
  mmps = pytest.importorskip("azula.guidance.mmps")
  sample = pytest.importorskip("azula.sample")
  covariance = pytest.importorskip("azula.linalg.covariance")
  observation = observe(prior, name, 0.1)
  config = baselines.MMPSConfig(
    levels=LEVELS, iterations=iterations, tolerance=1e-7
  )
  states = ours(baselines.mmps(config), prior, observation, monkeypatch)
  a = torch.tensor(oracles.dense_operator(observation.operator))
  y = torch.tensor(np.asarray(observation.y, np.float64).ravel())[None]
  guided = mmps.MMPSDenoiser(
    azula_denoiser(prior),
    y,
    lambda x: x @ a.T,
    covariance.IsotropicCovariance(0.1**2),
    solver="cg",
    iterations=iterations,
  )
  other = sample.DDPMSampler(
    guided, steps=LEVELS, silent=True, dtype=torch.float64
  )
  found = azula_run(other, states[0])
  np.testing.assert_allclose(states[-1], found, atol=ALONG_A_RUN)


def moved(config, prior, observation, x, at):
  """Where one step of ours without noise leads, [D] float64."""
  method = getattr(baselines, type(config).__name__[: -len("Config")].lower())
  sampler = method(config)
  state = SamplerState(jnp.asarray(np.float32(x)), jnp.int32(at))
  state, _ = oracles.quick_jit(
    lambda state, key: sampler.step(state, prior.denoise, observation, key)
  )(state, jax.random.key(4))
  return np.asarray(state.x, np.float64).ravel()


def deepinv_gradient(kind, prior, observation, x, sigma, **options):
  """-dlog p(y | x) / dx of deepinv's term, [D]."""
  deepinv = pytest.importorskip("deepinv")
  a = torch.tensor(oracles.dense_operator(observation.operator)).float()
  to = (1, 1, *SIZE)
  physics = deepinv.physics.LinearPhysics(
    A=lambda x, **kwargs: (x.reshape(len(x), -1) @ a.T)[:, None],
    A_adjoint=lambda y, **kwargs: (y[:, 0] @ a).reshape(to),
    noise_model=deepinv.physics.GaussianNoise(float(observation.noise_std)),
  )
  term = getattr(deepinv.sampling, kind)(
    denoiser=torch_denoiser(prior), **options
  )
  y = torch.tensor(np.asarray(observation.y).reshape(1, 1, -1))
  state = torch.tensor(np.asarray(x, np.float32).reshape(to))
  sigma = torch.tensor(sigma, dtype=torch.float32)
  found = term.grad(state, y, physics, sigma)
  return found.detach().double().numpy().ravel()


@pytest.mark.parametrize("name", OPERATORS)
def test_guidance_is_deepinvs(name, prior):
  at = 16
  sigma, following = SIGMAS[at : at + 2]
  observation = observe(prior, name, 0.1)
  noise = np.asarray(jax.random.normal(jax.random.key(5), (1, 1, *SHAPE)))
  clean = prior.sample(jax.random.key(6), (1, 1), channels=1)
  x = np.asarray(clean) + np.float32(sigma) * noise
  here = (prior, observation, x)

  still, led = (
    baselines.DPSConfig(levels=LEVELS, scale=scale, clip=False)
    for scale in (0.0, 1.0)
  )
  pull = moved(still, *here, at) - moved(led, *here, at)
  unit = ((1 + sigma**2) * (1 + following**2)) ** 0.5
  found = deepinv_gradient("DPSDataFidelity", *here, sigma)
  np.testing.assert_allclose(pull / unit, found, atol=1e-5)

  kept = following / sigma
  x0 = np.asarray(prior.denoise(jnp.asarray(x[0]), jnp.float32([sigma])))
  plain = (1 - kept) * x0.ravel() + kept * x.ravel()
  others = {
    "PiGDMDataFidelity": (
      baselines.PiGDMConfig(
        levels=LEVELS, eta=0.0, data_std=1.0, weight="score"
      ),
      {"cg_max_iter": 300, "cg_tol": 1e-6},
    ),
    "MomentMatchingDataFidelity": (
      baselines.MMPSConfig(
        levels=LEVELS, eta=0.0, iterations=3, tolerance=1e-7
      ),
      {"cg_max_iter": 3, "cg_tol": 1e-7},
    ),
  }
  for kind, (config, options) in others.items():
    score = (moved(config, *here, at) - plain) / (1 - kept) / sigma**2
    found = -deepinv_gradient(kind, *here, sigma, **options)
    np.testing.assert_allclose(score, found, atol=2e-4, err_msg=kind)
