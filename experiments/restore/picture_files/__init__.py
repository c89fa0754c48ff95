"""Files of pictures, masks and blur kernels as people have them, as arrays."""
