"""Experience sources: where the batches of a training round come from.

`settings` holds the settings of each source and their union `Sources`, `load` builds the source for them. `candidates`
compares candidates that a judge scored (SPO, GradSPO), `clean_gradient` follows the judge's exact gradient; both go
through a round's prompts with `by_prompt`, in the order of `prompt_order`. `rollout` samples and scores the candidates
where `branching` applies.
"""
