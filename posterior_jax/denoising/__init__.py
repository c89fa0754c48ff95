"""From a noisy image to a clean one: calls of a denoiser, tiled and padded."""
