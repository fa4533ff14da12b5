"""Base models: one file per family, each loading a network, its text encoders, its VAE and its noise schedule."""
