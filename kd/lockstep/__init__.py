"""Students that share data, seed and teacher, trained in lockstep: one batch and one teacher forward for all of them.

Read `train.train_together` first. `module.Lockstep` is the LightningModule, `ways` has the two ways to make a step,
`choose` finds out which one is faster here.
"""
