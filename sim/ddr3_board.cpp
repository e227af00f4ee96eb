// A board with DDR3 and a serial port: the fabric up to DFI, the PHY and its chip as a model, and the far end of the
// line, each with its own clock. For ctypes: sim/ddr3_board.py.

#include <algorithm>
#include <cstdint>
#include <memory>

#include "Vddr3_board.h"
#include "ddr3_phy.h"
#include "uart.h"
#include "verilated.h"

namespace {

constexpr int RESET_CYCLES = 8;        // of the fabric: more than four of the slower clock
constexpr unsigned PHY_REGISTERS = 64;  // index of the first one

class Ddr3Board {
public:
    // Periods in femtoseconds.
    Ddr3Board(uint16_t* memory, const Ddr3Parameters& chip, const DfiLatency& latency, const Ddr3Lane* lanes,
              int64_t fabric, int64_t controller, double bit_cycles)
        : top_(std::make_unique<Vddr3_board>(&context_)),
          phy_(chip, latency, lanes, memory),
          uart_(bit_cycles),
          fabric_(fabric),
          controller_(controller),
          next_controller_(controller) {
        top_->rx = 1;
        top_->rst = top_->dram_rst = 1;
        run(RESET_CYCLES);
        top_->rst = top_->dram_rst = 0;
    }

    ~Ddr3Board() { top_->final(); }

    // Sends bytes, lets cycles of the fabric pass, and takes what has been received: at most `room` bytes.
    uint64_t run_line(uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received, uint64_t room) {
        uart_.send(sent, count);
        run(cycles);
        return uart_.take(received, room);
    }

    uint64_t cycles() const { return cycles_; }
    uint64_t quiet() const { return uart_.quiet(cycles_); }
    const char* violation() const { return phy_.violation().empty() ? nullptr : phy_.violation().c_str(); }

    // Bursts that were read, and clocks of the controller, while the accelerator had commands.
    uint64_t busy_bursts() const { return busy_bursts_; }
    uint64_t busy_clocks() const { return busy_clocks_; }

private:
    void run(uint64_t cycles) {
        for (const uint64_t end = cycles_ + cycles; cycles_ < end;) {
            const int64_t now = std::min(next_fabric_, next_controller_);
            clock(now == next_fabric_, now == next_controller_);
        }
    }

    void clock(bool fabric, bool controller) {
        if (fabric) {
            top_->rx = uart_.drive(cycles_);
            top_->clk = 0;
        }
        if (controller) top_->dram_clk = 0;
        top_->eval();
        if (fabric) {
            uart_.clock(cycles_, top_->tx);
            top_->clk = 1;
            ++cycles_;
            next_fabric_ += fabric_;
        }
        if (controller) {
            clock_phy();
            top_->dram_clk = 1;
            next_controller_ += controller_;
        }
        top_->eval();
        if (controller) show();
    }

    // At the edge: what the controller has sent in the clock before.
    void clock_phy() {
        if (top_->dram_rst) return;
        const DfiPhase phases[DFI_PHASES] = {
            {{top_->p0_cke != 0, top_->p0_cs_n != 0, top_->p0_ras_n != 0, top_->p0_cas_n != 0, top_->p0_we_n != 0,
              top_->p0_bank, top_->p0_address},
             top_->p0_wrdata_en != 0, top_->p0_rddata_en != 0, top_->p0_wrdata, top_->p0_wrdata_mask},
            {{top_->p1_cke != 0, top_->p1_cs_n != 0, top_->p1_ras_n != 0, top_->p1_cas_n != 0, top_->p1_we_n != 0,
              top_->p1_bank, top_->p1_address},
             top_->p1_wrdata_en != 0, top_->p1_rddata_en != 0, top_->p1_wrdata, top_->p1_wrdata_mask},
        };
        if (top_->busy) {
            ++busy_clocks_;
            busy_bursts_ += phases[0].rddata_en + phases[1].rddata_en;
        }
        phy_.clock(phases);
        found_ = 0;
        if (top_->csr_adr >= PHY_REGISTERS) {
            found_ = phy_.access(top_->csr_adr - PHY_REGISTERS, top_->csr_we, top_->csr_dat_w);
        }
    }

    // Behind the edge: what the controller takes at the next one.
    void show() {
        top_->p0_rddata = phy_.rddata(0);
        top_->p1_rddata = phy_.rddata(1);
        top_->p0_rddata_valid = top_->p1_rddata_valid = phy_.rddata_valid();
        top_->csr_dat_r = found_;
    }

    VerilatedContext context_;
    std::unique_ptr<Vddr3_board> top_;
    Ddr3Phy phy_;
    Uart uart_;
    int64_t fabric_, controller_;
    int64_t next_fabric_ = 0, next_controller_;
    uint64_t cycles_ = 0, busy_clocks_ = 0, busy_bursts_ = 0;
    uint32_t found_ = 0;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// `memory` belongs to the caller and outlives the board.
API Ddr3Board* ddr3_board_create(uint16_t* memory, const Ddr3Parameters* chip, const DfiLatency* latency,
                                 const Ddr3Lane* lanes, int64_t fabric, int64_t controller, double bit_cycles) {
    return new Ddr3Board(memory, *chip, *latency, lanes, fabric, controller, bit_cycles);
}
API void ddr3_board_destroy(Ddr3Board* board) { delete board; }
API const char* ddr3_board_violation(Ddr3Board* board) { return board->violation(); }
API uint64_t ddr3_board_busy_bursts(Ddr3Board* board) { return board->busy_bursts(); }
API uint64_t ddr3_board_busy_clocks(Ddr3Board* board) { return board->busy_clocks(); }
API uint64_t line_run(Ddr3Board* board, uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received,
                      uint64_t room) {
    return board->run_line(cycles, sent, count, received, room);
}
API uint64_t line_cycles(Ddr3Board* board) { return board->cycles(); }
API uint64_t line_quiet(Ddr3Board* board) { return board->quiet(); }
