"""Measurement operators against their definitions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from posterior_jax import operators
from posterior_jax.operators import frozen
from tests import oracles
from tests.small_operators import (
  LOPSIDED,
  NAMES,
  SCENES,
  SHAPE,
  TAPS,
  build,
  define,
  every_operator,
  normal,
)

# Its solves are those of "scene blur" under another mask.
wide_ones_too = pytest.mark.parametrize("name", (*NAMES, "wide scene"))


@wide_ones_too
def test_adjoint_float64(name):
  with jax.enable_x64(True):
    operator = build(name)
    x = jnp.asarray(normal((2, *SHAPE)))
    y = jnp.asarray(normal((2, *operator.measurement_shape), seed=1))
    left = jnp.vdot(operator.forward(x), y)
    right = jnp.vdot(x, operator.adjoint(y))
    assert left.dtype == jnp.float64
    np.testing.assert_allclose(left, right, rtol=1e-12)


@wide_ones_too
def test_forward_is_the_definition(name):
  x = normal((2, *SHAPE)).clip(-1, 1)
  forward = define(name, SHAPE)
  expected = np.stack(
    [[forward(im[..., c]) for c in range(3)] for im in x]
  )  # [2, C, h, w]
  found = build(name).forward(jnp.asarray(np.float32(x)))
  atol = oracles.FLOAT32_FFT if "r" in name[-3:] else oracles.FLOAT32_OPERATOR
  np.testing.assert_allclose(
    found, np.moveaxis(expected, 1, -1), rtol=0, atol=atol
  )


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_has_no_border(name):
  """What it measures is what any larger scene around it measures there."""
  operator = build(name)
  x = jnp.asarray(np.float32(normal(SHAPE)))
  height, width, _ = SHAPE
  margin = operator.margin
  inside = operator.interior(x)
  np.testing.assert_array_equal(
    inside, x[margin : height - margin, margin : width - margin]
  )
  step = inside.shape[0] // operator.measurement_shape[0]
  assert inside.shape[:2] == tuple(
    step * n for n in operator.measurement_shape[:2]
  )
  larger = jnp.pad(x, ((4, 4), (4, 4), (0, 0)), mode="wrap")
  if name == "scene blur":
    around = operators.blur(larger.shape, LOPSIDED, boundary="valid")
  else:
    around = operators.super_resolution(
      larger.shape, factor=4, boundary="valid"
    )
  cut = 4 // step
  found = around.forward(larger)[cut:-cut, cut:-cut]
  np.testing.assert_allclose(
    found, operator.forward(x), rtol=0, atol=oracles.FLOAT32_FFT
  )


@pytest.mark.parametrize(
  ("seen", "sides"),
  [
    ((1600, 2560), (1680, 2592)),
    ((18, 26), (24, 32)),
    ((19, 250), (32, 256)),
  ],
)
def test_a_scene_of_fast_sides_holds_the_same_picture(seen, sides):
  image_shape = (seen[0] + 6, seen[1] + 6, 1)
  exact = operators.blur(image_shape, LOPSIDED, boundary="valid")
  fast = exact.on_fast_sides()
  assert fast.image_shape == (*sides, 1)
  assert fast.measurement_shape == exact.measurement_shape
  if max(seen) > 100:
    return
  x = jnp.asarray(np.float32(normal(image_shape)))
  border = [
    ((n - m) // 2, -(-(n - m) // 2)) for n, m in zip(sides, image_shape)
  ]
  around = jnp.pad(x, (*border, (0, 0)), constant_values=100)
  np.testing.assert_allclose(
    fast.forward(around), exact.forward(x), rtol=0, atol=2e-4
  )


def test_super_resolution_at_the_benchmark_size():
  x = normal((256, 256)).clip(-1, 1)
  w = oracles.resizer_matrix(256, 4)
  operator = operators.super_resolution((256, 256, 1))
  found = operator.forward(jnp.asarray(np.float32(x))[..., None])[..., 0]
  np.testing.assert_allclose(found, w @ x @ w.T, rtol=0, atol=1e-6)
  # Facts of the field's resizer: singular values, and an outside view of it.
  values = np.linalg.svd(w, compute_uv=False)
  np.testing.assert_allclose([values[0], values[-1]], [0.5, 0.3485], atol=1e-4)
  library = jax.image.resize(
    jnp.asarray(np.float32(x)), (64, 64), "cubic", antialias=True
  )
  inner = (slice(2, -2), slice(2, -2))
  np.testing.assert_allclose(found[inner], library[inner], rtol=0, atol=1e-6)
  assert np.abs(found - library).max() > 1e-3  # the borders differ


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
@pytest.mark.parametrize("kind", ["gaussian", "motion"])
def test_blurs_at_the_benchmark_size(kind, boundary):
  x = normal((256, 256)).clip(-1, 1)
  shape = (256, 256, 1)
  if kind == "gaussian":
    operator = operators.gaussian_blur(shape, boundary=boundary)
  else:
    operator = operators.motion_blur(shape, "long", boundary=boundary)
  mode = {"reflect": "mirror", "circular": "wrap"}[boundary]
  kernel = np.asarray(operator.kernel, np.float64)
  expected = scipy.ndimage.correlate(x, kernel, mode=mode)
  found = operator.forward(jnp.asarray(np.float32(x))[..., None])[..., 0]
  np.testing.assert_allclose(found, expected, rtol=0, atol=oracles.FLOAT32_FFT)


def test_gaussian_kernel_is_the_benchmarks():
  kernel = np.asarray(operators.gaussian_blur((64, 64, 3)).kernel, np.float64)
  support = np.argwhere(kernel)
  assert kernel.shape == (61, 61)
  assert support.min(0).tolist() == [18, 18]
  assert support.max(0).tolist() == [42, 42]
  np.testing.assert_allclose(kernel.max(), 0.017685, atol=5e-7)
  np.testing.assert_allclose(kernel.sum(), 1, atol=1e-6)
  offset = np.arange(61) - 30
  std = np.sqrt((kernel * offset**2).sum())
  np.testing.assert_allclose(std, 2.9992, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.92])
def test_random_mask_drops_exactly(fraction):
  operator = operators.random_inpainting((30, 41, 3), fraction=fraction)
  assert int((operator.mask == 0).sum()) == int(fraction * 30 * 41)


def test_box_is_where_it_was_put():
  mask = operators.box_inpainting((256, 256, 3)).mask[..., 0]
  hole = np.argwhere(np.asarray(mask) == 0)
  assert len(hole) == 128**2
  assert hole.min(0).tolist() == [64, 64]
  assert hole.max(0).tolist() == [191, 191]
  corner = frozen.box_corner()
  assert all(32 <= place < 96 for place in corner)
  mask = operators.box_inpainting((256, 256, 3), corner=corner).mask[..., 0]
  assert np.argwhere(np.asarray(mask) == 0).min(0).tolist() == list(corner)


DECOMPOSED = {
  name: functools.partial(build, name)
  for name in ("resize", "box", "random", "circular")
} | {
  "mirrored": lambda: operators.blur(SHAPE, np.outer(*TAPS)),
  "gaussian": lambda: operators.gaussian_blur(SHAPE, size=9, std=1.5),
}


@pytest.mark.parametrize("name", DECOMPOSED)
def test_svd_identities(name):
  with jax.enable_x64(True):
    operator = DECOMPOSED[name]()
    svd = jax.jit(lambda svd: svd)(operator.svd())  # a pytree

    def stretched(c):
      return c * svd.values.astype(c.dtype)

    x = jnp.asarray(normal(SHAPE))
    y = jnp.asarray(normal(operator.measurement_shape, seed=1))
    same = dict(rtol=0, atol=2e-6)  # factors are float32
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    close = np.testing.assert_allclose
    close(svd.from_left(stretched(svd.to_right(x))), forward, **same)
    close(svd.from_right(stretched(svd.to_left(y))), adjoint, **same)
    close(svd.to_left(forward), stretched(svd.to_right(x)), **same)
    inside = svd.to_right(x)  # orthonormal rows: V^* V = 1
    close(svd.to_right(svd.from_right(inside)), inside, **same)


def test_one_trace_for_new_kernels_and_masks():
  def restore(operator, y, noise_std):
    rhs = operator.adjoint(y)
    return operator.normal_solve(
      rhs, precision=jnp.ones((64, 64)), noise_std=noise_std
    )[0]

  shape = (64, 64, 1)
  y = jnp.ones((1, *shape))
  kinds = (
    [operators.motion_blur(shape, name) for name in frozen.PATHS],
    [operators.random_inpainting(shape, seed=seed) for seed in range(3)],
    [
      operators.box_inpainting(shape, size=16, corner=(place, 5))
      for place in range(3)
    ],
  )
  for kind in kinds:
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(restore, n=1))
    for i, operator in enumerate(kind):
      traced(operator, y, jnp.float32(0.1 + i))


@every_operator
def test_wrong_images_are_refused(name):
  operator = build(name)
  x = jnp.zeros((2, *SHAPE))
  y = jnp.zeros((2, *operator.measurement_shape))
  for apply, good in ((operator.forward, x), (operator.adjoint, y)):
    for wrong in (good[:, :-1], good[..., :1], good[0, 0]):
      with pytest.raises(ValueError, match=r"must have shape \[\.\.\., "):
        apply(wrong)
    with pytest.raises(TypeError, match="must be a floating-point array"):
      apply(good.astype(jnp.uint8))
    assert apply(good.astype(jnp.bfloat16)).shape == apply(good).shape


def test_image_shape_may_be_any_sequence():
  one = operators.gaussian_blur([16, 16, 1], size=5, std=1.0)
  other = operators.gaussian_blur((16, np.int64(16), 1), size=5, std=1.0)
  assert one.image_shape == other.image_shape == (16, 16, 1)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda s: operators.super_resolution(s, factor=5), "factor must be at"),
    (lambda s: operators.super_resolution(s, factor=1), "factor must be at"),
    (lambda s: operators.inpainting(s, np.ones((4, 4))), "mask must have the"),
    (lambda s: operators.inpainting(s, np.full(s[:2], 0.5)), "mask must hold"),
    (lambda s: operators.inpainting(s, np.zeros(s[:2])), "mask must keep at"),
    (lambda s: operators.inpainting(s, np.full(s[:2], np.nan)), "must hold"),
    (lambda s: operators.box_inpainting(s, size=40), "box of size 40"),
    (lambda s: operators.box_inpainting(s, size=0), "box of size 0"),
    (
      lambda s: operators.box_inpainting(s, size=4, corner=(-1, 0)),
      "must lie inside the image",
    ),
    (lambda s: operators.random_inpainting(s, fraction=1.0), "fraction must"),
    (lambda s: operators.random_inpainting(s, fraction=np.nan), "fraction"),
    (lambda s: operators.blur(s, np.ones((4, 4)) / 16), "k odd"),
    (lambda s: operators.blur(s, np.ones(5) / 5), r"shape \[k, k\]"),
    (lambda s: operators.blur(s, np.ones((3, 3))), "kernel must sum to 1"),
    (lambda s: operators.blur(s, -np.ones((3, 3)) / 9), "non-negative"),
    (lambda s: operators.blur(s, np.full((3, 3), np.nan)), "finite"),
    (
      lambda s: operators.blur(s, LOPSIDED, boundary="zero"),
      "boundary must be",
    ),
    (lambda s: operators.gaussian_blur((16, 16, 1)), "too wide to mirror"),
    (
      lambda s: operators.gaussian_blur((16, 16, 1), boundary="valid"),
      "must be that of the scene, at least the kernel's 61 pixels",
    ),
    (
      lambda s: operators.blur(s, LOPSIDED, seen=(8, 8)),
      'seen must be None unless boundary is "valid"',
    ),
    (
      lambda s: operators.blur(s, LOPSIDED, boundary="valid", seen=(35, 26)),
      r"seen must be positive and at most \(34, 26\)",
    ),
    *(
      (
        lambda s, seen=seen: operators.blur(
          s, LOPSIDED, boundary="valid", seen=seen
        ),
        r"seen must be \(h, w\) or None, got",
      )
      for seen in (20, (20,))
    ),
    (
      lambda s: operators.super_resolution(s, boundary="circular"),
      'boundary must be "reflect" or "valid"',
    ),
    (
      lambda s: operators.super_resolution(s, factor=3, boundary="valid"),
      r"divide the image size \(32, 24\), got 3",
    ),
    (lambda s: operators.gaussian_blur(s, size=4), "size must be odd"),
    (lambda s: operators.gaussian_blur(s, std=0.0), "std must be positive"),
    (lambda s: operators.motion_blur(s, "huge"), "one of short, p20, p30,"),
    (lambda s: operators.blur(s, LOPSIDED).svd(), "needs boundary='circular'"),
    (lambda s: operators.super_resolution((24, 24)), "image_shape must be"),
    (lambda s: operators.random_inpainting((24, 24)), "image_shape must be"),
    (lambda s: operators.box_inpainting((0, 8, 1)), "image_shape must be"),
    (lambda s: operators.inpainting((8, 8), np.ones((8, 8))), "image_shape"),
    (lambda s: operators.blur((24, 24.0, 3), LOPSIDED), "image_shape must be"),
  ],
)
def test_bad_input_is_one_sentence(call, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    call((40, 32, 3))
  assert "\n" not in str(caught.value)
