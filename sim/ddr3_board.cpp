// A board with DDR3, a serial port and Ethernet: the fabric up to DFI, the memory's PHY and its chip as a model, and the
// far ends of both lines. For ctypes: sim/ddr3_board.py.

#include <cstdint>
#include <string>

#include "Vddr3_board.h"
#include "clocked_board.h"
#include "ddr3_phy.h"
#include "network_part.h"

namespace {

constexpr unsigned PHY_REGISTERS = 64;  // index of the first one

class DfiPart {
public:
    DfiPart(int64_t period, const Ddr3Parameters& chip, const DfiLatency& latency, const Ddr3Lane* lanes,
            uint16_t* memory)
        : edges(period), phy_(chip, latency, lanes, memory) {}

    Edges edges;

    void clock(Vddr3_board& top, bool level) { top.dram_clk = level; }
    void reset(Vddr3_board& top, bool on) { top.dram_rst = on; }

    void edge(Vddr3_board& top) {
        if (top.dram_rst) return;
        const DfiPhase phases[DFI_PHASES] = {
            {{top.p0_cke != 0, top.p0_cs_n != 0, top.p0_ras_n != 0, top.p0_cas_n != 0, top.p0_we_n != 0, top.p0_bank,
              top.p0_address},
             top.p0_wrdata_en != 0, top.p0_rddata_en != 0, top.p0_wrdata, top.p0_wrdata_mask},
            {{top.p1_cke != 0, top.p1_cs_n != 0, top.p1_ras_n != 0, top.p1_cas_n != 0, top.p1_we_n != 0, top.p1_bank,
              top.p1_address},
             top.p1_wrdata_en != 0, top.p1_rddata_en != 0, top.p1_wrdata, top.p1_wrdata_mask},
        };
        if (top.busy) {
            ++busy_clocks_;
            busy_bursts_ += phases[0].rddata_en + phases[1].rddata_en;
        }
        phy_.clock(phases);
        found_ = 0;
        if (top.csr_adr >= PHY_REGISTERS) {
            found_ = phy_.access(top.csr_adr - PHY_REGISTERS, top.csr_we, top.csr_dat_w);
        }
    }

    void show(Vddr3_board& top) {
        top.p0_rddata = phy_.rddata(0);
        top.p1_rddata = phy_.rddata(1);
        top.p0_rddata_valid = top.p1_rddata_valid = phy_.rddata_valid();
        top.csr_dat_r = found_;
    }

    const std::string& violation() const { return phy_.violation(); }

    // Bursts that were read, and clocks of the controller, while the accelerator had commands.
    uint64_t busy_bursts() const { return busy_bursts_; }
    uint64_t busy_clocks() const { return busy_clocks_; }

private:
    Ddr3Phy phy_;
    uint64_t busy_clocks_ = 0, busy_bursts_ = 0;
    uint32_t found_ = 0;
};

// The clock of LiteEth's core, which has no pins.
struct CoreClock {
    Edges edges;

    void clock(Vddr3_board& top, bool level) { top.network_clk = level; }
    void reset(Vddr3_board& top, bool on) { top.network_rst = on; }
    void edge(Vddr3_board&) {}
    void show(Vddr3_board&) {}
};

using Network = NetworkPart<Vddr3_board>;

class Ddr3Board : public ClockedBoard<Vddr3_board, DfiPart, CoreClock, Network> {
public:
    using ClockedBoard::ClockedBoard;

    // As LineDevice::run_line, with the frames of NetworkPart.
    uint64_t run_network(uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received, uint64_t room) {
        part<Network>().send(sent, count);
        run(cycles);
        return part<Network>().take(received, room);
    }
};

Ddr3Board& board(LineDevice* device) { return *static_cast<Ddr3Board*>(device); }

}  // namespace

// `memory` belongs to the caller and outlives the board.
API LineDevice* ddr3_board_create(uint16_t* memory, const Ddr3Parameters* chip, const DfiLatency* latency,
                                  const Ddr3Lane* lanes, int64_t fabric, int64_t controller, int64_t network,
                                  int64_t ethernet, double bit_cycles) {
    return new Ddr3Board(fabric, bit_cycles, DfiPart(controller, *chip, *latency, lanes, memory),
                         CoreClock{Edges(network)}, Network(ethernet));
}
API uint64_t ddr3_board_busy_bursts(LineDevice* device) { return board(device).part<DfiPart>().busy_bursts(); }
API uint64_t ddr3_board_busy_clocks(LineDevice* device) { return board(device).part<DfiPart>().busy_clocks(); }
API uint64_t ddr3_board_network_quiet(LineDevice* device) { return board(device).part<Network>().quiet(); }
API uint64_t ddr3_board_network_run(LineDevice* device, uint64_t cycles, const uint8_t* sent, uint64_t count,
                                    uint8_t* received, uint64_t room) {
    return board(device).run_network(cycles, sent, count, received, room);
}
