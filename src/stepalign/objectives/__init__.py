"""Losses over batches of experience, one file per family: `stepwise` holds SPO and GradSPO."""
