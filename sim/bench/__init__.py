"""cocotb helpers: building a block alone, stream sources and sinks, AXI."""
