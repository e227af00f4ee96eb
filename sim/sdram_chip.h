// An SDR SDRAM of 16 bits at its pins. It holds data, and it checks its controller: commands, their distances, refresh,
// the initialisation, the mode register and the data bus. The first rule that is broken is kept as a text.
//
// Time is the chip's clock: one call of `clock` is one rising edge. What is not modelled is a violation, too: clock
// enable low, auto precharge, burst terminate, bursts of a page, interleaved bursts and single writes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Times in clocks. Mirrored by sim/sdram_chip.py, field by field.
struct SdramParameters {
    int64_t CL, tRCD, tRP, tRAS, tRC, tRRD, tWR, tRFC, tMRD;
    int64_t power_up;            // from the first clock to the first command
    int64_t power_up_refreshes;  // before the first activate
    int64_t refresh_window;      // in which each row has to be refreshed
    int64_t banks, rows, columns;
};

// What the controller drives, at a rising edge. Commands are true when 0.
struct SdramPins {
    bool clk_en, cs_n, ras_n, cas_n, we_n;
    uint32_t ba, a, dqm;
    bool dq_driven;
    uint16_t dq;
};

class SdramChip {
public:
    // `memory` has banks * rows * columns words; the columns of a row are neighbours, then come the banks.
    SdramChip(const SdramParameters& parameters, uint16_t* memory);

    // Power is switched on again. The memory keeps what it holds.
    void reset();

    // One rising edge. Afterwards `driven` and `dq` are what the chip shows until the next one.
    void clock(const SdramPins& pins);

    bool driven() const { return driven_; }
    uint16_t dq() const { return dq_; }

    // The first rule that was broken since reset, the command and the cycles; empty if none.
    const std::string& violation() const { return violation_; }

private:
    static constexpr int NO_BANK = -1;

    struct Event {
        int64_t cycle;
        const char* what;
        int bank;
    };
    struct Bank {
        int64_t row;  // -1: closed
        Event activated, precharged, written;
    };
    struct Beat {  // of a read, on its way to the pins
        int64_t edge;  // at which the controller can take it
        int bank;
        uint16_t data;
    };

    void command(const SdramPins& pins);
    void activate(const Event& now, int64_t row);
    void column(const Event& now, const SdramPins& pins, bool write);
    void precharge(const Event& now, Bank& bank);
    void refresh(const Event& now);
    void set_mode(const Event& now, uint32_t value);
    void require_idle(const Event& now);
    void write_beat(const SdramPins& pins);
    void show();

    void apart(const char* rule, const Event& now, const Event& earlier, int64_t clocks);
    void violate(const char* rule, const Event& now, const Event& earlier, const std::string& expected);
    std::size_t place(int bank, int64_t column) const;

    SdramParameters p_;
    uint16_t* memory_;
    int64_t now_;
    std::vector<Bank> banks_;
    Event power_up_, last_activate_, last_refresh_, last_mode_;
    bool precharged_;  // all banks, once since power-up
    int64_t refreshes_;
    int64_t latency_, burst_;              // of the mode register; 0 until it is set
    std::vector<int64_t> row_refreshed_;   // when; the chip counts the rows itself
    std::size_t next_row_;

    std::vector<Beat> beats_;
    Event write_;  // under way
    int64_t write_column_, write_left_;
    uint32_t mask_;  // at the edge before
    bool driven_;
    uint16_t dq_;
    Event shown_;  // the last word that the chip drove, and the edge at which it could be taken
    std::string violation_;
};
