"""Losses over batches of experience, one file per family.

`settings` holds the hyperparameters of each and their union `Objectives`, `load` finds the loss for them, `stepwise` is
the loss of SPO and GradSPO. A new objective is its settings, its file and a line in `load`.
"""
