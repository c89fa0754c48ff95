"""The chunk inverse as Pallas kernels: one launch a platform, one body.

`products` has the operands of a product inside a kernel; `tpu` and `gpu` are
the launches, `tpu_ladder` the ladder in the layout a TPU likes.
"""
