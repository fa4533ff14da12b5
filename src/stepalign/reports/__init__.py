"""HTML reports and plots, self-contained and readable without a network.

`page` and `plots` are shared; `run` and `judge` are the reports of the two kinds of training, `comparison` the page of
`stepalign compare`, `figures` the papers' figures.
"""
