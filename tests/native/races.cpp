// A race detector for the emulator. The kernels are compiled with -fsanitize=thread, which calls a function at every access
// to memory; here these functions are not those of ThreadSanitizer but know what orders the threads of a GPU: a barrier of the
// block, a barrier or a shuffle of the warp, the end of a launch, and the fences of a block that comes last. Nothing else
// does, so that every order of threads, warps and blocks is judged by a single run of any one of them.
//
// Reported, once for each pair of places: two accesses of which one writes, by threads that nothing orders, unless both are
// atomic; and __shared__ memory that is read before the block has written it.
#include "races.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>

namespace races {
namespace {

struct Access {
  uint32_t launch = 0;  // 0: none
  uint32_t block = 0, phase = 0, warp_phase = 0;
  uint16_t thread = 0;
  bool atomic = false;
  const void* place = nullptr;
};
struct Cell {  // of a byte
  Access write, read[2];
};
constexpr uintptr_t page_bytes = 256;
struct Page {
  Cell cell[page_bytes];
};
struct Thread {
  uint32_t phase = 0, warp_phase = 0;
  int fences = 0;
};

Thread threads[1024];
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::set<std::pair<const void*, const void*>> seen;
uintptr_t last_page = 0;
Page* last = nullptr;
bool running = false, atomic = false;
uint32_t launch_number = 0, block_number = 0;
uint16_t thread_number = 0;
uintptr_t stack_first = 0, stack_last = 0, own_first = 0, own_last = 0;
const void* own[8];
size_t own_bytes[8];
int own_count = 0;

bool within(uintptr_t at, const void* p, size_t bytes) { return at >= (uintptr_t)p && at < (uintptr_t)p + bytes; }

// writable static memory of this program or library: the __shared__ variables
bool is_shared(uintptr_t at) { return at >= own_first && at < own_last; }
void find_static_memory() {
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        uintptr_t first = 0, end = 0;
        bool mine = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          const uintptr_t from = info->dlpi_addr + part.p_vaddr, to = from + part.p_memsz;
          if (part.p_type != PT_LOAD) continue;
          mine = mine || ((uintptr_t)&find_static_memory >= from && (uintptr_t)&find_static_memory < to);
          if (part.p_flags & PF_W) first = from, end = to;
        }
        if (mine) own_first = first, own_last = end;
        return mine ? 1 : 0;
      },
      nullptr);
}

void name_place(const void* place) {
  Dl_info info;
  if (dladdr(place, &info))
    std::fprintf(stderr, " %s+0x%zx", info.dli_fname, (size_t)((uintptr_t)place - (uintptr_t)info.dli_fbase - 1));
}
void report(const char* what, uintptr_t at, const Access& before, const Access& now) {
  if (!seen.insert({before.place, now.place}).second) return;
  std::fprintf(stderr, "races: %s, %s memory at %p: block %u thread %u and block %u thread %u\n   ", what,
               is_shared(at) ? "shared" : "global", (void*)at, before.block, before.thread, now.block, now.thread);
  if (before.place) name_place(before.place);
  name_place(now.place);
  std::fprintf(stderr, "\n");
}

bool ordered(const Access& before, const Access& now, bool shared) {
  if (before.launch != now.launch) return true;
  if (before.block != now.block) return shared || threads[now.thread].fences >= 2;
  if (before.thread == now.thread || before.phase != now.phase) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_phase != now.warp_phase;
}

void access(uintptr_t first, size_t bytes, bool writes, const void* place) {
  if (!running || (first >= stack_first && first < stack_last)) return;
  for (int i = 0; i < own_count; ++i)
    if (within(first, own[i], own_bytes[i])) return;
  const Thread& thread = threads[thread_number];
  const Access now = {launch_number, block_number, thread.phase, thread.warp_phase, thread_number, atomic, place};
  bool fresh = !writes && bytes <= 8;  // nothing of it has been written; a copy of a struct may read what lies between fields
  Access before_it;
  for (uintptr_t at = first; at < first + bytes; ++at) {
    if (!last || at / page_bytes != last_page) {
      auto& page = pages[at / page_bytes];
      if (!page) page.reset(new Page);
      last = page.get(), last_page = at / page_bytes;
    }
    Cell& cell = last->cell[at % page_bytes];
    const bool shared = is_shared(at);
    const auto check = [&](const Access& before, const char* what) {
      if (!ordered(before, now, shared) && !(before.atomic && now.atomic)) report(what, at, before, now);
    };
    check(cell.write, writes ? "two writes" : "a read after a write");
    if (writes) {
      check(cell.read[0], "a write after a read");
      check(cell.read[1], "a write after a read");
      cell.write = now;
    } else {
      fresh = fresh && shared && (cell.write.launch != now.launch || cell.write.block != now.block);
      before_it = cell.write;
      Access& newest = cell.read[0];
      if (newest.launch != now.launch || newest.block != now.block || newest.thread / 32 != now.thread / 32)
        cell.read[1] = newest;
      newest = now;
    }
  }
  if (fresh) report("a read of what the block has not written", first, before_it, now);
}

}  // namespace

