// The simulated board: the accelerator's Verilog, a memory on its AXI4 ports and a host on its AXI4-Lite port.
// For ctypes: sim/board.py.

#include <cstdint>
#include <memory>

#include "Vmoe_hw.h"
#include "api.h"
#include "axi_memory.h"
#include "dram.h"
#include "verilated.h"

#define CSR(signal) AXI(s_axil, signal)
#define SIGNAL_TYPE(signal) std::remove_reference_t<decltype(Vmoe_hw::signal)>

namespace {

using Reads = AxiReads<SIGNAL_TYPE(AXI(m_axi, rdata)), SIGNAL_TYPE(AXI(m_axi, araddr))>;
static_assert(Reads::WORD_BYTES * 8 == MOE_HW_DATA_BITS, "the bus is not as wide as the Arch says");

#if MOE_HW_CHANNELS > 1
using ChannelReads = AxiReads<SIGNAL_TYPE(AXI(m_axi_0, rdata)), SIGNAL_TYPE(AXI(m_axi_0, araddr))>;
#else
using ChannelReads = Reads;
#endif

constexpr int CSR_CYCLES = 10000;  // a CSR access that takes longer has failed
constexpr int CSR_TIMEOUT = -1;

class Board {
public:
    Board(uint8_t* memory, uint64_t bytes, const DramParameters& parameters)
        : top_(std::make_unique<Vmoe_hw>(&context_)),
          memory_{memory, bytes, Dram(parameters)},
          reads_(memory_, READ_SIGNALS(*top_, m_axi), Dram::ALL),
          writes_(memory_, *top_) {
#define CHANNEL(number) channels_.push_back({memory_, READ_SIGNALS(*top_, m_axi_##number), number});
#include "channels.h"
        reset(2);
    }

    ~Board() { top_->final(); }

    void reset(uint32_t cycles) {
        top_->CSR(awvalid) = top_->CSR(wvalid) = top_->CSR(bready) = 0;
        top_->CSR(arvalid) = top_->CSR(rready) = 0;
        top_->rst = 1;
        for (uint32_t i = 0; i < cycles; ++i) {
            reset_memory();
            cycle();
        }
        top_->rst = 0;
        reset_memory();
    }

    // The response of the accelerator, or CSR_TIMEOUT.
    int csr_write(uint32_t address, uint32_t value) {
        bool address_left = true, data_left = true;
        top_->CSR(awaddr) = address;
        top_->CSR(wdata) = value;
        top_->CSR(wstrb) = 0xF;
        for (int i = 0; i < CSR_CYCLES; ++i) {
            top_->CSR(awvalid) = address_left && (top_->CSR(awvalid) || !csr_stall());
            top_->CSR(wvalid) = data_left && (top_->CSR(wvalid) || !csr_stall());
            top_->CSR(bready) = !address_left && !data_left && !csr_stall();
            settle();
            const bool address_taken = top_->CSR(awvalid) && top_->CSR(awready);
            const bool data_taken = top_->CSR(wvalid) && top_->CSR(wready);
            const bool answered = top_->CSR(bvalid) && top_->CSR(bready);
            const int answer = top_->CSR(bresp);
            edge();
            address_left &= !address_taken;
            data_left &= !data_taken;
            if (address_taken) top_->CSR(awvalid) = 0;
            if (data_taken) top_->CSR(wvalid) = 0;
            if (answered) {
                top_->CSR(bready) = 0;
                return answer;
            }
        }
        top_->CSR(awvalid) = top_->CSR(wvalid) = top_->CSR(bready) = 0;
        return CSR_TIMEOUT;
    }

