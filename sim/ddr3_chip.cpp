#include "ddr3_chip.h"

#include <algorithm>

namespace {

constexpr int64_t LONG_AGO = -(int64_t(1) << 60);
constexpr uint32_t A10 = 1 << 10;     // all banks; auto precharge; a long calibration
constexpr int64_t POSTPONED = 8;      // refreshes that may be late
constexpr int64_t BURST_CLOCKS = 4;   // of eight transfers
constexpr uint32_t DLL_RESET = 1 << 8;

// Mode register 0: burst length, order and test mode; its latency in bits 6 to 4 and 2, from 5 to 11 clocks.
constexpr uint32_t MR0_FIXED = 0x008B;
int64_t read_latency(uint32_t mr0) { return (mr0 >> 4 & 7) + 4 + (mr0 & 4 ? 7 : 0); }

// Mode register 1: DLL off, additive latency, write levelling, outputs off.
constexpr uint32_t MR1_FIXED = 1 | 3 << 3 | 1 << 7 | 1 << 12;

// Mode register 2: write latency in bits 5 to 3, from 5 clocks.
int64_t write_latency(uint32_t mr2) { return (mr2 >> 3 & 7) + 5; }

}  // namespace

Ddr3Chip::Ddr3Chip(const Ddr3Parameters& parameters) : p_(parameters), banks_(parameters.banks) {
    const Event never{LONG_AGO, "", NO_BANK};
    now_ = 0;
    for (Bank& bank : banks_) bank = Bank{-1, never, never, never, never};
    power_up_ = {0, "power-up", NO_BANK};
    enabled_ = last_mode_ = dll_reset_ = last_calibration_ = last_refresh_ = first_refresh_ = never;
    last_activate_ = last_read_ = last_write_ = never;
    activates_.assign(4, LONG_AGO);
    std::fill(std::begin(set_), std::end(set_), false);
    calibrated_ = false;
    calibration_ = refreshes_ = 0;
}

Ddr3Burst Ddr3Chip::clock(const Ddr3Pins& pins) {
    ++now_;
    if (!pins.cke) {
        if (enabled_.clock != LONG_AGO) {
            violate("CKE", {now_, "CKE low", NO_BANK}, enabled_, "it high: power-down is not modelled");
        }
        return {};
    }
    if (enabled_.clock == LONG_AGO) {
        enabled_ = {now_, "CKE", NO_BANK};
        apart("power-up", enabled_, power_up_, p_.power_up);
    }
    const int64_t since = now_ - first_refresh_.clock;
    if (refreshes_ > 0 && refreshes_ + POSTPONED < since / p_.tREFI) {
        violate("tREFI", {now_, "a clock", NO_BANK}, last_refresh_,
                "at most " + std::to_string(POSTPONED) + " refreshes late");
    }
    return command(pins);
}

Ddr3Burst Ddr3Chip::command(const Ddr3Pins& pins) {
    const int code = pins.ras_n << 2 | pins.cas_n << 1 | int(pins.we_n);
    if (pins.cs_n || code == 7) return {};
    static const char* const NAMES[] = {"MODE", "REFRESH", "PRECHARGE", "ACTIVATE", "WRITE", "READ", "ZQ"};
    const bool all = (code == 2 || code == 6) && (pins.a & A10);
    const Event now{now_, NAMES[code], code < 2 || code == 6 || all ? NO_BANK : int(pins.ba)};
    apart("tXPR", now, enabled_, p_.tXPR);
    apart("tRFC", now, last_refresh_, p_.tRFC);
    apart("tMRD", now, last_mode_, p_.tMRD);
    if (code != 0) apart("tMOD", now, last_mode_, p_.tMOD);
    apart("tZQ", now, last_calibration_, calibration_);
    switch (code) {
        case 0: set_mode(now, pins.ba, pins.a); break;
        case 1: refresh(now); break;
        case 2:
            for (std::size_t bank = 0; bank < banks_.size(); ++bank) {
                if (all || bank == pins.ba) precharge({now_, now.what, int(bank)}, banks_[bank]);
            }
            break;
        case 3: activate(now, pins.a); break;
        case 4: return column(now, pins, true);
        case 5: return column(now, pins, false);
        default: calibrate(now, all);
    }
    return {};
}

void Ddr3Chip::set_mode(const Event& now, uint32_t number, uint32_t value) {
    require_idle(now);
    if (number == 0 && ((value & MR0_FIXED) || read_latency(value) != p_.CL)) {
        violate("mode register 0", now, last_mode_, "bursts of eight in order, and a latency of " + std::to_string(p_.CL));
    }
    if (number == 1 && (value & MR1_FIXED)) {
        violate("mode register 1", now, last_mode_, "DLL and outputs on, no additive latency, no write levelling");
    }
    if (number == 2 && write_latency(value) != p_.CWL) {
        violate("mode register 2", now, last_mode_, "a latency of " + std::to_string(p_.CWL));
    }
    if (number == 3 && value != 0) violate("mode register 3", now, last_mode_, "0");
    if (number == 0 && (value & DLL_RESET)) dll_reset_ = now;
    set_[number % MODE_REGISTERS] = true;
    last_mode_ = now;
}

void Ddr3Chip::calibrate(const Event& now, bool all) {
    require_idle(now);
    if (!all && !calibrated_) violate("ZQ", now, power_up_, "a long calibration first");
    calibrated_ = true;
    calibration_ = all ? p_.tZQinit : p_.tZQCS;
    last_calibration_ = now;
}

