// The host bridge alone: a memory on its AXI4 port, registers on its AXI4-Lite port, a serial line on its pins.
// For ctypes: sim/bridge.py.

#include <cstdint>
#include <memory>

#include "Vbridge_board.h"
#include "axi_memory.h"
#include "dram.h"
#include "uart.h"
#include "verilated.h"

#define SIGNAL_TYPE(signal) std::remove_reference_t<decltype(Vbridge_board::signal)>

namespace {

using Reads = AxiReads<SIGNAL_TYPE(AXI(m_axi, rdata)), SIGNAL_TYPE(AXI(m_axi, araddr))>;

class BridgeBoard {
public:
    BridgeBoard(uint8_t* memory, uint64_t bytes, const DramParameters& parameters, double bit_cycles)
        : top_(std::make_unique<Vbridge_board>(&context_)),
          memory_{memory, bytes, Dram(parameters)},
          reads_(memory_, READ_SIGNALS(*top_, m_axi), Dram::ALL),
          writes_(memory_, *top_),
          uart_(bit_cycles) {
        top_->rst = 1;
        top_->rx = 1;
        for (int i = 0; i < 3; ++i) cycle();
        top_->rst = 0;
    }

    ~BridgeBoard() { top_->final(); }

    // Sends bytes, lets time pass, and takes what has been received: at most `room` bytes.
    uint64_t run(uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received, uint64_t room) {
        uart_.send(sent, count);
        while (cycles--) cycle();
        return uart_.take(received, room);
    }

    uint64_t cycles() const { return cycles_; }
    uint64_t quiet() const { return uart_.quiet(cycles_); }
    Memory& memory() { return memory_; }

    void set_stall(uint64_t seed, double probability) {
        reads_.stall.set(seed, probability);
        writes_.stall.set(seed + 1, probability);
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
    Uart uart_;
    uint64_t cycles_ = 0;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// `memory` belongs to the caller and outlives the board.
API BridgeBoard* bridge_create(uint8_t* memory, uint64_t bytes, const DramParameters* parameters, double bit_cycles) {
    return new BridgeBoard(memory, bytes, *parameters, bit_cycles);
}
API void bridge_destroy(BridgeBoard* board) { delete board; }
API uint64_t line_run(BridgeBoard* board, uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received,
                      uint64_t room) {
    return board->run(cycles, sent, count, received, room);
}
API uint64_t line_cycles(BridgeBoard* board) { return board->cycles(); }
API uint64_t line_quiet(BridgeBoard* board) { return board->quiet(); }
API const char* bridge_violation(BridgeBoard* board) { return board->memory().violation; }
API void bridge_add_fault(BridgeBoard* board, bool write, uint64_t low, uint64_t high) {
    board->memory().faults.push_back({write, low, high});
}
API void bridge_clear_faults(BridgeBoard* board) { board->memory().faults.clear(); }
API void bridge_set_dead(BridgeBoard* board, bool dead) { board->memory().dead = dead; }
API void bridge_set_stall(BridgeBoard* board, uint64_t seed, double probability) { board->set_stall(seed, probability); }
