"""Writes tests/fixtures/lpips: small random networks and their distances.

  python -m tests.make_lpips_fixtures

needs torch, torchvision and lpips (0.1.4 wrote the committed files), whose
networks are narrowed before their distances are taken.
"""

import pathlib

import lpips
import numpy as np
import torch

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "lpips"
WIDTHS = {"alex": (4, 6, 8, 5, 7), "vgg": (2, 3, 4, 5, 6)}
SIDES = 45, 38


def network(net: str, widths: tuple[int, ...] | None) -> lpips.LPIPS:
  """LPIPS with random classifier and the published weights of its slices.

  Args:
    net: "alex" or "vgg".
    widths: channels of the slices instead of their own, with random weights.
  """
  model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
  if widths is not None:
    entering = 3
    for number, leaving in enumerate(widths):
      part = getattr(model.net, f"slice{number + 1}")
      for name, layer in part.named_children():
        if isinstance(layer, torch.nn.Conv2d):
          narrow = torch.nn.Conv2d(
            entering, leaving, layer.kernel_size, layer.stride, layer.padding
          )
          setattr(part, name, narrow)
          entering = leaving
      linear = getattr(model, f"lin{number}").model[1]
      linear.weight = torch.nn.Parameter(torch.rand(1, leaving, 1, 1))
  return model.eval().requires_grad_(False)


def distances(model: lpips.LPIPS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Of images [N, H, W, 3] with pixels in [-1, 1]: [N]."""
  pair = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, y))
  with torch.no_grad():
    return model(*pair).ravel().numpy()


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Two pairs, one far and one near."""
  rng = np.random.default_rng(seed)
  x, y = rng.uniform(-1, 1, (2, 2, *SIDES, 3)).astype(np.float32)
  y[1] = np.clip(x[1] + 0.1 * y[1], -1, 1)
  return x, y


def main() -> None:
  """Writes all files."""
  torch.manual_seed(0)
  FIXTURES.mkdir(parents=True, exist_ok=True)
  x, y = images(0)
  found = {}
  for net, widths in WIDTHS.items():
    model = network(net, widths)
    torch.save(model.state_dict(), FIXTURES / f"{net}.pt")
    found[net] = distances(model, x, y)
  np.savez_compressed(FIXTURES / "distances.npz", x=x, y=y, **found)


if __name__ == "__main__":
  main()
