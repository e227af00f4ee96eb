// What a library shows; all else in it is hidden.

#pragma once

#define API extern "C" __attribute__((visibility("default")))
