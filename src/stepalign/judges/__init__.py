"""Judges: `(x_t, x_0, t, prompts) -> scores`, one file each."""
