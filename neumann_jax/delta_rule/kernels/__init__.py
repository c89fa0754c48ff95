"""Single stages of the delta rule as Pallas kernels, one launch a platform."""
