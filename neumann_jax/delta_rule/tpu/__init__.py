"""The gated delta rule on a TPU, forward and backward, in kernels.

`rule` says where they run and differentiates them. `grid_plan` is what a grid
step holds. The kernels: `forward_kernel`, `backward_kernel` with the gradients
of one pack in `pack_gradients`, of what `gradient_pack` loads, and
`token_kernel` for one token of many rows; what they share is in `packs`.
"""
