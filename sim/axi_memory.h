// AXI4 slave: the board's memory with the DRAM's timing, faults and random back-pressure.
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

// Verilator writes the port m_axi__araddr as m_axi___05Faraddr.
#define AXI(port) m_axi___05F##port

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

template <class Top>
class AxiMemory {
public:
    // IData, QData or VlWide, as the width of the bus says. Each is its bytes in little-endian order.
    using Word = std::remove_reference_t<decltype(Top::AXI(rdata))>;
    using Strobe = std::remove_reference_t<decltype(Top::AXI(wstrb))>;
    static constexpr uint32_t WORD_BYTES = sizeof(Word);
    static constexpr uint32_t MAX_WORDS = 256;  // of an AXI burst
    static constexpr size_t OUTSTANDING = 16;   // requests that the controller holds, in each direction

    AxiMemory(uint8_t* memory, uint64_t bytes, const DramParameters& parameters)
        : memory_(memory), bytes_(bytes), dram_(parameters) {}

    void reset(uint64_t now) {
        reads_.clear();
        writes_.clear();
        r_valid_ = b_valid_ = false;
        held_ = Held();
        violation = nullptr;
        dram_.reset(now);
    }

    // Before the clock edge: what the slave shows in cycle `now`. It depends on no output of the accelerator.
    void drive(Top& top, uint64_t now) {
        top.AXI(arready) = !quiet() && reads_.size() < OUTSTANDING;
        top.AXI(awready) = !quiet() && writes_.size() < OUTSTANDING;
        top.AXI(wready) = !quiet() && accepting() != nullptr;
        if (!r_valid_ && !reads_.empty() && reads_.front().arrival[reads_.front().next] <= now && !quiet()) show_word(top);
        if (!b_valid_ && !writes_.empty() && writes_.front().complete && writes_.front().done <= now && !quiet()) {
            top.AXI(bresp) = store(writes_.front());
            b_valid_ = true;
        }
        top.AXI(rvalid) = r_valid_;
        top.AXI(bvalid) = b_valid_;
    }

    // At the clock edge, with the accelerator's outputs settled: the transfers of cycle `now`.
    void clock(Top& top, uint64_t now) {
        check_held(top);
        if (top.AXI(rvalid) && top.AXI(rready)) {
            r_valid_ = false;
            ++statistics.read_words;
            if (++reads_.front().next == reads_.front().words) reads_.pop_front();
        }
        if (top.AXI(bvalid) && top.AXI(bready)) {
            b_valid_ = false;
            writes_.pop_front();
        }
        if (top.AXI(wvalid) && top.AXI(wready)) take_word(top, now);
        if (top.AXI(arvalid) && top.AXI(arready)) {
            Read& read = reads_.push_back();
            read.address = top.AXI(araddr);
            read.words = top.AXI(arlen) + 1u;
            read.next = 0;
            check_burst(read.address, read.words, top.AXI(arsize), top.AXI(arburst));
            dram_.read(read.address, read.words, WORD_BYTES, now, read.arrival.data());
        }
        if (top.AXI(awvalid) && top.AXI(awready)) {
            Write& write = writes_.push_back();
            write.address = top.AXI(awaddr);
            write.words = top.AXI(awlen) + 1u;
            write.next = 0;
            write.complete = false;
            check_burst(write.address, write.words, top.AXI(awsize), top.AXI(awburst));
        }
    }

    bool dead = false;            // accepts and answers nothing new
    Stall stall;
    std::vector<Fault> faults;
    Statistics statistics;
    const char* violation = nullptr;  // the accelerator's first breach of the AXI protocol since reset

private:
    struct Read {
        uint64_t address;
        uint32_t words, next;
        std::array<uint64_t, MAX_WORDS> arrival;
    };
    struct Write {
        uint64_t address, done;
        uint32_t words, next;
        bool complete;
        std::vector<uint8_t> data = std::vector<uint8_t>(MAX_WORDS * WORD_BYTES);
        std::vector<uint8_t> strobe = std::vector<uint8_t>(MAX_WORDS * WORD_BYTES);
    };

    // Keeps its entries' storage when they are popped.
    template <class T>
    class Queue {
    public:
        bool empty() const { return count_ == 0; }
        size_t size() const { return count_; }
        void clear() { count_ = 0; }
        T& front() { return (*this)[0]; }
        T& operator[](size_t index) { return entries_[(first_ + index) % OUTSTANDING]; }
        T& push_back() { return (*this)[count_++]; }
        void pop_front() { first_ = (first_ + 1) % OUTSTANDING, --count_; }

    private:
        std::vector<T> entries_ = std::vector<T>(OUTSTANDING);
        size_t first_ = 0, count_ = 0;
    };

