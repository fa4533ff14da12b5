"""Base models and their adapters: everything that knows a network's weights.

`load` opens a model of any family (`sd`, `sdxl`) as a `base.BaseModel`; `adapters` reads and writes LoRA files;
`policy` is one network in three roles: trained, averaged and reference.
"""
