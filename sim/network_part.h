// The far end of an Ethernet cable: sends and receives frames, a byte in a clock, as the FPGA's PHY shows them.

#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "clocked_board.h"

template <class Top>
class NetworkPart {
public:
    explicit NetworkPart(int64_t period) : edges(period) {}

    Edges edges;

    void clock(Top& top, bool level) { top.ethernet_clk = level; }
    void reset(Top& top, bool on) { top.ethernet_rst = on; }

    void edge(Top& top) {
        ++clocks_;
        if (top.tx_valid) {
            frame_.push_back(top.tx_data);
        } else if (!frame_.empty()) {
            received_.push_back(frame_);
            frame_.clear();
        }
        if (top.tx_valid || !waiting_.empty()) last_activity_ = clocks_;
    }

    void show(Top& top) {
        const bool sending = !waiting_.empty() && clocks_ >= free_;
        top.rx_valid = sending;
        top.rx_last = sending && sent_ + 1 == waiting_.front().size();
        if (!sending) return;
        top.rx_data = waiting_.front()[sent_++];
        if (sent_ == waiting_.front().size()) {
            waiting_.pop_front();
            sent_ = 0;
            free_ = clocks_ + 1 + GAP;
        }
    }

    // `frames` holds each frame's bytes behind their number, as two bytes with the low one first.
    void send(const uint8_t* frames, uint64_t count) {
        for (uint64_t at = 0; at + 2 <= count;) {
            const uint64_t length = frames[at] | frames[at + 1] << 8;
            at += 2;
            waiting_.emplace_back(frames + at, frames + at + length);
            at += length;
        }
    }

    // Hands over whole frames in the same form: at most `room` bytes.
    uint64_t take(uint8_t* frames, uint64_t room) {
        uint64_t taken = 0;
        while (!received_.empty() && taken + 2 + received_.front().size() <= room) {
            const auto& frame = received_.front();
            frames[taken++] = uint8_t(frame.size());
            frames[taken++] = uint8_t(frame.size() >> 8);
            for (const uint8_t byte : frame) frames[taken++] = byte;
            received_.pop_front();
        }
        return taken;
    }

    // Clocks since the last byte on the line; 0 while some wait.
    uint64_t quiet() const { return waiting_.empty() && received_.empty() ? clocks_ - last_activity_ : 0; }

private:
    static constexpr uint64_t GAP = 12;  // bytes between frames, IEEE 802.3

    std::deque<std::vector<uint8_t>> waiting_, received_;
    std::vector<uint8_t> frame_;
    uint64_t clocks_ = 0, free_ = 0, sent_ = 0, last_activity_ = 0;
};
