"""The chunk inverse as Pallas kernels.

`tiles` is the algebra of lower triangular matrices cut into tiles, `body` the
methods in that algebra, `formats` the operands of a product inside a kernel;
`tpu` and `gpu` are the launches, one a back end.
"""
