// A board with a serial line and a memory: its fabric and the memory's controller, each with its own clock.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "line.h"
#include "verilated.h"

// `Side` is what the controller of `Top` has at its pins:
//     void clock(Top&, bool), void reset(Top&, bool)  the controller's inputs
//     void edge(Top&)                                 at a rising edge: what was sent in the clock before
//     void show(Top&)                                 behind it: what is taken at the next one
//     const std::string& violation() const
template <class Top, class Side>
class TwoClocks : public LineDevice {
public:
    // Periods in femtoseconds.
    TwoClocks(Side side, int64_t fabric, int64_t controller, double bit_cycles)
        : LineDevice(bit_cycles),
          top_(std::make_unique<Top>(&context_)),
          side_(std::move(side)),
          fabric_(fabric),
          controller_(controller),
          next_controller_(controller) {
        top_->rx = 1;
        reset(true);
        run(RESET_CYCLES);
        reset(false);
    }

    ~TwoClocks() override { top_->final(); }

    const Side& side() const { return side_; }
    const char* violation() const override {
        return side_.violation().empty() ? nullptr : side_.violation().c_str();
    }

protected:
    void run(uint64_t cycles) override {
        for (const uint64_t end = cycles_ + cycles; cycles_ < end;) {
            const int64_t now = std::min(next_fabric_, next_controller_);
            clock(now == next_fabric_, now == next_controller_);
        }
    }

private:
    static constexpr int RESET_CYCLES = 8;  // of the fabric: more than four of the slower clock

    void reset(bool on) {
        top_->rst = on;
        side_.reset(*top_, on);
    }

    void clock(bool fabric, bool controller) {
        if (fabric) {
            top_->rx = uart_.drive(cycles_);
            top_->clk = 0;
        }
        if (controller) side_.clock(*top_, false);
        top_->eval();
        if (fabric) {
            uart_.clock(cycles_, top_->tx);
            top_->clk = 1;
            ++cycles_;
            next_fabric_ += fabric_;
        }
        if (controller) {
            side_.edge(*top_);
            side_.clock(*top_, true);
            next_controller_ += controller_;
        }
        top_->eval();
        if (controller) side_.show(*top_);
    }

    VerilatedContext context_;
    std::unique_ptr<Top> top_;
    Side side_;
    int64_t fabric_, controller_;
    int64_t next_fabric_ = 0, next_controller_;
};
