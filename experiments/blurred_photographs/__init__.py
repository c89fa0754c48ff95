"""Blurred photographs restored, beside Tikhonov's estimate."""
