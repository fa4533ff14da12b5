"""The mathematics and the values that flow through it; nothing here loads a model.

`batch` holds the named, frozen values (conditioning, candidates, comparisons), `sampler` the distributions of denoising
steps, `protocols` what a policy, sampler, judge, objective and scorer offer, `seeding` the stateless random numbers.
"""
