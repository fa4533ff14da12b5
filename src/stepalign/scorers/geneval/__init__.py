"""GenEval (Ghosh et al., arXiv 2310.11513): detection of objects, rules over them, and the table of its tasks.

`detection` and `colour_head` run the networks, `rules` decides, `files` reads its layouts, `summary` makes the table.
"""
