"""What studies are of: samplers, text models, and how good each is."""
