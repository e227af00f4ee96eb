"""The Amaranth generator: one hardware block a file, named as on the block diagram of ``docs/design.md``."""
