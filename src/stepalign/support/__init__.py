"""General services without knowledge of diffusion models.

`config` reads recipes; `files`, `claim` and `marker` write and hold run directories; `parsing`, `images` and
`tensor_files` read files of users; `digests` identify parts by content; `hub` recognises names on the Hugging Face hub;
`parallel` holds the distributed state; `statistics` and `shares` compute confidence intervals; `errors` and `stopping`
define how a command ends.
"""
