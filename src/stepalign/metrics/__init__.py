"""Metrics: `(images in [0, 1], prompts) -> scores`, larger is better, one file each."""
