#include "sdram_chip.h"

#include <algorithm>

namespace {

constexpr int64_t LONG_AGO = -(int64_t(1) << 60);
constexpr uint32_t A10 = 1 << 10;         // precharge of all banks; auto precharge
constexpr uint32_t MODE_RESERVED = ~0x77u;  // all but burst length and latency: sequential, bursts for writes, too
constexpr int64_t POSTPONED = 8;          // refreshes that may be late: the rows were refreshed so much earlier before

}  // namespace

SdramChip::SdramChip(const SdramParameters& parameters, uint16_t* memory)
    : p_(parameters), memory_(memory), banks_(parameters.banks), row_refreshed_(parameters.rows) {
    reset();
}

void SdramChip::reset() {
    const Event never{LONG_AGO, "", NO_BANK};
    now_ = 0;
    for (Bank& bank : banks_) bank = Bank{-1, never, never, never};
    last_activate_ = last_refresh_ = last_mode_ = write_ = shown_ = never;
    power_up_ = {0, "power-up", NO_BANK};
    precharged_ = driven_ = false;
    refreshes_ = latency_ = burst_ = write_column_ = write_left_ = 0;
    next_row_ = 0;
    mask_ = 0;
    dq_ = 0;
    beats_.clear();
    violation_.clear();
}

void SdramChip::clock(const SdramPins& pins) {
    ++now_;
    const Event now{now_, "a clock", NO_BANK};
    if (!pins.clk_en) violate("clk_en", now, power_up_, "clk_en high: power-down is not modelled");
    if (latency_ != 0 && now_ - row_refreshed_[next_row_] > p_.refresh_window) {
        violate("tREFI", now, last_refresh_, std::to_string(p_.rows) + " refreshes in " +
                std::to_string(p_.refresh_window) + " clocks, at most " + std::to_string(POSTPONED) + " of them late");
    }
    if (pins.dq_driven && now_ - shown_.cycle <= 1) {
        violate("data bus", {now_, "the controller's data", NO_BANK}, shown_, "a clock between the two");
    }
    command(pins);
    if (write_left_ > 0) write_beat(pins);
    show();
    mask_ = pins.dqm;
}

void SdramChip::command(const SdramPins& pins) {
    const int code = pins.ras_n << 2 | pins.cas_n << 1 | int(pins.we_n);
    if (pins.cs_n || code == 7) return;
    static const char* const NAMES[] = {"MODE", "REFRESH", "PRECHARGE", "ACTIVATE", "WRITE", "READ", "TERMINATE"};
    const bool all = code == 2 && (pins.a & A10);
    const Event now{now_, NAMES[code], code < 2 || all ? NO_BANK : int(pins.ba)};
    apart("initialisation", now, power_up_, p_.power_up);
    if (!precharged_ && !all) violate("initialisation", now, power_up_, "a precharge of all banks first");
    apart("tRFC", now, last_refresh_, p_.tRFC);
    apart("tMRD", now, last_mode_, p_.tMRD);
    switch (code) {
        case 0: set_mode(now, pins.a | pins.ba << 13); break;
        case 1: refresh(now); break;
        case 2:
            for (size_t bank = 0; bank < banks_.size(); ++bank) {
                if (all || bank == pins.ba) precharge({now_, now.what, int(bank)}, banks_[bank]);
            }
            precharged_ |= all;
            break;
        case 3: activate(now, pins.a); break;
        case 4: column(now, pins, true); break;
        case 5: column(now, pins, false); break;
        default: violate("command", now, power_up_, "no burst terminate: it is not modelled");
    }
}

void SdramChip::set_mode(const Event& now, uint32_t value) {
    require_idle(now);
    const int64_t length = int64_t(1) << (value & 7), latency = value >> 4 & 7;
    if ((value & MODE_RESERVED) || length > 8) {
        violate("mode register", now, power_up_, "sequential bursts of 1 to 8 for reads and writes");
    }
    if (latency < p_.CL || latency > 3) {
        violate("CL", now, power_up_, "a latency from " + std::to_string(p_.CL) + " to 3 at this clock");
    }
    burst_ = length;
    latency_ = latency;
    last_mode_ = now;
    // What came before is not known: the rows as if they had been refreshed in time, all equally apart.
    for (int64_t row = 0; row < p_.rows; ++row) {
        row_refreshed_[row] = now_ - p_.refresh_window + (row + 1 + POSTPONED) * p_.refresh_window / p_.rows;
    }
    next_row_ = 0;
}

void SdramChip::refresh(const Event& now) {
    require_idle(now);
    for (const Bank& bank : banks_) apart("tRC", now, bank.activated, p_.tRC);
    ++refreshes_;
    last_refresh_ = now;
    row_refreshed_[next_row_] = now_;
    next_row_ = (next_row_ + 1) % row_refreshed_.size();
}

void SdramChip::require_idle(const Event& now) {
    for (const Bank& bank : banks_) {
        if (bank.row >= 0) violate("open row", now, bank.activated, "all banks precharged");
        apart("tRP", now, bank.precharged, p_.tRP);
    }
}

void SdramChip::precharge(const Event& now, Bank& bank) {
    if (bank.row < 0) return;
    apart("tRAS", now, bank.activated, p_.tRAS);
    apart("tWR", now, bank.written, p_.tWR);
    bank.row = -1;
    bank.precharged = now;
    // It cuts a read off as late as a read would begin.
    beats_.erase(std::remove_if(beats_.begin(), beats_.end(), [&](const Beat& beat) {
        return beat.bank == now.bank && beat.edge >= now_ + latency_;
    }), beats_.end());
}

