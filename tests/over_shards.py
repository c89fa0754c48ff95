"""Calls whose tokens are split over virtual devices, for the tests."""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from tests.oracles import Problem

TOKENS = P(None, "tokens")
SPECS = Problem(*[TOKENS] * 5, P())


def mesh_of(shards, rows=1):
  devices = np.array(jax.devices()[: rows * shards]).reshape(rows, shards)
  return jax.sharding.Mesh(devices, ("rows", "tokens"))


def over(shards, f, in_specs, out_specs, **options):
  return jax.shard_map(
    f, mesh=mesh_of(shards), in_specs=in_specs, out_specs=out_specs, **options
  )


def sharded(p, segment_ids=None, *, shards, check_vma=True, **options):
  """The rule on a Problem whose tokens are split."""
  options = {"chunk_size": 16, "axis_name": "tokens"} | options
  form = over(
    shards,
    lambda p, ids: p.under(sharded_delta_rule, ids, **options),
    (SPECS, TOKENS),
    (TOKENS, P()),
    check_vma=check_vma,
  )
  return form(p, segment_ids)
