// LiteDRAM's PHY for the ECP5 with a DDR3 chip behind it, as its controller sees both: DFI, and the PHY's registers.
//
// The PHY's primitives have no models. So what is here is its contract, not its circuit: after how many clocks data
// come and go, and that reads are right only where read levelling has found each byte lane's delay and bit slip.

#pragma once

#include <cstdint>
#include <deque>
#include <random>
#include <string>

#include "ddr3_chip.h"

constexpr int DFI_PHASES = 2;
constexpr int DDR3_LANES = 2;

// Clocks of the controller from a command to its data. Mirrored by sim/ddr3_chip.py.
struct DfiLatency {
    int64_t read, write;
};

// Settings of a byte lane with which it reads what the chip sends: one bit slip, and delays from `first` to `last`.
struct Ddr3Lane {
    int64_t bitslip, first, last;
};

struct DfiPhase {
    Ddr3Pins pins;
    bool wrdata_en, rddata_en;
    uint64_t wrdata;  // transfer after transfer, the first one lowest; each has its two lanes
    uint8_t wrdata_mask;
};

class Ddr3Phy {
public:
    // `memory` belongs to the caller: banks * rows * columns transfers.
    Ddr3Phy(const Ddr3Parameters& chip, const DfiLatency& latency, const Ddr3Lane* lanes, uint16_t* memory)
        : chip_(chip), latency_(latency), lanes_{{lanes[0]}, {lanes[1]}}, memory_(memory) {}

    // A clock of the controller: what it has sent, and afterwards what it takes next.
    void clock(const DfiPhase (&phases)[DFI_PHASES]) {
        ++now_;
        for (const DfiPhase& phase : phases) {
            const Ddr3Burst burst = chip_.clock(phase.pins);
            if ((burst.kind == Ddr3Burst::READ) != phase.rddata_en) violate("rddata_en: expected it with each READ");
            if ((burst.kind == Ddr3Burst::WRITE) != phase.wrdata_en) violate("wrdata_en: expected it with each WRITE");
            if (burst.kind == Ddr3Burst::READ) reads_.push_back({now_ + latency_.read - 1, burst.place});
            if (burst.kind == Ddr3Burst::WRITE) writes_.push_back({now_ + latency_.write, burst.place});
        }
        if (!writes_.empty() && writes_.front().clock == now_) {
            write(phases, writes_.front().place);
            writes_.pop_front();
        }
        valid_ = !reads_.empty() && reads_.front().clock == now_;
        if (valid_) {
            read(reads_.front().place);
            reads_.pop_front();
        } else {
            for (uint64_t& data : data_) data = uint64_t(random_()) << 32 | random_();
        }
    }

    bool rddata_valid() const { return valid_; }
    uint64_t rddata(int phase) const { return data_[phase]; }

    // An access to the register `index`; what is read in the next clock.
    uint32_t access(unsigned index, bool write, uint32_t value) {
        enum { DLY_SEL, RDLY_RST, RDLY_INC, BITSLIP_RST, BITSLIP, BURSTDET_CLR, BURSTDET_SEEN };
        if (write && index == DLY_SEL) selected_ = value & 3;
        for (int number = 0; write && number < DDR3_LANES; ++number) {
            Lane& lane = lanes_[number];
            if (index == BURSTDET_CLR) lane.seen = false;
            if (!(selected_ >> number & 1)) continue;
            if (index == RDLY_RST) lane.delay = 0;
            if (index == RDLY_INC) lane.delay = (lane.delay + 1) % 8;
            if (index == BITSLIP_RST) lane.bitslip = 0;
            if (index == BITSLIP) lane.bitslip = (lane.bitslip + 1) % 4;
        }
        if (index == DLY_SEL) return selected_;
        return index == BURSTDET_SEEN ? uint32_t(lanes_[0].seen) | uint32_t(lanes_[1].seen) << 1 : 0;
    }

    const std::string& violation() const { return violation_.empty() ? chip_.violation() : violation_; }

private:
    struct Lane {
        Ddr3Lane right;
        int64_t bitslip = 0, delay = 0;
        bool seen = false;
    };
    struct Data {
        int64_t clock;
        std::size_t place;
    };

    static constexpr int PER_PHASE = Ddr3Chip::TRANSFERS / DFI_PHASES;

    void write(const DfiPhase (&phases)[DFI_PHASES], std::size_t place) {
        auto* bytes = reinterpret_cast<uint8_t*>(memory_ + place);
        for (int byte = 0; byte < Ddr3Chip::TRANSFERS * DDR3_LANES; ++byte) {
            const DfiPhase& phase = phases[byte / (PER_PHASE * DDR3_LANES)];
            const int index = byte % (PER_PHASE * DDR3_LANES);
            if (!(phase.wrdata_mask >> index & 1)) bytes[byte] = uint8_t(phase.wrdata >> 8 * index);
        }
    }

    // A lane whose settings are wrong shows the transfers of another time, or of none.
    void read(std::size_t place) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(memory_ + place);
        data_[0] = data_[1] = 0;
        for (int number = 0; number < DDR3_LANES; ++number) {
            Lane& lane = lanes_[number];
            const bool strobed = lane.delay >= lane.right.first && lane.delay <= lane.right.last && selected_ == 0;
            lane.seen |= strobed;
            for (int transfer = 0; transfer < Ddr3Chip::TRANSFERS; ++transfer) {
                const int64_t source = transfer + lane.bitslip - lane.right.bitslip;
                const bool shown = strobed && source >= 0 && source < Ddr3Chip::TRANSFERS;
                const uint64_t value = shown ? bytes[source * DDR3_LANES + number] : uint8_t(random_());
                data_[transfer / PER_PHASE] |= value << 8 * (transfer % PER_PHASE * DDR3_LANES + number);
            }
        }
    }

    void violate(const char* text) {
        if (violation_.empty()) violation_ = text;
    }

    Ddr3Chip chip_;
    DfiLatency latency_;
    Lane lanes_[DDR3_LANES];
    uint16_t* memory_;
    std::minstd_rand random_;
    int64_t now_ = 0;
    uint32_t selected_ = 0;
    std::deque<Data> reads_, writes_;
    bool valid_ = false;
    uint64_t data_[DFI_PHASES] = {};
    std::string violation_;
};
