"""The loops that change weights, and the measurements they are judged by.

`trainer` trains an adapter from experience and an objective, by `updater`; `judge_trainer` trains a judge from pairs;
`held_out_scores` and `evaluate_judge` compare before and after; `watch` reads signs of trouble off the metrics.
"""
