#include "dram.h"

#include <algorithm>

namespace {

constexpr Time LONG_AGO = -(Time(1) << 60);

}  // namespace

Dram::Dram(const DramParameters& parameters) : p_(parameters), channels_(parameters.channels) {
    reset(0);
}

void Dram::reset(uint64_t cycle) {
    const Time now = Time(cycle) * p_.cycle;
    for (Channel& channel : channels_) {
        channel = Channel();
        channel.banks.assign(p_.banks, Bank{-1, LONG_AGO, now - p_.tRP});
        channel.any = Recent{LONG_AGO, LONG_AGO, LONG_AGO};
        channel.groups.assign(p_.bank_groups, channel.any);
        channel.activates.fill(LONG_AGO);
        channel.bus_free = channel.blocked = now;
        channel.refresh_due = now + p_.tREFI;
    }
}

Dram::Plan Dram::plan(const Channel& channel, const Recent& group, const Bank& bank, int64_t row, bool write,
                      Time now) const {
    Plan plan{LONG_AGO, 0, 0};
    Time row_open = bank.activated + p_.tRCD;
    if (bank.row != row) {
        const Time precharge = bank.row < 0 ? bank.precharge : std::max(now, bank.precharge);
        plan.activate = std::max({now, channel.blocked, precharge + p_.tRP, bank.activated + p_.tRC,
                                  channel.any.activate + p_.tRRD_S, group.activate + p_.tRRD_L,
                                  channel.activates[channel.oldest] + p_.tFAW});
        row_open = plan.activate + p_.tRCD;
    }
    const Time latency = write ? p_.CWL : p_.CL;
    Time command = std::max({now, row_open, channel.any.command + p_.tCCD_S, group.command + p_.tCCD_L});
    if (!write) command = std::max({command, channel.any.written + p_.tWTR_S, group.written + p_.tWTR_L});
    const Time turnaround = write && !channel.wrote ? p_.tRTW : 0;
    plan.data = std::max(command + latency, channel.bus_free + turnaround);
    plan.command = plan.data - latency;
    return plan;
}

// All banks are precharged, then the channel rests for tRFC.
void Dram::refresh(Channel& channel) {
    Time start = std::max(channel.refresh_due, channel.blocked);
    for (const Bank& bank : channel.banks) {
        const Time precharge = bank.row < 0 ? bank.precharge : std::max(bank.precharge, channel.refresh_due);
        start = std::max(start, precharge + p_.tRP);
    }
    for (Bank& bank : channel.banks) {
        bank.row = -1;
        bank.precharge = start - p_.tRP;
    }
    channel.blocked = start + p_.tRFC;
    channel.refresh_due += p_.tREFI;
}

Dram::Place Dram::place(uint64_t address) const {
    const uint64_t piece = address / p_.interleave;
    return {piece % channels_.size(), piece / channels_.size() * p_.interleave + address % p_.interleave};
}

uint64_t Dram::whole(uint64_t address, int channel) const {
    if (channel == ALL) return address;
    return (address / p_.interleave * channels_.size() + channel) * p_.interleave + address % p_.interleave;
}

// One DRAM burst. Returns when its first byte is on the pins.
Time Dram::transfer(Place place, bool write, Time now) {
    Channel& channel = channels_[place.channel];
    const uint64_t burst = place.address / p_.burst_bytes;
    const uint64_t page = burst / p_.bank_groups * p_.burst_bytes / p_.row_bytes;
    const uint64_t group_banks = p_.banks / p_.bank_groups;
    const uint64_t number = burst % p_.bank_groups;
    Recent& group = channel.groups[number];
    Bank& bank = channel.banks[number * group_banks + page % group_banks];
    const int64_t row = page / group_banks;

    Plan next = plan(channel, group, bank, row, write, now);
    while (next.command >= channel.refresh_due) {
        refresh(channel);
        next = plan(channel, group, bank, row, write, now);
    }
    if (bank.row != row) {
        bank.row = row;
        bank.activated = channel.any.activate = group.activate = next.activate;
        bank.precharge = next.activate + p_.tRAS;
        channel.activates[channel.oldest] = next.activate;
        channel.oldest = (channel.oldest + 1) % 4;
    }
    channel.any.command = group.command = next.command;
    channel.bus_free = next.data + p_.burst;
    channel.wrote = write;
    if (write) channel.any.written = group.written = channel.bus_free;
    const Time precharge = write ? channel.bus_free + p_.tWR : next.command + std::max(p_.burst, p_.tRTP);
    bank.precharge = std::max(bank.precharge, precharge);
    return next.data;
}

void Dram::read(uint64_t address, uint32_t words, uint32_t word_bytes, uint64_t now, uint64_t* arrival, int channel) {
    const uint64_t bytes = p_.burst_bytes;
    const Time asked = Time(now) * p_.cycle;
    uint64_t burst = address - address % bytes;  // the DRAM burst after the last one that was read
    Time start = 0;
    Time latest = 0;
    for (uint32_t word = 0; word < words; ++word) {
        const uint64_t end = address + uint64_t(word + 1) * word_bytes;
        while (burst < end) {
            start = transfer(channel == ALL ? place(burst) : Place{size_t(channel), burst}, false, asked);
            burst += bytes;
        }
        const Time part = p_.burst * Time(end - (burst - bytes)) / Time(bytes);
        latest = std::max(latest, start + part);  // channels may overtake each other, words may not
        arrival[word] = to_cycle(latest + p_.controller);
    }
}

uint64_t Dram::write(uint64_t address, uint64_t bytes, uint64_t now) {
    const Time asked = Time(now) * p_.cycle;
    Time latest = 0;
    for (uint64_t burst = address - address % p_.burst_bytes; burst < address + bytes; burst += p_.burst_bytes) {
        latest = std::max(latest, transfer(place(burst), true, asked) + p_.burst);
    }
    return to_cycle(latest + p_.controller);
}

// For ctypes: sim/dram.py.
extern "C" {
Dram* dram_create(const DramParameters* parameters) { return new Dram(*parameters); }
void dram_destroy(Dram* dram) { delete dram; }
void dram_reset(Dram* dram, uint64_t cycle) { dram->reset(cycle); }
void dram_read(Dram* dram, uint64_t address, uint32_t words, uint32_t word_bytes, uint64_t now, uint64_t* arrival) {
    dram->read(address, words, word_bytes, now, arrival);
}
uint64_t dram_write(Dram* dram, uint64_t address, uint64_t bytes, uint64_t now) {
    return dram->write(address, bytes, now);
}
}
