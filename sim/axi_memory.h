// AXI4 slaves: the board's memory with the DRAM's timing, faults and random back-pressure.
//
// Reads and writes are answered in order. What is written becomes visible with its B response and not before, so an
// accelerator that reads its own data too early gets the old data.

#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "dram.h"

// Verilator writes the signal m_axi__araddr as m_axi___05Faraddr.
#define AXI(port, signal) port##___05F##signal

enum Response : uint8_t { OKAY = 0, SLVERR = 2, DECERR = 3 };

// A delay in a random share of the cycles; xorshift64.
class Stall {
public:
    void set(uint64_t seed, double probability) {
        state_ = seed ^ 0x9E3779B97F4A7C15u;
        if (state_ == 0) state_ = 1;
        threshold_ = probability >= 1 ? UINT32_MAX : uint32_t(probability * double(UINT32_MAX));
    }
    bool operator()() {
        if (threshold_ == 0) return false;
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return uint32_t(state_ >> 32) < threshold_;
    }

private:
    uint64_t state_ = 1;
    uint32_t threshold_ = 0;
};

struct Fault {
    bool write;
    uint64_t low, high;  // first byte and the one after the last
};

struct Statistics {
    uint64_t read_words = 0, write_words = 0;
};

// What all ports share.
struct Memory {
    uint8_t* data;
    uint64_t bytes;
    Dram dram;
    bool dead = false;  // accepts and answers nothing new
    std::vector<Fault> faults;
    Statistics statistics;
    const char* violation = nullptr;  // the accelerator's first breach of the AXI protocol since reset

    void require(bool ok, const char* what) {
        if (!ok && !violation) violation = what;
    }

    Response response(bool write, uint64_t address, uint64_t size) const {
        if (address + size > bytes) return DECERR;
        for (const Fault& fault : faults) {
            if (fault.write == write && address < fault.high && fault.low < address + size) return SLVERR;
        }
        return OKAY;
    }

    void check_burst(uint64_t address, uint32_t words, uint32_t word_bytes, uint32_t size, uint32_t burst) {
        require(burst == 1, "a burst is not INCR");
        require(1u << size == word_bytes, "the size of a burst's words is not the width of the bus");
        require(address % word_bytes == 0, "the address of a burst is not aligned");
        require(address / 4096 == (address + uint64_t(words) * word_bytes - 1) / 4096, "a burst crosses 4096 bytes");
    }
};

constexpr uint32_t MAX_WORDS = 256;  // of an AXI burst

// Requests that a controller holds, in each direction. Keeps its entries' storage when they are popped.
template <class T>
class Queue {
public:
    bool empty() const { return count_ == 0; }
    bool full() const { return count_ == entries_.size(); }
    size_t size() const { return count_; }
    void clear() { count_ = 0; }
    T& front() { return (*this)[0]; }
    T& operator[](size_t index) { return entries_[(first_ + index) % entries_.size()]; }
    T& push_back() { return (*this)[count_++]; }
    void pop_front() { first_ = (first_ + 1) % entries_.size(), --count_; }

private:
    std::vector<T> entries_ = std::vector<T>(16);
    size_t first_ = 0, count_ = 0;
};

// The signals of a read port.
template <class Word, class Address>
struct ReadSignals {
    uint8_t &arvalid, &arready;
    Address& araddr;
    uint8_t &arlen, &arsize, &arburst;
    uint8_t &rvalid, &rready, &rlast, &rresp;
    Word& rdata;
};
#define READ_SIGNALS(top, port)                                                                                     \
    {                                                                                                               \
        (top).AXI(port, arvalid), (top).AXI(port, arready), (top).AXI(port, araddr), (top).AXI(port, arlen),        \
            (top).AXI(port, arsize), (top).AXI(port, arburst), (top).AXI(port, rvalid), (top).AXI(port, rready),    \
            (top).AXI(port, rlast), (top).AXI(port, rresp), (top).AXI(port, rdata)                                  \
    }

// The read half of a port, with the addresses of one channel or of the whole memory.
template <class Word, class Address>
class AxiReads {
public:
    // IData, QData or VlWide, as the width of the bus says. Each is its bytes in little-endian order.
    static constexpr uint32_t WORD_BYTES = sizeof(Word);

