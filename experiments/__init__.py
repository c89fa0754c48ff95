"""Experiments: the only place that knows both packages, flags and configs."""
