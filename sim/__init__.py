"""The simulated board: Verilator runner, DRAM timing model, cocotb benches and bus helpers."""
