// What the emulator tells the race detector (races.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace races {

void launch();                                                 // begins
void block(uint32_t number);                                   // begins
void enter(unsigned thread, const void* stack, size_t bytes);  // a thread runs from here on
void leave();                                                  // and no longer
void barrier(bool of_block);                                   // the thread that runs waits at one; else: of its warp
void fence();                                                  // __threadfence
void set_atomic(bool on);                                      // the accesses from here on are those of an atomic operation
void ignore(const void* p, size_t bytes);                      // memory of the emulator itself
size_t count();                                                // races so far

}  // namespace races
