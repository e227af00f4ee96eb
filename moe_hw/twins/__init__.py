"""Integer twins of the hardware blocks: what each computes, to the last bit (``docs/numerics.md``).

A twin carries its block's name. All integers are numpy int64 arrays, of any shape that broadcasts.
"""
