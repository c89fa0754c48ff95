"""Every method tuned alike for the same number of network evaluations."""
