"""Every sampler against posteriors that are known exactly."""