void launch() {
  if (!own_last) find_static_memory();
  ++launch_number;
  if (pages.size() > 200000) pages.clear(), last = nullptr;
}
void block(uint32_t number) {
  block_number = number;
  for (Thread& t : threads) t = Thread();
}
void enter(unsigned thread, const void* stack, size_t bytes) {
  thread_number = (uint16_t)thread;
  stack_first = (uintptr_t)stack, stack_last = stack_first + bytes;
  running = true;
}
void leave() { running = false; }
void barrier(bool of_block) {
  threads[thread_number].phase += of_block;
  ++threads[thread_number].warp_phase;
}
void fence() { ++threads[thread_number].fences; }
void set_atomic(bool on) { atomic = on; }
void ignore(const void* p, size_t bytes) {
  for (int i = 0; i < own_count; ++i)
    if (own[i] == p) {
      own_bytes[i] = bytes;
      return;
    }
  if (own_count == 8) std::abort();
  own[own_count] = p, own_bytes[own_count++] = bytes;
}
size_t count() { return seen.size(); }

}  // namespace races

// ---- what the compiler calls -----------------------------------------------------------------------------------------
extern "C" __attribute__((visibility("default"))) int shamisa_races() { return (int)races::count(); }
#define SHAMISA_PLACE __builtin_return_address(0)
#define SHAMISA_ACCESS(n)                                                                          \
  void __tsan_read##n(void* p) { races::access((uintptr_t)p, n, false, SHAMISA_PLACE); }           \
  void __tsan_write##n(void* p) { races::access((uintptr_t)p, n, true, SHAMISA_PLACE); }           \
  void __tsan_unaligned_read##n(void* p) { races::access((uintptr_t)p, n, false, SHAMISA_PLACE); } \
  void __tsan_unaligned_write##n(void* p) { races::access((uintptr_t)p, n, true, SHAMISA_PLACE); } \
  void __tsan_volatile_read##n(void* p) { races::access((uintptr_t)p, n, false, SHAMISA_PLACE); }  \
  void __tsan_volatile_write##n(void* p) { races::access((uintptr_t)p, n, true, SHAMISA_PLACE); }
// std::atomic of what surrounds the kernels: no thread of a GPU
#define SHAMISA_STANDARD(bits)                                                              \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile void* p, int) {                  \
    return __atomic_load_n((const volatile uint##bits##_t*)p, __ATOMIC_SEQ_CST);            \
  }                                                                                         \
  void __tsan_atomic##bits##_store(volatile void* p, uint##bits##_t n, int) {               \
    __atomic_store_n((volatile uint##bits##_t*)p, n, __ATOMIC_SEQ_CST);                     \
  }                                                                                         \
  uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile void* p, uint##bits##_t n, int) { \
    return __atomic_fetch_add((volatile uint##bits##_t*)p, n, __ATOMIC_SEQ_CST);            \
  }                                                                                         \
  uint##bits##_t __tsan_atomic##bits##_fetch_sub(volatile void* p, uint##bits##_t n, int) { \
    return __atomic_fetch_sub((volatile uint##bits##_t*)p, n, __ATOMIC_SEQ_CST);            \
  }
extern "C" {
SHAMISA_STANDARD(8)
SHAMISA_STANDARD(32)
SHAMISA_STANDARD(64)
SHAMISA_ACCESS(1)
SHAMISA_ACCESS(2)
SHAMISA_ACCESS(4)
SHAMISA_ACCESS(8)
SHAMISA_ACCESS(16)
void __tsan_read_range(void* p, size_t n) { races::access((uintptr_t)p, n, false, SHAMISA_PLACE); }
void __tsan_write_range(void* p, size_t n) { races::access((uintptr_t)p, n, true, SHAMISA_PLACE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  races::access((uintptr_t)from, n, false, SHAMISA_PLACE), races::access((uintptr_t)to, n, true, SHAMISA_PLACE);
  return std::memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  races::access((uintptr_t)from, n, false, SHAMISA_PLACE), races::access((uintptr_t)to, n, true, SHAMISA_PLACE);
  return std::memmove(to, from, n);
}
void* __tsan_memset(void* to, int byte, size_t n) {
  races::access((uintptr_t)to, n, true, SHAMISA_PLACE);
  return std::memset(to, byte, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
