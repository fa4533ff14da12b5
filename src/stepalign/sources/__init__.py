"""Experience sources: where the comparisons of a training round come from.

`rollout` samples candidates and scores them (SPO, GradSPO); `clean_gradient` follows the judge's exact gradient;
`prompt_order` decides which prompts a round uses.
"""
