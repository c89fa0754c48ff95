"""What the rule names for the policies of `jax.checkpoint`.

A policy that keeps all of these spares a rematerialised layer the rule's second
forward pass. Inverses and states come from the launch, or the scan, that the
outputs come from: it is spared where nothing that it gives is missing.
"""

from jax.ad_checkpoint import checkpoint_name

OUTPUTS = "rule_outputs"  # and the final state
INVERSE = "chunk_inverse"
# Before every chunk, or every second one; of a shard, the entering one and M.
STATES = "chunk_states"
ALL = (OUTPUTS, INVERSE, STATES)

named = checkpoint_name
