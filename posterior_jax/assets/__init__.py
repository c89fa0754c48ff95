"""Data that ships with the package, named in its manifests."""
