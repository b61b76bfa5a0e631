"""Everything that touches torch and transformers: skeleton, order of weights, units, binding, and the tasks.

Only compute imports this package. It knows no process, socket or slot number: weights come through a supply.
"""
