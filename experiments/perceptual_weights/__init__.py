"""Weights of LPIPS and DISTS, out of packages that carry them."""
