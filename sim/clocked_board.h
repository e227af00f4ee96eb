// A board with a serial line: its fabric, and other parts of it that have clocks of their own.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>

#include "line.h"
#include "verilated.h"

// When a part of the board has its edges. Periods are in femtoseconds.
class Edges {
public:
    explicit Edges(int64_t period) : period_(period), next_(period) {}

    int64_t next() const { return next_; }
    void pass() { next_ += period_; }

private:
    int64_t period_, next_;
};

// Each of `Parts` is what one clock's logic has at its pins:
//     Edges edges
//     void clock(Top&, bool), void reset(Top&, bool)  the inputs of its domain
//     void edge(Top&)                                 at a rising edge: what was sent in the clock before
//     void show(Top&)                                 behind it: what is taken at the next one
// The first one also has
//     const std::string& violation() const
template <class Top, class... Parts>
class ClockedBoard : public LineDevice {
public:
    ClockedBoard(int64_t fabric_period, double bit_cycles, Parts... parts)
        : LineDevice(bit_cycles),
          top_(std::make_unique<Top>(&context_)),
          fabric_(fabric_period),
          parts_(std::move(parts)...) {
        top_->rx = 1;
        reset(true);
        run(RESET_CYCLES);
        reset(false);
    }

    ~ClockedBoard() override { top_->final(); }

    template <class Part>
    Part& part() {
        return std::get<Part>(parts_);
    }
    const char* violation() const override {
        const auto& text = std::get<0>(parts_).violation();
        return text.empty() ? nullptr : text.c_str();
    }

protected:
    void run(uint64_t cycles) override {
        for (const uint64_t end = cycles_ + cycles; cycles_ < end;) {
            int64_t now = fabric_.next();
            each([&](auto& part) { now = std::min(now, part.edges.next()); });
            edge(now);
        }
    }

private:
    static constexpr int RESET_CYCLES = 8;  // of the fabric: more than four of the slowest clock

    template <class Action>
    void each(Action action) {
        std::apply([&](auto&... part) { (action(part), ...); }, parts_);
    }

    void reset(bool on) {
        top_->rst = on;
        each([&](auto& part) { part.reset(*top_, on); });
    }

    // All edges that are at `now`.
    void edge(int64_t now) {
        const bool fabric = fabric_.next() == now;
        const auto due = [now](auto& part) { return part.edges.next() == now; };
        if (fabric) {
            top_->rx = uart_.drive(cycles_);
            top_->clk = 0;
        }
        each([&](auto& part) {
            if (due(part)) part.clock(*top_, false);
        });
        top_->eval();
        if (fabric) {
            uart_.clock(cycles_, top_->tx);
            top_->clk = 1;
            ++cycles_;
            fabric_.pass();
        }
        each([&](auto& part) {
            if (!due(part)) return;
            part.edge(*top_);
            part.clock(*top_, true);
        });
        top_->eval();
        each([&](auto& part) {
            if (!due(part)) return;
            part.show(*top_);
            part.edges.pass();
        });
    }

    VerilatedContext context_;
    std::unique_ptr<Top> top_;
    Edges fabric_;
    std::tuple<Parts...> parts_;
};
