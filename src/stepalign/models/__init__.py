"""Base models and their adapters: the code that loads and changes a network's weights.

`load` opens a model of any family (`sd`, `sdxl`; `families` recognises them) as a `base.BaseModel`; `policy` is one
network in three roles: trained, averaged and reference. `adapters` puts LoRA files on a model, `lora_files` and
`lora_layouts` read and write them; `unet` replaces a model's UNet; `identity` digests its parts; `clip` is shared CLIP
preprocessing and loading.
"""
