"""Input data of a run: preference pairs, prompts and folders of images.

`sources` recognises the form of a pair data set and `prepared` encodes it once; `prompt_files` and `prompt_sets` hold
prompts; `manifest` lists the images of a folder.
"""
