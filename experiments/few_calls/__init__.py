"""`NFCConfig.fast()` beside baselines that are tuned for as few calls."""
