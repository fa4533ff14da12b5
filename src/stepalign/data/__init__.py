"""What a run reads: preference pairs, prompts and folders of images.

`sources` finds the kind of a pair data set and `prepared` encodes it once; `prompt_files` and `prompt_sets` hold
prompts; `manifest` lists the images of a folder.
"""
