"""The mathematics and the values that flow through it; nothing here loads a model.

`batch` holds the named, frozen values (conditioning, candidates, comparisons), `choices` the named choices of settings,
`sampler` the distributions of denoising steps, `protocols` the interfaces of policy, sampler, judge, objective and
scorer, `seeding` the stateless random numbers.
"""
