"""Photographs restored by every sampler, in one table and one HTML report."""
