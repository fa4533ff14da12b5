"""Images of any model generated, scored and compared, apart from training.

`generation` writes a folder of images, `scoring` scores it, `image_sets` measures it as a set, `compare` sets folders
side by side, `ranking` orders more than two.
"""
