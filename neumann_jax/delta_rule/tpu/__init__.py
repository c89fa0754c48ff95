"""The gated delta rule on a TPU, forward and backward, in kernels.

`rule` says where they run and differentiates them. `grid_plan` is what a grid
step holds. The kernels: `forward_kernel`; `backward_kernel`, which for every
pack loads `backward_operands` and takes a `backward_step`; `token_kernel` for
one token of many rows. What they share is in `packs`.
"""