    // What a channel offered without being taken: it has to stay.
    struct Held {
        bool ar = false, aw = false, w = false;
        uint64_t ar_address = 0, aw_address = 0;
        uint32_t ar_len = 0, aw_len = 0;
        Word w_data{};
        Strobe w_strobe{};
    };

    bool quiet() { return dead || stall(); }

    Write* accepting() {
        for (size_t index = 0; index < writes_.size(); ++index) {
            if (!writes_[index].complete) return &writes_[index];
        }
        return nullptr;
    }

    Response response(bool write, uint64_t address, uint64_t size) const {
        if (address + size > bytes_) return DECERR;
        for (const Fault& fault : faults) {
            if (fault.write == write && address < fault.high && fault.low < address + size) return SLVERR;
        }
        return OKAY;
    }

    void show_word(Top& top) {
        const Read& read = reads_.front();
        const uint64_t address = read.address + uint64_t(read.next) * WORD_BYTES;
        const Response answer = response(false, address, WORD_BYTES);
        if (answer == OKAY) {
            std::memcpy(static_cast<void*>(&top.AXI(rdata)), memory_ + address, WORD_BYTES);
        } else {
            std::memset(static_cast<void*>(&top.AXI(rdata)), 0xA5, WORD_BYTES);
        }
        top.AXI(rresp) = answer;
        top.AXI(rlast) = read.next + 1 == read.words;
        r_valid_ = true;
    }

    void take_word(Top& top, uint64_t now) {
        Write& write = *accepting();
        uint8_t strobe[sizeof(Strobe)];
        std::memcpy(strobe, static_cast<const void*>(&top.AXI(wstrb)), sizeof strobe);
        const size_t offset = size_t(write.next) * WORD_BYTES;
        std::memcpy(&write.data[offset], static_cast<const void*>(&top.AXI(wdata)), WORD_BYTES);
        for (uint32_t byte = 0; byte < WORD_BYTES; ++byte) {
            write.strobe[offset + byte] = strobe[byte / 8] >> byte % 8 & 1;
        }
        ++statistics.write_words;
        ++write.next;
        require(top.AXI(wlast) == (write.next == write.words), "wlast is not on the last word of its burst");
        if (write.next == write.words) {
            write.complete = true;
            write.done = dram_.write(write.address, uint64_t(write.words) * WORD_BYTES, now);
        }
    }

    Response store(const Write& write) {
        const uint64_t size = uint64_t(write.words) * WORD_BYTES;
        const Response answer = response(true, write.address, size);
        if (answer == OKAY) {
            for (uint64_t byte = 0; byte < size; ++byte) {
                if (write.strobe[byte]) memory_[write.address + byte] = write.data[byte];
            }
        }
        return answer;
    }

    void require(bool ok, const char* what) {
        if (!ok && !violation) violation = what;
    }

    void check_burst(uint64_t address, uint32_t words, uint32_t size, uint32_t burst) {
        require(burst == 1, "a burst is not INCR");
        require(1u << size == WORD_BYTES, "the size of a burst's words is not the width of the bus");
        require(address % WORD_BYTES == 0, "the address of a burst is not aligned");
        require(address / 4096 == (address + uint64_t(words) * WORD_BYTES - 1) / 4096, "a burst crosses 4096 bytes");
    }

    void check_held(const Top& top) {
        if (held_.ar) {
            require(top.AXI(arvalid) && top.AXI(araddr) == held_.ar_address &&
                        top.AXI(arlen) == held_.ar_len,
                    "AR: changed before it was taken");
        }
        if (held_.aw) {
            require(top.AXI(awvalid) && top.AXI(awaddr) == held_.aw_address &&
                        top.AXI(awlen) == held_.aw_len,
                    "AW: changed before it was taken");
        }
        if (held_.w) {
            require(top.AXI(wvalid) && !std::memcmp(&top.AXI(wdata), &held_.w_data, sizeof held_.w_data) &&
                        !std::memcmp(&top.AXI(wstrb), &held_.w_strobe, sizeof held_.w_strobe),
                    "W: changed before it was taken");
        }
        held_.ar = top.AXI(arvalid) && !top.AXI(arready);
        held_.aw = top.AXI(awvalid) && !top.AXI(awready);
        held_.w = top.AXI(wvalid) && !top.AXI(wready);
        held_.ar_address = top.AXI(araddr);
        held_.ar_len = top.AXI(arlen);
        held_.aw_address = top.AXI(awaddr);
        held_.aw_len = top.AXI(awlen);
        if (held_.w) {
            held_.w_data = top.AXI(wdata);
            held_.w_strobe = top.AXI(wstrb);
        }
    }

    uint8_t* memory_;
    uint64_t bytes_;
    Dram dram_;
    Queue<Read> reads_;
    Queue<Write> writes_;
    bool r_valid_ = false, b_valid_ = false;
    Held held_;
};
