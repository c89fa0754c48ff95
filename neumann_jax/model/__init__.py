"""The hybrid text model: decoder layers, their stack, the language model."""
