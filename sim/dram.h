// Timing of a DRAM: when the data of an access is there. It holds no data.
//
// Channels share nothing. Each has banks with one open row, in bank groups, an open-page policy and a data bus. Accesses
// are served in the order in which they come; what an access needs is put on the timeline at once, so a bank is
// precharged and activated while the data of earlier accesses still moves. Address map of a channel: row, bank of a
// group, column, bank group, from the top. So neighbouring bursts lie in different groups (tCCD_L is longer than a
// burst), and the next row of a sequential stream in another bank. Refresh is of all banks, each tREFI.
//
// Not modelled: the command bus, reordering by the controller, postponed and per-bank refresh.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

// Femtoseconds, so that clocks of any ratio meet without drift: 2^63 fs are 2.5 hours of the board's time.
using Time = int64_t;

// Mirrored by sim/dram.py, field by field.
struct DramParameters {
    Time cycle;  // of the fabric clock
    Time burst;  // one DRAM burst on the data pins
    Time controller;
    Time CL, CWL, tRCD, tRP, tRAS, tRC, tRRD_S, tRRD_L, tFAW, tCCD_S, tCCD_L, tRFC, tREFI, tWR, tWTR_S, tWTR_L, tRTP,
        tRTW;
    int64_t burst_bytes, row_bytes, banks, bank_groups, channels;
    int64_t interleave;  // bytes after which the next channel has its turn
};

class Dram {
public:
    static constexpr int ALL = -1;  // addresses of the whole memory, over all channels

    explicit Dram(const DramParameters& parameters);

    // Closes all rows and forgets what is in flight. `cycle` is the fabric cycle from which refreshes count.
    void reset(uint64_t cycle);

    // Reads `words` bus words of `word_bytes`, asked for in fabric cycle `now`;
    // `arrival[i]` becomes the first cycle in which word i is at the fabric. `channel` says whose addresses they are.
    void read(uint64_t address, uint32_t words, uint32_t word_bytes, uint64_t now, uint64_t* arrival, int channel = ALL);

    // Writes `bytes` that are at the controller in cycle `now`. Returns the cycle in which all are in the memory.
    uint64_t write(uint64_t address, uint64_t bytes, uint64_t now);

    // Where in the whole memory the byte at `address` of a channel lies.
    uint64_t whole(uint64_t address, int channel) const;

private:
    struct Place {
        std::size_t channel;
        uint64_t address;
    };
    struct Bank {
        int64_t row = -1;     // -1: closed
        Time activated = 0;   // last activate
        Time precharge = 0;   // earliest next precharge; while closed: when the last one was due
    };
    struct Recent {  // the last ones of a channel or of a bank group
        Time activate, command, written;
    };
    struct Channel {
        std::vector<Bank> banks;
        std::vector<Recent> groups;
        Recent any;
        std::array<Time, 4> activates;  // the last four, for tFAW
        unsigned oldest = 0;
        Time bus_free = 0;
        bool wrote = false;  // direction of the last transfer
        Time blocked = 0;    // no activate before this: refresh
        Time refresh_due = 0;
    };
    struct Plan {
        Time activate;  // of a new row
        Time data;      // first transfer on the pins
        Time command;   // read or write command
    };

    Place place(uint64_t address) const;
    Time transfer(Place place, bool write, Time now);
    Plan plan(const Channel& channel, const Recent& group, const Bank& bank, int64_t row, bool write, Time now) const;
    void refresh(Channel& channel);
    uint64_t to_cycle(Time time) const { return (time + p_.cycle - 1) / p_.cycle; }

    DramParameters p_;
    std::vector<Channel> channels_;
};
