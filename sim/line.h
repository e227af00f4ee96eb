// A simulated device with a serial line, and what every library of one offers. For ctypes: sim/serial.py.

#pragma once

#include <cstdint>

#include "api.h"
#include "uart.h"

class LineDevice {
public:
    explicit LineDevice(double bit_cycles) : uart_(bit_cycles) {}
    virtual ~LineDevice() = default;

    // Sends bytes, lets cycles of the fabric pass, and takes what has been received: at most `room` bytes.
    uint64_t run_line(uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received, uint64_t room) {
        uart_.send(sent, count);
        run(cycles);
        return uart_.take(received, room);
    }

    uint64_t cycles() const { return cycles_; }
    uint64_t quiet() const { return uart_.quiet(cycles_); }

    // The first rule that the device broke, if it broke one.
    virtual const char* violation() const = 0;

protected:
    virtual void run(uint64_t cycles) = 0;

    Uart uart_;
    uint64_t cycles_ = 0;
};

API void line_destroy(LineDevice* device) { delete device; }
API const char* line_violation(LineDevice* device) { return device->violation(); }
API uint64_t line_cycles(LineDevice* device) { return device->cycles(); }
API uint64_t line_quiet(LineDevice* device) { return device->quiet(); }
API uint64_t line_run(LineDevice* device, uint64_t cycles, const uint8_t* sent, uint64_t count, uint8_t* received,
                      uint64_t room) {
    return device->run_line(cycles, sent, count, received, room);
}
