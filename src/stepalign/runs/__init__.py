"""Runs from recipe to report, in a directory of their own.

`recipes` and `judge_recipes` are the settings, `assemble` and `assemble_judge` create the parts from them. `run` is the
frame of every job: `job` aligns a model, `judge_job` trains a judge, `sweep` carries out many runs. `guard`,
`health_checks` and `held_out` measure before, during and after training; `gains` measures a run by timestep.
"""