    AxiReads(Memory& memory, ReadSignals<Word, Address> port, int channel)
        : memory_(memory), port_(port), channel_(channel) {}

    void reset() {
        reads_.clear();
        valid_ = held_ = false;
    }

    // Before the clock edge: what the slave shows in cycle `now`. It depends on no output of the accelerator.
    void drive(uint64_t now) {
        port_.arready = !quiet() && !reads_.full();
        if (!valid_ && !reads_.empty() && reads_.front().arrival[reads_.front().next] <= now && !quiet()) show_word();
        port_.rvalid = valid_;
    }

    // At the clock edge, with the accelerator's outputs settled: the transfers of cycle `now`.
    void clock(uint64_t now) {
        if (held_) {
            memory_.require(port_.arvalid && port_.araddr == held_address_ && port_.arlen == held_len_,
                            "AR: changed before it was taken");
        }
        held_ = port_.arvalid && !port_.arready;
        held_address_ = port_.araddr;
        held_len_ = port_.arlen;
        if (port_.rvalid && port_.rready) {
            valid_ = false;
            ++memory_.statistics.read_words;
            if (++reads_.front().next == reads_.front().words) reads_.pop_front();
        }
        if (port_.arvalid && port_.arready) {
            Read& read = reads_.push_back();
            read.address = port_.araddr;
            read.words = port_.arlen + 1u;
            read.next = 0;
            memory_.check_burst(read.address, read.words, WORD_BYTES, port_.arsize, port_.arburst);
            memory_.dram.read(read.address, read.words, WORD_BYTES, now, read.arrival.data(), channel_);
        }
    }

    Stall stall;

private:
    struct Read {
        uint64_t address;
        uint32_t words, next;
        std::array<uint64_t, MAX_WORDS> arrival;
    };

    bool quiet() { return memory_.dead || stall(); }

    void show_word() {
        const Read& read = reads_.front();
        const uint64_t address = memory_.dram.whole(read.address + uint64_t(read.next) * WORD_BYTES, channel_);
        const Response answer = memory_.response(false, address, WORD_BYTES);
        if (answer == OKAY) {
            std::memcpy(static_cast<void*>(&port_.rdata), memory_.data + address, WORD_BYTES);
        } else {
            std::memset(static_cast<void*>(&port_.rdata), 0xA5, WORD_BYTES);
        }
        port_.rresp = answer;
        port_.rlast = read.next + 1 == read.words;
        valid_ = true;
    }

    Memory& memory_;
    ReadSignals<Word, Address> port_;
    int channel_;
    Queue<Read> reads_;
    bool valid_ = false;
    bool held_ = false;  // a request was offered without being taken: it has to stay
    uint64_t held_address_ = 0;
    uint32_t held_len_ = 0;
};

// The write half of the port m_axi.
template <class Top>
class AxiWrites {
public:
    using Word = std::remove_reference_t<decltype(Top::AXI(m_axi, wdata))>;
    using Strobe = std::remove_reference_t<decltype(Top::AXI(m_axi, wstrb))>;
    static constexpr uint32_t WORD_BYTES = sizeof(Word);

    AxiWrites(Memory& memory, Top& top) : memory_(memory), top_(top) {}

    void reset() {
        writes_.clear();
        valid_ = false;
        held_ = Held();
    }

    void drive(uint64_t now) {
        top_.AXI(m_axi, awready) = !quiet() && !writes_.full();
        top_.AXI(m_axi, wready) = !quiet() && accepting() != nullptr;
        if (!valid_ && !writes_.empty() && writes_.front().complete && writes_.front().done <= now && !quiet()) {
            top_.AXI(m_axi, bresp) = store(writes_.front());
            valid_ = true;
        }
        top_.AXI(m_axi, bvalid) = valid_;
    }

