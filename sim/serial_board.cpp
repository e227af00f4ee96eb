// A board with an SDRAM and a serial port at its pins: the fabric, the chip and the far end of the line, each with its
// own clock. For ctypes: sim/serial_board.py.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>

#include "Vserial_board.h"
#include "sdram_chip.h"
#include "uart.h"
#include "verilated.h"

namespace {

constexpr int RESET_CYCLES = 8;  // of the fabric: more than four of the slower clock

class SerialBoard {
public:
    // Periods in femtoseconds.
    SerialBoard(uint16_t* memory, const SdramParameters& parameters, int64_t fabric, int64_t sdram, double bit_cycles)
        : top_(std::make_unique<Vserial_board>(&context_)),
          chip_(parameters, memory),
          uart_(bit_cycles),
          fabric_(fabric),
          sdram_(sdram),
          next_sdram_(sdram) {
        top_->rx = 1;
        top_->rst = top_->sdram_rst = 1;
        run(RESET_CYCLES);
        top_->rst = top_->sdram_rst = 0;
    }

    ~SerialBoard() { top_->final(); }

    // Sends bytes, lets cycles of the fabric pass, and takes what has been received: at most `room` bytes.
    uint64_t run_line(uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received, uint64_t room) {
        uart_.send(sent, count);
        run(cycles);
        return uart_.take(received, room);
    }

    uint64_t cycles() const { return cycles_; }
    uint64_t quiet() const { return uart_.quiet(cycles_); }
    const char* violation() const { return chip_.violation().empty() ? nullptr : chip_.violation().c_str(); }

private:
    void run(uint64_t cycles) {
        for (const uint64_t end = cycles_ + cycles; cycles_ < end;) {
            const int64_t now = std::min(next_fabric_, next_sdram_);
            clock(now == next_fabric_, now == next_sdram_);
        }
    }

    void clock(bool fabric, bool sdram) {
        if (fabric) {
            top_->rx = uart_.drive(cycles_);
            top_->clk = 0;
        }
        if (sdram) top_->sdram_clk = 0;
        top_->eval();
        if (fabric) {
            uart_.clock(cycles_, top_->tx);
            top_->clk = 1;
            ++cycles_;
            next_fabric_ += fabric_;
        }
        if (sdram) {
            clock_chip();
            top_->sdram_clk = 1;
            next_sdram_ += sdram_;
        }
        top_->eval();
    }

    // The chip's edge is that of its controller: it sees what the controller sent an edge ago, and what it showed
    // after its last edge is what the controller takes now.
    void clock_chip() {
        top_->dq_i = chip_.driven() ? chip_.dq() : uint16_t(random_());  // nobody drives the pins: they may be anything
        if (top_->sdram_rst) return;
        chip_.clock({top_->clk_en != 0, top_->cs != 0, top_->ras != 0, top_->cas != 0, top_->we != 0, top_->ba,
                     top_->a, top_->dqm, top_->dq_oe != 0, uint16_t(top_->dq_o)});
    }

    VerilatedContext context_;
    std::unique_ptr<Vserial_board> top_;
    SdramChip chip_;
    Uart uart_;
    std::minstd_rand random_;
    int64_t fabric_, sdram_;
    int64_t next_fabric_ = 0, next_sdram_;
    uint64_t cycles_ = 0;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// `memory` belongs to the caller and outlives the board.
API SerialBoard* serial_board_create(uint16_t* memory, const SdramParameters* parameters, int64_t fabric, int64_t sdram,
                                     double bit_cycles) {
    return new SerialBoard(memory, *parameters, fabric, sdram, bit_cycles);
}
API void serial_board_destroy(SerialBoard* board) { delete board; }
API const char* serial_board_violation(SerialBoard* board) { return board->violation(); }
API uint64_t line_run(SerialBoard* board, uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received,
                      uint64_t room) {
    return board->run_line(cycles, sent, count, received, room);
}
API uint64_t line_cycles(SerialBoard* board) { return board->cycles(); }
API uint64_t line_quiet(SerialBoard* board) { return board->quiet(); }
