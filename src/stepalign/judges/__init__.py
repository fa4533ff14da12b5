"""Judges `(x_t, x_0, t, prompts) -> scores`, larger is better, one file each.

`spm` is the step-aware preference model, `image` any scorer of clean images, both on `decoding`; `spm_files` and `card`
read, write and publish a trained judge; `pairs` scores image pairs with one, `counted` counts its images.
"""
