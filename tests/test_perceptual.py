"""LPIPS against the published code: values, loading, refusals."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from posterior_jax import metrics
from posterior_jax.priors.checkpoints import torch_file
from tests.oracles import quick_jit, refused
from tests.test_loaders import FIXTURES as UNETS

FIXTURES = UNETS.parent / "lpips"
NETWORKS = ("alex", "vgg")


@pytest.fixture(scope="module")
def pairs():
  with np.load(FIXTURES / "distances.npz") as file:
    return dict(file)


@quick_jit
def apart(distance, x, y):
  """One program: layer by layer each operation would be one."""
  return distance(x, y)


@pytest.mark.parametrize(
  "network", [pytest.param("alex", marks=pytest.mark.slow), "vgg"]
)
def test_distances_are_those_of_the_published_code(network, pairs):
  distance = metrics.load_lpips(FIXTURES / f"{network}.pt")
  assert distance.network == network
  found = apart(distance, pairs["x"], pairs["y"])
  np.testing.assert_allclose(found, pairs[network], rtol=2e-5)
  assert found[0] > 2 * found[1] > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_equal_images_lie_at_zero_and_shapes_broadcast(network, pairs):
  distance = metrics.load_lpips(FIXTURES / f"{network}.pt")
  x, y = jnp.asarray(pairs["x"]), jnp.asarray(pairs["y"])
  np.testing.assert_array_equal(apart(distance, x, x), jnp.zeros(2))
  once, turned = apart(distance, x, y), apart(distance, y, x)
  np.testing.assert_allclose(once, turned, rtol=1e-5)
  samples = jnp.stack([x, y, 0.5 * (x + y)])
  found = apart(distance, samples, y)
  assert found.shape == (3, 2)
  np.testing.assert_allclose(found[0], once, rtol=1e-5)
  np.testing.assert_allclose(found[1], jnp.zeros(2), atol=1e-6)
  # Pixels beyond [-1, 1] count as its ends, as in the other metrics.
  np.testing.assert_allclose(
    apart(distance, 3 * x, y),
    apart(distance, jnp.clip(3 * x, -1, 1), y),
    rtol=1e-6,
  )


def test_safetensors_are_read_as_well(tmp_path, pairs):
  tensors = torch_file.read(FIXTURES / "alex.pt")
  path = tmp_path / "alex.safetensors"
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(value) for name, value in tensors.items()}, path
  )
  distance = metrics.load_lpips(str(path))
  found = distance(pairs["x"], pairs["y"])
  np.testing.assert_allclose(found, pairs["alex"], rtol=2e-5)


def test_refusals(tmp_path):
  with refused(FileNotFoundError, "path must be a file of weights, got"):
    metrics.load_lpips(tmp_path / "none.pt")
  tensors = torch_file.read(FIXTURES / "alex.pt")
  path = tmp_path / "changed.safetensors"

  def refuse(message, **changes):
    kept = {
      k: np.ascontiguousarray(v)
      for k, v in (tensors | changes).items()
      if v is not None
    }
    safetensors.numpy.save_file(kept, path)
    with refused(ValueError, message):
      metrics.load_lpips(path)

  refuse("'lin2.model.1.weight' .*missing", **{"lin2.model.1.weight": None})
  refuse(
    "'net.slice2.3.weight' .* must have shape",
    **{"net.slice2.3.weight": np.zeros((6, 3, 5, 5), np.float32)},
  )
  refuse("must not hold 'more'", more=np.zeros(2, np.float32))
  refuse('net "alex" or "vgg"', **{"net.slice5.10.weight": None})
  path.with_suffix(".pt").write_bytes(b"nothing")
  with refused(ValueError, "changed.pt"):
    metrics.load_lpips(path.with_suffix(".pt"))
  assert zipfile.is_zipfile(FIXTURES / "alex.pt")

  distance = metrics.load_lpips(FIXTURES / "alex.pt")
  x = jnp.zeros((1, 40, 40, 3))
  size = r"x and truth must be images \[..., H, W, C\] of one size"
  for pair, kind, message in (
    ((x, x[:, :36]), ValueError, size),
    ((jnp.tile(x, (2, 1, 1, 1)), jnp.tile(x, (3, 1, 1, 1))), ValueError, size),
    ((x[..., :1], x[..., :1]), ValueError, "x and truth must have 3 channels"),
    ((x[:, :30], x[:, :30]), ValueError, "images must be at least 31 pixels"),
    ((x.astype(int), x), TypeError, "x must be floating point"),
  ):
    with refused(kind, message):
      distance(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_full_networks_agree(network, tmp_path):
  """Random classifiers of full width; needs torch, torchvision and lpips."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("lpips")
  from tests import make_lpips_fixtures as make

  torch.manual_seed(1)
  model = make.network(network, None)
  torch.save(model.state_dict(), tmp_path / "full.pt")
  x, y = make.images(1)
  found = metrics.load_lpips(tmp_path / "full.pt")(x, y)
  np.testing.assert_allclose(found, make.distances(model, x, y), rtol=1e-4)