void Ddr3Chip::refresh(const Event& now) {
    require_initialised(now);
    require_idle(now);
    for (const Bank& bank : banks_) apart("tRC", now, bank.activated, p_.tRC);
    if (refreshes_++ == 0) first_refresh_ = now;
    last_refresh_ = now;
}

void Ddr3Chip::activate(const Event& now, int64_t row) {
    Bank& bank = banks_[now.bank];
    require_initialised(now);
    if (row >= p_.rows) violate("row", now, power_up_, "a row below " + std::to_string(p_.rows));
    if (bank.row >= 0) violate("open row", now, bank.activated, "a precharge between them");
    apart("tRP", now, bank.precharged, p_.tRP);
    apart("tRC", now, bank.activated, p_.tRC);
    apart("tRRD", now, last_activate_, p_.tRRD);
    apart("tFAW", now, {activates_.front(), "the fourth ACTIVATE before", NO_BANK}, p_.tFAW);
    activates_.erase(activates_.begin());
    activates_.push_back(now_);
    bank.row = row % p_.rows;
    bank.activated = last_activate_ = now;
}

void Ddr3Chip::precharge(const Event& now, Bank& bank) {
    if (bank.row < 0) return;
    apart("tRAS", now, bank.activated, p_.tRAS);
    apart("tRTP", now, bank.read, p_.tRTP);
    apart("tWR", now, bank.written, p_.CWL + BURST_CLOCKS + p_.tWR);
    bank.row = -1;
    bank.precharged = now;
}

Ddr3Burst Ddr3Chip::column(const Event& now, const Ddr3Pins& pins, bool write) {
    Bank& bank = banks_[now.bank];
    const int64_t column = pins.a & (A10 - 1);
    if (bank.row < 0) {
        violate("closed row", now, bank.precharged, "an activate first");
        return {};
    }
    apart("tRCD", now, bank.activated, p_.tRCD);
    apart("tDLLK", now, dll_reset_, p_.tDLLK);
    if (pins.a & A10) violate("command", now, bank.activated, "no auto precharge: it is not modelled");
    if (column % TRANSFERS) violate("column", now, bank.activated, "the first of eight columns");
    if (column >= p_.columns) violate("column", now, bank.activated, "a column below " + std::to_string(p_.columns));
    if (write) {
        apart("tCCD", now, last_write_, p_.tCCD);
        apart("tRTW", now, last_read_, p_.CL + BURST_CLOCKS + p_.tRTW - p_.CWL);
        bank.written = last_write_ = now;
    } else {
        apart("tCCD", now, last_read_, p_.tCCD);
        apart("tWTR", now, last_write_, p_.CWL + BURST_CLOCKS + p_.tWTR);
        bank.read = last_read_ = now;
    }
    const std::size_t row = bank.row * banks_.size() + now.bank;
    return {write ? Ddr3Burst::WRITE : Ddr3Burst::READ, row * p_.columns + column % p_.columns};
}

void Ddr3Chip::require_idle(const Event& now) {
    for (const Bank& bank : banks_) {
        if (bank.row >= 0) violate("open row", now, bank.activated, "all banks precharged");
        apart("tRP", now, bank.precharged, p_.tRP);
    }
}

void Ddr3Chip::require_initialised(const Event& now) {
    const bool modes = std::all_of(std::begin(set_), std::end(set_), [](bool set) { return set; });
    if (!modes || !calibrated_) violate("initialisation", now, power_up_, "all mode registers set and a calibration");
}

void Ddr3Chip::apart(const char* rule, const Event& now, const Event& earlier, int64_t clocks) {
    const int64_t got = now.clock - earlier.clock;
    if (got >= clocks) return;
    const std::string least = std::to_string(clocks);
    violate(rule, now, earlier, "at least " + least + " clocks between them, got " + std::to_string(got));
}

void Ddr3Chip::violate(const char* rule, const Event& now, const Event& earlier, const std::string& expected) {
    if (!violation_.empty()) return;
    const auto text = [](const Event& event) {
        if (event.clock == LONG_AGO) return std::string("none before");
        return event.what + (event.bank == NO_BANK ? "" : " of bank " + std::to_string(event.bank)) + " in clock " +
               std::to_string(event.clock);
    };
    violation_ = std::string(rule) + ": " + text(now) + ", " + text(earlier) + ": expected " + expected;
}

// For ctypes: sim/ddr3_chip.py. The place of the burst that a command has begun is -1 if there is none, and has one
// more bit, the lowest, which says whether it is a write.
extern "C" {
Ddr3Chip* ddr3_create(const Ddr3Parameters* parameters) { return new Ddr3Chip(*parameters); }
void ddr3_destroy(Ddr3Chip* chip) { delete chip; }
int64_t ddr3_clock(Ddr3Chip* chip, uint32_t cke, uint32_t cs_n, uint32_t ras_n, uint32_t cas_n, uint32_t we_n,
                   uint32_t ba, uint32_t a) {
    const Ddr3Burst burst = chip->clock({cke != 0, cs_n != 0, ras_n != 0, cas_n != 0, we_n != 0, ba, a});
    if (burst.kind == Ddr3Burst::NONE) return -1;
    return int64_t(burst.place) << 1 | (burst.kind == Ddr3Burst::WRITE);
}
const char* ddr3_violation(const Ddr3Chip* chip) { return chip->violation().c_str(); }
}
