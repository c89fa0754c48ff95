"""Files of a byte model: what is written is read, and nothing else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax import Execution, RuleOptions, shipped
from neumann_jax.model.scan_layers import stack_layers
from tests import models
from tests.oracles import refused

ROUNDED = Execution(rule=RuleOptions(chunk_size=16), param_dtype=jnp.bfloat16)


@pytest.fixture
def manifest(tmp_path):
  path = tmp_path / "small.json"
  model = models.trained_like("deep")
  shipped.save_model(path, model, {"command": "none"})
  return path


def _same(found, truth):
  pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (found, truth)))
  for a, b in pairs:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_saved_model_is_read_in_any_execution(manifest, tmp_path):
  """Rounded once to bfloat16, A_log and dt_bias not at all."""
  model = models.trained_like("deep")
  graph, state = nnx.split(model)
  kept = jax.tree.map_with_path(
    lambda path, x: (
      x
      if {"A_log", "dt_bias"} & {getattr(k, "key", None) for k in path}
      else x.astype(jnp.bfloat16)
    ),
    state,
  )
  _same(shipped.load_model(manifest, ROUNDED), nnx.merge(graph, kept))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), kept)
  _same(shipped.load_model(manifest), nnx.merge(graph, wide))
  scanned = Execution(scan_layers=True)
  found = shipped.load_model(manifest, scanned)
  assert found.execution == scanned
  _same(found, stack_layers(nnx.merge(graph, wide)))
  again = tmp_path / "again.json"
  shipped.save_model(again, found, {"command": "none"})
  first = manifest.with_suffix(".safetensors").read_bytes()
  assert again.with_suffix(".safetensors").read_bytes() == first
  assert json.loads(manifest.read_text())["command"] == "none"


def test_changed_files_are_refused(manifest):
  weights = manifest.with_suffix(".safetensors")
  data = bytearray(weights.read_bytes())
  data[-1] ^= 1
  weights.write_bytes(data)
  with refused(ValueError, "small.safetensors has sha256 .* says"):
    shipped.load_model(manifest)
  weights.unlink()
  with refused(ValueError, "names small.safetensors, which is not there"):
    shipped.load_model(manifest)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"config": {"hidden_size": 32}}, "holds other parameters"),
    ({"config": {"width": 32}}, "must name file, sha256 and config"),
    ({"config": None}, "must name file, sha256 and config"),
    ({"file": None}, "must name file, sha256 and config"),
  ],
)
def test_other_manifests_are_refused(manifest, change, message):
  said = json.loads(manifest.read_text())
  if isinstance(change.get("config"), dict):
    change = {"config": said["config"] | change["config"]}
  manifest.write_text(json.dumps(said | change))
  with refused(ValueError, message):
    shipped.load_model(manifest)


def test_parameters_that_are_not_finite_are_refused(tmp_path):
  model = models.make("dense")
  model.norm.weight[...] = model.norm.weight[...].at[3].set(jnp.inf)
  with refused(ValueError, "norm.weight must be finite in bfloat16"):
    shipped.save_model(tmp_path / "bad.json", model, {})
  assert not list(tmp_path.iterdir())
