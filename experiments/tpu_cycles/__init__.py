"""Static cycles of TPU kernels of the chunk inverse, from a CPU host."""
