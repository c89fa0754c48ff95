"""Convolutions of networks: JAX's own numbers, by a transpose that is quick."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from posterior_jax.priors.nets.convolution import convolve
from tests.oracles import FLOAT32_OPERATOR, quick_jit

lax_convolution = lax.conv_general_dilated
NAMES = ("NHWC", "HWIO", "NHWC")
# strides, padding, kernel's sides, other options
FORMS = {
  "3x3": ((1, 1), "SAME", (3, 3), {}),
  "1x1": ((1, 1), "SAME", (1, 1), {}),
  "5x3": ((1, 1), "SAME", (5, 3), {}),
  "even": ((1, 1), "SAME", (2, 4), {}),
  "strided": ((2, 2), ((0, 1), (0, 1)), (3, 3), {}),
  "valid": ((1, 1), "VALID", (3, 3), {}),
  "dilated": ((1, 1), "SAME", (3, 3), {"rhs_dilation": (2, 2)}),
  "groups": ((1, 1), "SAME", (3, 3), {"feature_group_count": 2}),
}


def _arrays(shape, sides, groups, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = (shape, (*sides, shape[-1] // groups, 6), shape)  # x, kernel, dx
  return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


@pytest.mark.parametrize("form", FORMS)
def test_is_the_convolution_of_jax_with_its_derivatives(form):
  strides, padding, sides, options = FORMS[form]
  options = options | {"dimension_numbers": NAMES}
  groups = options.get("feature_group_count", 1)
  x, kernel, dx = _arrays((2, 7, 6, 4), sides, groups)

  def results(conv):
    def call(x, kernel):
      return conv(x, kernel, strides, padding, **options)

    y, pullback = jax.vjp(call, x, kernel)
    dy = jnp.cos(y)
    moved = jax.jvp(call, (x, kernel), (dx, jnp.sin(kernel)))[1]
    return (
      y,
      moved,
      *pullback(dy),
      jax.vjp(lambda x: call(x, kernel), x)[1](dy),
    )

  for ours, theirs in zip(
    jax.tree.leaves(results(convolve)),
    jax.tree.leaves(results(lax_convolution)),
  ):
    np.testing.assert_allclose(
      ours, theirs, rtol=FLOAT32_OPERATOR, atol=10 * FLOAT32_OPERATOR
    )


def test_second_derivatives_and_batches():
  arrays = _arrays((1, 5, 4, 4), (3, 3), 1)

  @functools.partial(quick_jit, static_argnums=0)
  def results(conv, x, kernel, dx):
    def energy(x, kernel):
      y = conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
      return jnp.sum(jnp.tanh(y) ** 2)

    def steepness(x, kernel):
      return jnp.sum(jax.grad(energy, (0, 1))(x, kernel)[1] ** 2)

    gradient = jax.grad(energy, (0, 1))
    turned = jnp.sin(kernel)
    images, kernels = jnp.stack([x, dx], 1), jnp.stack([kernel, turned], -1)
    return (
      jax.jvp(gradient, (x, kernel), (dx, turned))[1],
      jax.grad(steepness, (0, 1))(x, kernel),
      jax.vmap(gradient, (1, None))(images, kernel),
      jax.vmap(gradient, (None, -1))(x, kernels),
      jax.vmap(gradient, (1, -1))(images, kernels),
      jax.vmap(jax.jit(energy), (1, None))(images, kernel),
    )

  for ours, theirs in zip(
    jax.tree.leaves(results(convolve, *arrays)),
    jax.tree.leaves(results(lax_convolution, *arrays)),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_pullback_in_a_loop_is_the_convolution_that_cpus_have_kernels_for():
  x, kernel, _ = _arrays((1, 8, 8, 4), (3, 3), 1)

  def step(x, kernel, conv):
    def call(x):
      y = conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
      return jnp.tanh(y[..., :4])

    y, pullback = jax.vjp(call, x)
    return pullback(y)[0]

  def program(conv):
    def looped(x, kernel):
      return lax.fori_loop(0, 3, lambda _, x: step(x, kernel, conv), x)

    return jax.jit(looped).lower(x, kernel).compile().as_text()

  assert "01oi" in program(lax_convolution)  # else it has no purpose
  assert "01oi" not in program(convolve)


def test_keeps_the_dtype_of_the_arithmetic():
  x, kernel, _ = _arrays((1, 5, 4, 4), (3, 3), 1, jnp.bfloat16)
  y, pullback = jax.vjp(
    lambda x: convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES), x
  )
  assert y.dtype == pullback(y)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("said", ["by the context", "by the call"])
def test_precision_is_that_of_where_it_is_called(said):
  """Not of where the program is lowered."""
  x, kernel, _ = _arrays((1, 5, 4, 4), (3, 3), 1)

  def pulled(conv):
    def call(x):
      options = {"dimension_numbers": NAMES}
      if said == "by the call":
        options["precision"] = lax.Precision.HIGHEST
      with jax.default_matmul_precision("highest"):
        return conv(x, kernel, (1, 1), "SAME", **options)

    def program(x):
      y, pullback = jax.vjp(call, x)
      return pullback(y)[0]

    with jax.default_matmul_precision("default"):
      return jax.jit(program).lower(x).as_text()

  counts = [pulled(c).count("HIGHEST") for c in (convolve, lax_convolution)]
  assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
  "changes",
  [
    {"dimension_numbers": ("NCHW", "HWIO", "NCHW")},
    {"dimension_numbers": None},
    {"batch_group_count": 2},
    {"preferred_element_type": jnp.float32},
  ],
)
def test_other_options_are_left_to_jax(changes):
  x, kernel, _ = _arrays((2, 6, 6, 6), (3, 3), 1)
  kernel = kernel[..., :6]
  options = {"dimension_numbers": NAMES} | changes
  if changes == {"dimension_numbers": None}:
    kernel = kernel.transpose(3, 2, 0, 1)  # JAX's own order

  def results(conv):
    call = lambda x: conv(x, kernel, (1, 1), "SAME", **options)  # noqa: E731
    y, pullback = jax.vjp(call, x)
    return y, pullback(y)[0]

  for ours, theirs in zip(results(convolve), results(lax_convolution)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_jax_refuses_is_refused_before_any_compilation():
  x, kernel, _ = _arrays((1, 5, 4, 4), (3, 3), 1)
  for bad in (kernel[:, :, :3], kernel.astype(jnp.bfloat16)):
    with pytest.raises((TypeError, ValueError), match="conv_general_dil"):
      jax.eval_shape(
        lambda k: convolve(x, k, (1, 1), "SAME", dimension_numbers=NAMES), bad
      )


@pytest.mark.parametrize("split", ["images", "kernels"])
def test_gradients_inside_shard_map(split):
  x, kernel, _ = _arrays((4, 5, 4, 4), (3, 3), 1)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2,), ("data",), axis_types=kinds)
  along = jax.P("data") if split == "images" else jax.P()
  over = jax.P(None, None, None, "data") if split == "kernels" else jax.P()

  def energy(conv):
    @functools.partial(
      jax.shard_map, mesh=mesh, in_specs=(along, over), out_specs=jax.P()
    )
    def call(x, kernel):
      y = conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
      return lax.psum(jnp.sum(jnp.tanh(y) ** 2), "data")

    return jax.jit(jax.grad(call, (0, 1)))(x, kernel)

  for ours, theirs in zip(energy(convolve), energy(lax_convolution)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
