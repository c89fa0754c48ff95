"""The numbers of the dead leaves' model."""

import dataclasses
import math

# Both ends are allowed. `experiments.harness.settings`, which has ranges beside
# fields, is of a room above.
_RANGES = {
  "leaves": (1, math.inf),
  "palette": (1, math.inf),
  "textured": (0, math.inf),
  "gradient": (0, 1),
  "waves": (0, 1),
  "mixed": (0, 1),
  "warp": (0, math.inf),
  "tilt": (1, math.inf),
  "middle": (0, 0.99),
  "near": (0, 0.99),
  "defocus": (0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class LeafSettings:
  """The model's numbers; lengths in pixels of the finished image.

  Those of VibrantLeaves as its authors' generator has them, which draws at
  twice the finished size: the middle plane has a tenth and the near one a
  twentieth of the leaves that cover 0.998 of the far one, 0.46 and 0.27. Only
  the least radius, 5 there, varies here from image to image, because the tiles
  of photographs are of ten scales.

  Attributes:
    leaves: shapes of the farthest plane; the middle one has up to a fifth as
      many, the nearest up to a tenth.
    smallest: range of the least radius, drawn evenly in log for every image.
    largest: greatest radius.
    palette: tiles an image takes its colours from, neighbours in the list.
    textured: least radius of a leaf that has a texture.
    gradient: share of the textured leaves that fade from colour to colour.
    waves: share that are striped or checked in two colours.
    mixed: share that are striped or checked in two random textures; the others
      have one random texture.
    slopes: range of a in the amplitude 1 / f^a of random textures.
    periods: shortest and longest period of stripes.
    warp: greatest standard deviation by which stripes are bent.
    tilt: ratio of the scales of a texture's near and far ends.
    middle: share of the image that the plane in focus covers.
    near: share that the plane before it covers.
    defocus: greatest radius of the discs that blur the other two planes.

  Raises:
    ValueError: for a number out of range, of which images are NaN or empty.
  """

  leaves: int = 1000
  smallest: tuple[float, float] = (1.5, 12.0)
  largest: float = 500.0
  palette: int = 4
  textured: float = 10.0
  gradient: float = 0.05
  waves: float = 0.16
  mixed: float = 0.15
  slopes: tuple[float, float] = (0.5, 2.5)
  periods: tuple[float, float] = (2.5, 50.0)
  warp: float = 5.0
  tilt: float = 2.0
  middle: float = 0.46
  near: float = 0.27
  defocus: float = 5.0

  def __post_init__(self) -> None:
    for name, (low, high) in _RANGES.items():
      value = getattr(self, name)
      if not low <= value <= high or math.isinf(value):
        ends = f"lie in [{low}, {high}]"
        allowed = f"be finite and at least {low}" if math.isinf(high) else ends
        raise ValueError(f"{name} must {allowed}, got {value}")
    self._check_pairs()

  def _check_pairs(self) -> None:
    for name in ("leaves", "palette"):
      if int(getattr(self, name)) != getattr(self, name):
        raise ValueError(f"{name} must be whole, got {getattr(self, name)}")
    for name in ("smallest", "slopes", "periods"):
      pair = getattr(self, name)
      if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} must be two numbers, got {pair}")
    least, most = self.smallest
    if not 0 < least <= most < self.largest < math.inf:
      raise ValueError(
        "smallest must be two ascending radii, positive and below largest; "
        f"got {self.smallest} and {self.largest}"
      )
    if not 0 <= self.slopes[0] <= self.slopes[1] < math.inf:
      raise ValueError(
        f"slopes must be two ascending exponents >= 0, got {self.slopes}"
      )
    if not 1 <= self.periods[0] <= self.periods[1] < math.inf:
      raise ValueError(
        "periods must be two ascending lengths of at least a pixel, got "
        f"{self.periods}"
      )
    if self.gradient + self.waves + self.mixed > 1 + 1e-9:
      raise ValueError(
        "gradient, waves and mixed must add up to at most 1, got "
        f"{self.gradient}, {self.waves} and {self.mixed}"
      )
