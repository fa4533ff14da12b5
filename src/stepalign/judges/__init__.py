"""Judges `(x_t, x_0, t, prompts) -> scores`, larger is better, one file each.

`spm` is the step-aware preference model, `image` any scorer of clean images; `spm_files` and `card` write and publish
a trained judge.
"""
