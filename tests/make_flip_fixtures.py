"""Prints the numbers of FLIP's authors that `tests.test_flip` holds.

  python -m tests.make_flip_fixtures

needs flip-evaluator (1.7 printed the committed ones), which no test does.
"""

import numpy as np
import scipy.ndimage
import skimage.data

# Pictures of odd sides and of fewer pixels than a filter has.
_CUTS = {
  "astronaut": (slice(100, 133), slice(200, 248)),
  "chelsea": (slice(90, 131), slice(140, 177)),
  "small": (slice(60, 65), slice(230, 233)),
}
# Pixels of a map that are written down.
PIXELS = (0, 0), (2, 1), (-1, -1)
DAMAGES = {
  "noise": lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape),
  "blur": lambda x: scipy.ndimage.gaussian_filter(x, (1.5, 1.5, 0)),
  "levels": lambda x: np.round(6 * x) / 6,
  "inverted": lambda x: 1 - x,
  "turned": lambda x: x[..., [1, 2, 0]],
}
CASES = tuple(
  (picture, damage, degree)
  for picture in _CUTS
  for damage in DAMAGES
  for degree in ((67.0,) if damage in ("levels", "turned") else (67.0, 20.0))
)


def pair(picture: str, damage: str) -> tuple[np.ndarray, np.ndarray]:
  """A damaged picture and the picture, [H, W, 3] in [0, 1], float32."""
  name = "astronaut" if picture == "small" else picture
  truth = np.float32(getattr(skimage.data, name)()[_CUTS[picture]]) / 255
  x = np.clip(DAMAGES[damage](np.float64(truth)), 0, 1)
  return np.float32(x), np.float32(truth)


def main() -> None:
  """One line a case: the mean of its map, then PIXELS of it."""
  import flip_evaluator

  for picture, damage, degree in CASES:
    x, truth = pair(picture, damage)
    errors, mean, _ = flip_evaluator.evaluate(
      truth, x, "LDR", applyMagma=False, parameters={"ppd": degree}
    )
    some = ", ".join(f"{errors[p][0]:.7f}" for p in PIXELS)
    print(
      f'  ("{picture}", "{damage}", {degree}): ({mean:.7f}, {some}),',
      flush=True,
    )


if __name__ == "__main__":
  main()
