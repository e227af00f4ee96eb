// The far end of a serial line: sends and receives bytes at the pins of any simulated device, at its own baud rate.

#pragma once

#include <cstdint>
#include <deque>

class Uart {
public:
    // Cycles of the device's clock that a bit takes at this end.
    explicit Uart(double bit_cycles) : bit_(bit_cycles) {}

    void send(const uint8_t* bytes, uint64_t count) { waiting_.insert(waiting_.end(), bytes, bytes + count); }

    // Before the clock edge of cycle `now`: the pin that the device receives on.
    bool drive(uint64_t now) {
        if (!sending_ && !waiting_.empty()) {
            sending_ = true;
            frame_ = 0x200u | waiting_.front() << 1;  // start bit, data, stop bit
            waiting_.pop_front();
            // Bytes in a row follow each other without rounding to cycles.
            begun_ = begun_ + 10 * bit_ > double(now) - 1 ? begun_ + 10 * bit_ : double(now);
        }
        if (!sending_) return true;
        last_activity_ = now;
        const int index = int((double(now) - begun_) / bit_);
        if (index >= 9 && double(now) + 1 >= begun_ + 10 * bit_) sending_ = false;
        return index < 0 || frame_ >> (index < 9 ? index : 9) & 1;
    }

    // At the clock edge of cycle `now`: the pin that the device sends on.
    void clock(uint64_t now, bool pin) {
        if (sampled_ < 0) {
            if (high_ && !pin) {
                sampled_ = 0;
                fall_ = now;
            }
            high_ = pin;
            return;
        }
        last_activity_ = now;
        if (double(now) < double(fall_) + (sampled_ + 0.5) * bit_) return;
        if (sampled_ == 0) {
            value_ = 0;
        } else if (sampled_ <= 8) {
            value_ |= uint8_t(pin) << (sampled_ - 1);
        } else {
            if (pin) received_.push_back(value_);
            high_ = pin;
        }
        sampled_ = sampled_ == 9 ? -1 : sampled_ + 1;
    }

    // Hands over what has been received: at most `room` bytes.
    uint64_t take(uint8_t* bytes, uint64_t room) {
        uint64_t taken = 0;
        while (taken < room && !received_.empty()) {
            bytes[taken++] = received_.front();
            received_.pop_front();
        }
        return taken;
    }

    // Cycles since the last one in which a bit was under way; 0 while bytes wait to be sent.
    uint64_t quiet(uint64_t now) const { return waiting_.empty() ? now - last_activity_ : 0; }

private:
    double bit_;
    std::deque<uint8_t> waiting_, received_;
    bool sending_ = false;
    unsigned frame_ = 0;
    double begun_ = -1e9;
    int sampled_ = -1;  // bits of the byte that is being received
    uint64_t fall_ = 0, last_activity_ = 0;
    uint8_t value_ = 0;
    bool high_ = true;
};