    int csr_read(uint32_t address, uint32_t& value) {
        bool address_left = true;
        top_->CSR(araddr) = address;
        for (int i = 0; i < CSR_CYCLES; ++i) {
            top_->CSR(arvalid) = address_left && (top_->CSR(arvalid) || !csr_stall());
            top_->CSR(rready) = !address_left && !csr_stall();
            settle();
            const bool taken = top_->CSR(arvalid) && top_->CSR(arready);
            const bool answered = top_->CSR(rvalid) && top_->CSR(rready);
            const int answer = top_->CSR(rresp);
            value = top_->CSR(rdata);
            edge();
            address_left &= !taken;
            if (taken) top_->CSR(arvalid) = 0;
            if (answered) {
                top_->CSR(rready) = 0;
                return answer;
            }
        }
        top_->CSR(arvalid) = top_->CSR(rready) = 0;
        return CSR_TIMEOUT;
    }

    // At least one cycle, as `busy` may answer to the CSR write before. Returns the cycles.
    uint64_t run(uint64_t limit) {
        uint64_t count = 0;
        while (count < limit && !memory_.violation) {
            cycle();
            ++count;
            if (!top_->busy) break;
        }
        return count;
    }

    bool busy() const { return top_->busy; }
    uint64_t cycles() const { return cycles_; }
    Memory& memory() { return memory_; }

    // Each port stalls on its own.
    void set_stall(uint64_t seed, double probability) {
        csr_stall.set(~seed, probability);
        reads_.stall.set(seed, probability);
        writes_.stall.set(seed + 1, probability);
        for (ChannelReads& channel : channels_) channel.stall.set(seed += 2, probability);
    }

private:
    void reset_memory() {
        memory_.violation = nullptr;
        memory_.dram.reset(cycles_);
        reads_.reset();
        writes_.reset();
        for (ChannelReads& channel : channels_) channel.reset();
    }

    void cycle() {
        settle();
        edge();
    }

    // Inputs of this cycle, and the outputs that depend on them.
    void settle() {
        reads_.drive(cycles_);
        writes_.drive(cycles_);
        for (ChannelReads& channel : channels_) channel.drive(cycles_);
        top_->clk = 0;
        top_->eval();
    }

    void edge() {
        if (!top_->rst) clock_memory();
        top_->clk = 1;
        top_->eval();
        ++cycles_;
    }

    void clock_memory() {
        reads_.clock(cycles_);
        writes_.clock(cycles_);
        for (ChannelReads& channel : channels_) channel.clock(cycles_);
    }

    Stall csr_stall;
    VerilatedContext context_;
    std::unique_ptr<Vmoe_hw> top_;
    Memory memory_;
    Reads reads_;
    AxiWrites<Vmoe_hw> writes_;
    std::vector<ChannelReads> channels_;
    uint64_t cycles_ = 0;
};

}  // namespace

// `memory` belongs to the caller and outlives the board.
API Board* board_create(uint8_t* memory, uint64_t bytes, const DramParameters* parameters) {
    return new Board(memory, bytes, *parameters);
}
API void board_destroy(Board* board) { delete board; }
API void board_reset(Board* board, uint32_t cycles) { board->reset(cycles); }
API int board_csr_write(Board* board, uint32_t address, uint32_t value) { return board->csr_write(address, value); }
API int board_csr_read(Board* board, uint32_t address, uint32_t* value) { return board->csr_read(address, *value); }
API uint64_t board_run(Board* board, uint64_t limit) { return board->run(limit); }
API bool board_busy(Board* board) { return board->busy(); }
API const char* board_violation(Board* board) { return board->memory().violation; }
API void board_statistics(Board* board, uint64_t* out) {
    out[0] = board->cycles();
    out[1] = board->memory().statistics.read_words;
    out[2] = board->memory().statistics.write_words;
}
API void board_add_fault(Board* board, bool write, uint64_t low, uint64_t high) {
    board->memory().faults.push_back({write, low, high});
}
API void board_clear_faults(Board* board) { board->memory().faults.clear(); }
API void board_set_dead(Board* board, bool dead) { board->memory().dead = dead; }
API void board_set_stall(Board* board, uint64_t seed, double probability) {
    board->set_stall(seed, probability);
}
