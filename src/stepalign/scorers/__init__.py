"""Scorers of finished images `(images, prompts) -> scores`, larger is better, one file each.

`load` creates them by name; `weights` and `open_clip` read the released files; `record` describes weights and
preprocessing; `diversity`, `drift` and `style` measure sets of images; `geneval` is a package of its own.
"""