void SdramChip::activate(const Event& now, int64_t row) {
    Bank& bank = banks_[now.bank];
    if (latency_ == 0 || refreshes_ < p_.power_up_refreshes) {
        violate("initialisation", now, power_up_, "the mode register set and " + std::to_string(p_.power_up_refreshes) +
                " refreshes, got " + std::to_string(refreshes_));
    }
    if (row >= p_.rows) violate("row", now, power_up_, "a row below " + std::to_string(p_.rows));
    if (bank.row >= 0) violate("open row", now, bank.activated, "a precharge between them");
    apart("tRP", now, bank.precharged, p_.tRP);
    apart("tRC", now, bank.activated, p_.tRC);
    if (last_activate_.bank != now.bank) apart("tRRD", now, last_activate_, p_.tRRD);
    bank.row = row % p_.rows;
    bank.activated = last_activate_ = now;
}

void SdramChip::column(const Event& now, const SdramPins& pins, bool write) {
    Bank& bank = banks_[now.bank];
    const int64_t column = pins.a & (A10 - 1);
    if (bank.row < 0) {
        violate("closed row", now, bank.precharged, "an activate first");
        return;
    }
    apart("tRCD", now, bank.activated, p_.tRCD);
    if (pins.a & A10) violate("command", now, bank.activated, "no auto precharge: it is not modelled");
    if (column >= p_.columns) violate("column", now, bank.activated, "a column below " + std::to_string(p_.columns));
    write_left_ = 0;
    if (write) {
        write_ = now;
        write_column_ = column % p_.columns;
        write_left_ = burst_;
        bank.written = {now_ + burst_ - 1, "last word of WRITE", now.bank};
        return;
    }
    // A read takes the place of what is left of the one before.
    beats_.erase(std::remove_if(beats_.begin(), beats_.end(), [&](const Beat& beat) {
        return beat.edge >= now_ + latency_;
    }), beats_.end());
    for (int64_t beat = 0; beat < burst_; ++beat) {
        const int64_t wrapped = (column & ~(burst_ - 1)) | ((column + beat) & (burst_ - 1));
        beats_.push_back({now_ + latency_ + beat, now.bank, memory_[place(now.bank, wrapped % p_.columns)]});
    }
}

void SdramChip::write_beat(const SdramPins& pins) {
    const int64_t beat = burst_ - write_left_--;
    const int64_t column = (write_column_ & ~(burst_ - 1)) | ((write_column_ + beat) & (burst_ - 1));
    if (!pins.dq_driven && pins.dqm != 3) {
        violate("data bus", {now_, "a word of WRITE", write_.bank}, write_, "the controller to drive or mask it");
    }
    uint16_t& word = memory_[place(write_.bank, column)];
    const uint16_t mask = (pins.dqm & 1 ? 0x00FF : 0) | (pins.dqm & 2 ? 0xFF00 : 0);
    word = (word & mask) | (pins.dq & ~mask);
}

void SdramChip::show() {
    driven_ = false;
    if (beats_.empty() || beats_.front().edge != now_ + 1) return;
    const Beat beat = beats_.front();
    beats_.erase(beats_.begin());
    if (mask_ == 3) return;  // the masks of a read count two edges later
    driven_ = true;
    dq_ = beat.data | (mask_ & 1 ? 0x00FF : 0) | (mask_ & 2 ? 0xFF00 : 0);
    shown_ = {beat.edge, "the chip's data", beat.bank};
}

std::size_t SdramChip::place(int bank, int64_t column) const {
    return (banks_[bank].row * banks_.size() + bank) * p_.columns + column;
}

void SdramChip::apart(const char* rule, const Event& now, const Event& earlier, int64_t clocks) {
    const int64_t got = now.cycle - earlier.cycle;
    if (got >= clocks) return;
    const std::string least = std::to_string(clocks);
    violate(rule, now, earlier, "at least " + least + " clocks between them, got " + std::to_string(got));
}

void SdramChip::violate(const char* rule, const Event& now, const Event& earlier, const std::string& expected) {
    if (!violation_.empty()) return;
    const auto text = [](const Event& event) {
        if (event.cycle == LONG_AGO) return std::string("none before");
        return event.what + (event.bank == NO_BANK ? "" : " of bank " + std::to_string(event.bank)) + " in cycle " +
               std::to_string(event.cycle);
    };
    violation_ = std::string(rule) + ": " + text(now) + ", " + text(earlier) + ": expected " + expected;
}

// For ctypes: sim/sdram_chip.py. The word that the chip shows is -1 if it shows none.
extern "C" {
SdramChip* sdram_create(const SdramParameters* parameters, uint16_t* memory) {
    return new SdramChip(*parameters, memory);
}
void sdram_destroy(SdramChip* chip) { delete chip; }
void sdram_reset(SdramChip* chip) { chip->reset(); }
int32_t sdram_clock(SdramChip* chip, uint32_t clk_en, uint32_t cs_n, uint32_t ras_n, uint32_t cas_n, uint32_t we_n,
                    uint32_t ba, uint32_t a, uint32_t dqm, int32_t dq) {
    chip->clock({clk_en != 0, cs_n != 0, ras_n != 0, cas_n != 0, we_n != 0, ba, a, dqm, dq >= 0, uint16_t(dq)});
    return chip->driven() ? chip->dq() : -1;
}
const char* sdram_violation(const SdramChip* chip) { return chip->violation().c_str(); }
}