    void clock(uint64_t now) {
        check_held();
        if (top_.AXI(m_axi, bvalid) && top_.AXI(m_axi, bready)) {
            valid_ = false;
            writes_.pop_front();
        }
        if (top_.AXI(m_axi, wvalid) && top_.AXI(m_axi, wready)) take_word(now);
        if (top_.AXI(m_axi, awvalid) && top_.AXI(m_axi, awready)) {
            Write& write = writes_.push_back();
            write.address = top_.AXI(m_axi, awaddr);
            write.words = top_.AXI(m_axi, awlen) + 1u;
            write.next = 0;
            write.complete = false;
            memory_.check_burst(write.address, write.words, WORD_BYTES, top_.AXI(m_axi, awsize), top_.AXI(m_axi, awburst));
        }
    }

    Stall stall;

private:
    struct Write {
        uint64_t address, done;
        uint32_t words, next;
        bool complete;
        std::vector<uint8_t> data = std::vector<uint8_t>(MAX_WORDS * WORD_BYTES);
        std::vector<uint8_t> strobe = std::vector<uint8_t>(MAX_WORDS * WORD_BYTES);
    };

    // What a channel offered without being taken: it has to stay.
    struct Held {
        bool aw = false, w = false;
        uint64_t aw_address = 0;
        uint32_t aw_len = 0;
        Word w_data{};
        Strobe w_strobe{};
    };

    bool quiet() { return memory_.dead || stall(); }

    Write* accepting() {
        for (size_t index = 0; index < writes_.size(); ++index) {
            if (!writes_[index].complete) return &writes_[index];
        }
        return nullptr;
    }

    void take_word(uint64_t now) {
        Write& write = *accepting();
        uint8_t strobe[sizeof(Strobe)];
        std::memcpy(strobe, static_cast<const void*>(&top_.AXI(m_axi, wstrb)), sizeof strobe);
        const size_t offset = size_t(write.next) * WORD_BYTES;
        std::memcpy(&write.data[offset], static_cast<const void*>(&top_.AXI(m_axi, wdata)), WORD_BYTES);
        for (uint32_t byte = 0; byte < WORD_BYTES; ++byte) {
            write.strobe[offset + byte] = strobe[byte / 8] >> byte % 8 & 1;
        }
        ++memory_.statistics.write_words;
        ++write.next;
        memory_.require(top_.AXI(m_axi, wlast) == (write.next == write.words),
                        "wlast is not on the last word of its burst");
        if (write.next == write.words) {
            write.complete = true;
            write.done = memory_.dram.write(write.address, uint64_t(write.words) * WORD_BYTES, now);
        }
    }

    Response store(const Write& write) {
        const uint64_t size = uint64_t(write.words) * WORD_BYTES;
        const Response answer = memory_.response(true, write.address, size);
        if (answer == OKAY) {
            for (uint64_t byte = 0; byte < size; ++byte) {
                if (write.strobe[byte]) memory_.data[write.address + byte] = write.data[byte];
            }
        }
        return answer;
    }

    void check_held() {
        if (held_.aw) {
            memory_.require(top_.AXI(m_axi, awvalid) && top_.AXI(m_axi, awaddr) == held_.aw_address &&
                                top_.AXI(m_axi, awlen) == held_.aw_len,
                            "AW: changed before it was taken");
        }
        if (held_.w) {
            memory_.require(top_.AXI(m_axi, wvalid) &&
                                !std::memcmp(&top_.AXI(m_axi, wdata), &held_.w_data, sizeof held_.w_data) &&
                                !std::memcmp(&top_.AXI(m_axi, wstrb), &held_.w_strobe, sizeof held_.w_strobe),
                            "W: changed before it was taken");
        }
        held_.aw = top_.AXI(m_axi, awvalid) && !top_.AXI(m_axi, awready);
        held_.w = top_.AXI(m_axi, wvalid) && !top_.AXI(m_axi, wready);
        held_.aw_address = top_.AXI(m_axi, awaddr);
        held_.aw_len = top_.AXI(m_axi, awlen);
        if (held_.w) {
            held_.w_data = top_.AXI(m_axi, wdata);
            held_.w_strobe = top_.AXI(m_axi, wstrb);
        }
    }

    Memory& memory_;
    Top& top_;
    Queue<Write> writes_;
    bool valid_ = false;
    Held held_;
};
