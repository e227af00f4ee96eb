// The host bridge alone: a memory on its AXI4 port, registers on its AXI4-Lite port, a serial line on its pins.
// For ctypes: sim/bridge.py.

#include <cstdint>
#include <memory>

#include "Vbridge_board.h"
#include "axi_memory.h"
#include "dram.h"
#include "line.h"
#include "verilated.h"

#define SIGNAL_TYPE(signal) std::remove_reference_t<decltype(Vbridge_board::signal)>

namespace {

using Reads = AxiReads<SIGNAL_TYPE(AXI(m_axi, rdata)), SIGNAL_TYPE(AXI(m_axi, araddr))>;

class BridgeBoard : public LineDevice {
public:
    BridgeBoard(uint8_t* memory, uint64_t bytes, const DramParameters& parameters, double bit_cycles)
        : LineDevice(bit_cycles),
          top_(std::make_unique<Vbridge_board>(&context_)),
          memory_{memory, bytes, Dram(parameters)},
          reads_(memory_, READ_SIGNALS(*top_, m_axi), Dram::ALL),
          writes_(memory_, *top_) {
        top_->rst = 1;
        top_->rx = 1;
        for (int i = 0; i < 3; ++i) cycle();
        top_->rst = 0;
    }

    ~BridgeBoard() override { top_->final(); }

    const char* violation() const override { return memory_.violation; }
    Memory& memory() { return memory_; }

    void set_stall(uint64_t seed, double probability) {
        reads_.stall.set(seed, probability);
        writes_.stall.set(seed + 1, probability);
    }

protected:
    void run(uint64_t cycles) override {
        while (cycles--) cycle();
    }

private:
    void cycle() {
        reads_.drive(cycles_);
        writes_.drive(cycles_);
        top_->rx = uart_.drive(cycles_);
        top_->clk = 0;
        top_->eval();
        if (!top_->rst) {
            reads_.clock(cycles_);
            writes_.clock(cycles_);
            uart_.clock(cycles_, top_->tx);
        }
        top_->clk = 1;
        top_->eval();
        ++cycles_;
    }

    VerilatedContext context_;
    std::unique_ptr<Vbridge_board> top_;
    Memory memory_;
    Reads reads_;
    AxiWrites<Vbridge_board> writes_;
};

BridgeBoard& bridge(LineDevice* device) { return *static_cast<BridgeBoard*>(device); }

}  // namespace

// `memory` belongs to the caller and outlives the board.
API LineDevice* bridge_create(uint8_t* memory, uint64_t bytes, const DramParameters* parameters, double bit_cycles) {
    return new BridgeBoard(memory, bytes, *parameters, bit_cycles);
}
API void bridge_add_fault(LineDevice* device, bool write, uint64_t low, uint64_t high) {
    bridge(device).memory().faults.push_back({write, low, high});
}
API void bridge_clear_faults(LineDevice* device) { bridge(device).memory().faults.clear(); }
API void bridge_set_dead(LineDevice* device, bool dead) { bridge(device).memory().dead = dead; }
API void bridge_set_stall(LineDevice* device, uint64_t seed, double probability) {
    bridge(device).set_stall(seed, probability);
}
