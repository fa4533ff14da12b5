"""The training loops of adapters and judges, and their evaluation.

`trainer` trains an adapter from a source and an objective, by `updater`; `judge_trainer` trains a judge from pairs;
`gradients` sums gradients over processes; `held_out_scores` and `evaluate_judge` evaluate on held-out data; `watch`
detects a training that learns nothing. `settings` and `judge_settings` load without torch.
"""
