"""The rule with its tokens split over the devices of a mesh axis.

`sharded` is the rule, by `columns` that read and move the state of a shard and
`shard_maps` that say what a shard does to one; `hopper_shards` is all of a
shard in the kernels of a Hopper GPU.
"""

from neumann_jax.delta_rule.sequence_parallel.sharded import (
  sharded_delta_rule as sharded_delta_rule,
)
