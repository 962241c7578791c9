"""Functions of numbers, written once: traced into expressions, differentiated, and turned into code.

`trace.traced` calls a user's function with symbols and returns an `expression.Expression`; `derivative.derivative` is
its exact derivative; `torch_code.on_tensors` makes a function of tensors of it. Compiled loops make theirs in
`smc.compiled.likelihoods`.
"""
