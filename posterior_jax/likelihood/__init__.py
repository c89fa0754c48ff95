"""What a measurement says of an image, shared by all samplers.

`bands` weighs the residual by frequency, `gaussian` draws from or minimises the
Gaussian of residual and tie where the tie is diagonal in Fourier space, and
`covariance` does so where it is known by its products alone.
"""
