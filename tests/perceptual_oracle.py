"""LPIPS and DISTS in float64 numpy, from the names of published files."""

import numpy as np

SLICES = {
  "alex": (
    ((0, 4, 2),),
    ((3, 1, 2),),
    ((6, 1, 1),),
    ((8, 1, 1),),
    ((10, 1, 1),),
  ),
  "vgg": tuple(
    tuple((number, 1, 1) for number in numbers)
    for numbers in (
      *((0, 2), (5, 7), (10, 12, 14)),
      *((17, 19, 21), (24, 26, 28)),
    )
  ),
}


def _windows(x, size, stride, padding):
  """[O, H, W] -> [O, h, w, size, size]."""
  x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2))
  found = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return found[:, ::stride, ::stride]


def _slice(x, tensors, prefix, convolutions):
  for number, stride, padding in convolutions:
    kernel = np.float64(tensors[f"{prefix}.{number}.weight"])
    found = _windows(x, kernel.shape[-1], stride, padding)
    found = np.einsum("ihwkl,oikl->ohw", found, kernel, optimize=True)
    bias = np.float64(tensors[f"{prefix}.{number}.bias"])
    x = np.maximum(found + bias[:, None, None], 0)
  return x


def lpips(network, tensors, x, y):
  """Of two images [H, W, 3] in [-1, 1]."""
  pooled = {"alex": (1, 2), "vgg": (1, 2, 3, 4)}[network]
  window = {"alex": 3, "vgg": 2}[network]
  total, pair = 0.0, []
  for image in (x, y):
    shift = np.float64(tensors["scaling_layer.shift"])[0]
    scale = np.float64(tensors["scaling_layer.scale"])[0]
    pair.append((np.float64(image).transpose(2, 0, 1) - shift) / scale)
  for i, convolutions in enumerate(SLICES[network]):
    if i in pooled:
      pair = [_windows(f, window, 2, 0).max((-2, -1)) for f in pair]
    pair = [_slice(f, tensors, f"net.slice{i + 1}", convolutions) for f in pair]
    a, b = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in pair)
    weight = np.float64(tensors[f"lin{i}.model.1.weight"])[0]
    total += (weight * (a - b) ** 2).sum(0).mean()
  return total


def dists(tensors, x, y):
  """Of two images [H, W, 3] in [-1, 1]."""
  hanning = np.hanning(5)[1:-1]
  taps = np.outer(hanning, hanning) / hanning.sum() ** 2
  pair = [(np.float64(image).transpose(2, 0, 1) + 1) / 2 for image in (x, y)]
  every = [pair]
  mean, std = (np.float64(tensors[name])[0] for name in ("mean", "std"))
  pair = [(image - mean) / std for image in pair]
  for i, convolutions in enumerate(SLICES["vgg"]):
    if i:
      power = [_windows(f**2, 3, 2, 1) for f in pair]
      pair = [np.sqrt((p * taps).sum((-2, -1)) + 1e-12) for p in power]
    pair = [_slice(f, tensors, f"stage{i + 1}", convolutions) for f in pair]
    every.append(pair)
  means, structure = [], []
  for a, b in every:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    m, n = a.mean(1), b.mean(1)
    means.append((2 * m * n + 1e-6) / (m**2 + n**2 + 1e-6))
    cov = (a * b).mean(1) - m * n
    structure.append((2 * cov + 1e-6) / (a.var(1) + b.var(1) + 1e-6))
  alpha, beta = (np.float64(tensors[k]).ravel() for k in ("alpha", "beta"))
  found = alpha @ np.concatenate(means) + beta @ np.concatenate(structure)
  return 1 - found / (alpha.sum() + beta.sum())
