// A board with an SDRAM and a serial port at its pins: the fabric, the chip and the far end of the line. For ctypes:
// sim/serial_board.py.

#include <cstdint>
#include <random>
#include <string>

#include "Vserial_board.h"
#include "clocked_board.h"
#include "sdram_chip.h"

namespace {

class SdramPart {
public:
    SdramPart(int64_t period, const SdramParameters& parameters, uint16_t* memory)
        : edges(period), chip_(parameters, memory) {}

    Edges edges;

    void clock(Vserial_board& top, bool level) { top.sdram_clk = level; }
    void reset(Vserial_board& top, bool on) { top.sdram_rst = on; }

    // The chip's edge is that of its controller: it sees what the controller sent an edge ago, and what it showed
    // after its last edge is what the controller takes now.
    void edge(Vserial_board& top) {
        top.dq_i = chip_.driven() ? chip_.dq() : uint16_t(random_());  // nobody drives the pins: they may be anything
        if (top.sdram_rst) return;
        chip_.clock({top.clk_en != 0, top.cs != 0, top.ras != 0, top.cas != 0, top.we != 0, top.ba, top.a, top.dqm,
                     top.dq_oe != 0, uint16_t(top.dq_o)});
    }

    void show(Vserial_board&) {}
    const std::string& violation() const { return chip_.violation(); }

private:
    SdramChip chip_;
    std::minstd_rand random_;
};

}  // namespace

// `memory` belongs to the caller and outlives the board.
API LineDevice* serial_board_create(uint16_t* memory, const SdramParameters* parameters, int64_t fabric, int64_t sdram,
                                    double bit_cycles) {
    return new ClockedBoard<Vserial_board, SdramPart>(fabric, bit_cycles, SdramPart(sdram, *parameters, memory));
}
