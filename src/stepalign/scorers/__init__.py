"""Scorers of finished images `(images, prompts) -> scores`, larger is better, one file each.

`load` makes them by name; `weights` and `open_clip` read the released files; `record` says what a number was made with;
`diversity`, `drift` and `style` measure sets of images; `geneval` is a package of its own.
"""
