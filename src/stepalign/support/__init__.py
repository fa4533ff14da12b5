"""General services without knowledge of diffusion models.

`config` reads recipes; `files` and `claim` write run directories; `parsing`, `images` and `tensor_files` read files of
users; `parallel` holds the distributed state; `statistics` and `shares` compute confidence intervals; `errors` and
`stopping` define how a command ends.
"""
