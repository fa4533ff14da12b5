"""Base models: one file per family, which says how its prompts are encoded; `load` does the rest for all of them."""
