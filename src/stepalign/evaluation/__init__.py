"""Generation, scoring and comparison of images of any model, apart from training.

`generation` writes a folder of images, `scoring` scores it, `image_sets` computes set-level metrics, `compare` compares
folders prompt by prompt, `ranking` fits Bradley-Terry strengths to more than two.
"""
