"""The gated delta rule: by chunks, token by token, and over a mesh axis.

`api` is the public door; `options` says how the rule is computed, `inputs` what
is accepted, `precision` in which types. `layout` cuts operands into chunks and
`gates` weighs them; the room `chunks` has what follows, on one device. What one
stage of it is as a kernel is in the room `kernels`; `hopper` and `tpu` hold all
of the rule, and its derivative, in kernels of a Hopper GPU and of a TPU.

`recurrent` is the rule token by token and one step of it, `one_token` that step
for many rows. `sequence_parallel` is the rule with its tokens split over
devices, `on_mesh` with rows and heads. `isolation` keeps packed documents apart
from what is not finite in another, `kept_names` names what a rematerialised
layer may keep.
"""
