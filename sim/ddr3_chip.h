// A DDR3 chip behind DFI. It holds data, and it checks its controller: commands, their distances, refresh, the
// initialisation, the mode registers and the turns of the data bus. The first rule that is broken is kept as a text.
//
// Time is the chip's clock: one call of `clock` is one rising edge. Data are whole bursts of eight transfers, without a
// place in time of their own: whoever calls brings them to and from DFI. What is not modelled is a violation, too:
// clock enable low after the initialisation, auto precharge, chopped bursts, bursts that begin within eight columns,
// additive latency, write levelling. The on-die termination is neither modelled nor checked.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Times in clocks. Mirrored by sim/ddr3_chip.py, field by field.
struct Ddr3Parameters {
    int64_t CL, CWL, tRCD, tRP, tRAS, tRC, tRRD, tFAW, tCCD, tRFC, tREFI, tWR, tWTR, tRTP, tRTW;
    int64_t tMRD, tMOD, tXPR, tZQinit, tZQCS, tDLLK;
    int64_t power_up;  // from the first clock to clock enable
    int64_t banks, rows, columns;
};

// What the controller drives, at a rising edge. Commands are true when 0.
struct Ddr3Pins {
    bool cke, cs_n, ras_n, cas_n, we_n;
    uint32_t ba, a;
};

// A burst that a command has begun: `place` is that of its first transfer in the memory.
struct Ddr3Burst {
    enum Kind { NONE, READ, WRITE } kind = NONE;
    std::size_t place = 0;
};

class Ddr3Chip {
public:
    static constexpr int TRANSFERS = 8;

    // In its memory the columns of a row are neighbours, then come the banks.
    explicit Ddr3Chip(const Ddr3Parameters& parameters);

    // One rising edge, and the burst that its command has begun.
    Ddr3Burst clock(const Ddr3Pins& pins);

    // The first rule that was broken, the command and the clocks; empty if none.
    const std::string& violation() const { return violation_; }

private:
    static constexpr int NO_BANK = -1;
    static constexpr int MODE_REGISTERS = 4;

    struct Event {
        int64_t clock;
        const char* what;
        int bank;
    };
    struct Bank {
        int64_t row;  // -1: closed
        Event activated, precharged, read, written;
    };

    Ddr3Burst command(const Ddr3Pins& pins);
    void set_mode(const Event& now, uint32_t number, uint32_t value);
    void calibrate(const Event& now, bool all);
    void refresh(const Event& now);
    void activate(const Event& now, int64_t row);
    void precharge(const Event& now, Bank& bank);
    Ddr3Burst column(const Event& now, const Ddr3Pins& pins, bool write);
    void require_idle(const Event& now);
    void require_initialised(const Event& now);

    void apart(const char* rule, const Event& now, const Event& earlier, int64_t clocks);
    void violate(const char* rule, const Event& now, const Event& earlier, const std::string& expected);

    Ddr3Parameters p_;
    int64_t now_;
    std::vector<Bank> banks_;
    Event power_up_, enabled_, last_mode_, dll_reset_, last_calibration_, last_refresh_, first_refresh_;
    Event last_activate_, last_read_, last_write_;
    std::vector<int64_t> activates_;  // the last four
    bool set_[MODE_REGISTERS];        // since power-up
    bool calibrated_;
    int64_t calibration_;  // clocks of the last one
    int64_t refreshes_;
    std::string violation_;
};
