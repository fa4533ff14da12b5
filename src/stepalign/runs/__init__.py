"""Runs from recipe to report, in a directory of their own.

`recipes` and `judge_recipes` are the settings, `assemble` and `assemble_judge` make the parts from them, `job` and
`judge_job` do the work, `sweep` many runs; `guard`, `health_checks` and `held_out` measure while and after training.
"""
