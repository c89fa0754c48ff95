"""DiffPIR and DDRM beside azula and deepinv, with the same noise.

Both packages are PyTorch and not required: `pip install azula==0.11.1
deepinv==0.5.0`. What differs there, and is set to the same here:

- deepinv's DiffPIR takes the noise of images in [0, 1] with sigmas in [-1, 1],
  as the authors' code does (a quarter of the consistent weight), and calls its
  proximal step with twice the weight: our weight is half its lambda. It returns
  its last state, not that state denoised.
- azula's DiffPIR is the data step alone, for any sampler: DDIM without noise
  here, which is zeta = 0.
- deepinv's DDRM divides every noise by sqrt(2), so that samples have half the
  variance they should: it is given noises sqrt(2) times larger. It takes
  singular values up to the noise for zero: our threshold.
"""

import jax
import numpy as np
import pytest

from posterior_jax import baselines, priors, schedule
from tests import oracles

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
packages = pytest.importorskip("tests.test_baseline_packages")

SIZE, SHAPE = packages.SIZE, packages.SHAPE
D, LEVELS = packages.D, packages.LEVELS
NOISE = 0.1
OPERATORS = packages.OPERATORS


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SIZE, pixel_std=0.6))


def run_of(sampler, prior, observation, monkeypatch, turned=lambda x: x):
  """All states of ours [D]; torch then draws the same noises, start first."""
  step = oracles.quick_jit(
    lambda state, key: sampler.step(state, prior.denoise, observation, key)
  )
  key = jax.random.key(2)
  state = sampler.init(key, observation, 1)
  noises = [jax.random.normal(key, state.x.shape)]
  states = [state.x]
  for key in jax.random.split(jax.random.key(3), LEVELS):
    noises.append(jax.random.normal(key, state.x.shape))
    state, _ = step(state, key)
    states.append(state.x)
  queue = iter(
    turned(np.asarray(noise, np.float64).ravel()) for noise in noises
  )
  monkeypatch.setattr(
    torch,
    "randn_like",
    lambda x: torch.tensor(next(queue).reshape(x.shape)).to(x.dtype),
  )
  return [np.asarray(x, np.float64).ravel() for x in states]


def decomposed(a, noise_std):
  """deepinv's physics of a matrix, from its singular vectors; flat images."""
  deepinv = pytest.importorskip("deepinv")
  u, s, vt = np.linalg.svd(a)
  rank = len(s)
  left = np.zeros((D, len(u)))
  left[:rank] = u[:, :rank].T
  left, right = torch.tensor(left), torch.tensor(vt)
  return deepinv.physics.DecomposablePhysics(
    U=lambda c: c @ left,
    U_adjoint=lambda y: y @ left.T,
    V=lambda c: c @ right,
    V_adjoint=lambda x: x @ right.T,
    mask=torch.tensor(np.append(s, np.zeros(D - rank)))[None],
    noise_model=deepinv.physics.GaussianNoise(noise_std),
  )


@pytest.mark.parametrize("name", OPERATORS)
def test_diffpir_is_deepinvs(name, prior, monkeypatch):
  deepinv = pytest.importorskip("deepinv")
  observation = packages.observe(prior, name, NOISE)
  config = baselines.DiffPIRConfig(levels=LEVELS, weight=3.5, renewal=0.3)
  states = run_of(baselines.diffpir(config), prior, observation, monkeypatch)
  a = oracles.dense_operator(observation.operator)
  clean = packages.torch_denoiser(prior)
  model = deepinv.sampling.DiffPIR(
    model=lambda x, sigma: (clean(2 * x - 1, 2 * sigma) + 1) / 2,
    data_fidelity=deepinv.optim.data_fidelity.L2(),
    sigma=NOISE / 2,
    max_iter=LEVELS,
    zeta=0.3,
    lambda_=7.0,
  )
  y = np.asarray(observation.y, np.float64).reshape(1, -1)
  y = torch.tensor(y + a.sum(1)) / 2  # of images in [0, 1]
  grey = torch.full((1, D), 0.5, dtype=torch.float64)
  found = model(y, decomposed(a, NOISE / 2), x_init=grey)
  found = 2 * np.asarray(found).ravel() - 1
  sigma = schedule.ddpm(LEVELS, spacing="quadratic")[-2]
  last = states[-2] / (1 + sigma**2) ** 0.5
  np.testing.assert_allclose(last, found, atol=packages.ALONG_A_RUN)


@pytest.mark.parametrize("name", OPERATORS)
def test_diffpir_is_azulas(name, prior, monkeypatch):
  diffpir = pytest.importorskip("azula.guidance.diffpir")
  sample = pytest.importorskip("azula.sample")
  observation = packages.observe(prior, name, NOISE)
  config = baselines.DiffPIRConfig(
    levels=LEVELS, spacing="uniform", weight=2.0, renewal=0.0, clip=False
  )
  states = run_of(baselines.diffpir(config), prior, observation, monkeypatch)
  a = torch.tensor(oracles.dense_operator(observation.operator))
  y = torch.tensor(np.asarray(observation.y, np.float64).ravel())[None]
  guided = diffpir.DiffPIRDenoiser(
    packages.azula_denoiser(prior),
    y,
    lambda x: x @ a.T,
    NOISE**2,
    lmbda=2.0,
    solver="cg",
    iterations=1000,
  )
  other = sample.DDIMSampler(
    guided,
    eta=0.0,
    steps=LEVELS - 1,
    stop=1 / LEVELS,
    silent=True,
    dtype=torch.float64,
  )
  found = packages.azula_run(other, states[0])
  sigma = schedule.ddpm(LEVELS)[-2]
  last = states[-2] / (1 + sigma**2) ** 0.5
  np.testing.assert_allclose(last, found, atol=packages.ALONG_A_RUN)


@pytest.mark.parametrize("eta_data", [1.0, 0.7])
@pytest.mark.parametrize("name", OPERATORS)
def test_ddrm_is_deepinvs(name, eta_data, prior, monkeypatch):
  deepinv = pytest.importorskip("deepinv")
  observation = packages.observe(prior, name, NOISE)
  a = oracles.dense_operator(observation.operator)
  vt = np.linalg.svd(a)[2]
  config = baselines.DDRMConfig(
    levels=LEVELS, eta=0.8, eta_data=eta_data, threshold=NOISE
  )
  states = run_of(
    baselines.ddrm(config),
    prior,
    observation,
    monkeypatch,
    lambda noise: 2**0.5 * vt @ noise,
  )
  clean = packages.torch_denoiser(prior)
  model = deepinv.sampling.DDRM(
    denoiser=clean,
    sigmas=schedule.ddpm(LEVELS)[:-1],
    eta=0.8,
    etab=eta_data,
    eps=0.0,
  )
  y = torch.tensor(np.asarray(observation.y, np.float64).reshape(1, -1))
  found = np.asarray(model(y, decomposed(a, NOISE))).ravel()
  np.testing.assert_allclose(states[-1], found, atol=packages.ALONG_A_RUN)
