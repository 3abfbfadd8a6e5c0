// The threads of one forward: a barrier and a fair split of the work, on top of the OpenMP pool that torch uses.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

// The C entry points of libgomp. Calling them directly needs no -fopenmp, so that clang can build this file too.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}

namespace outpace {

constexpr int kMaxThreads = 256;
constexpr int kSpins = 4000;      // some 50 us: longer than threads of an idle machine ever wait for each other
constexpr int kStagesAlive = 3;   // claims of the last stage, of this one and of the next (see Worker::begin)

// Sleep while `word` holds `seen`; may return early. A sleeper leaves its core to whoever it waits for, at the cost of
// a system call; one that only yields is chosen again at once and uses up what the scheduler grants the process.
inline void park(std::atomic<int>& word, int seen) {
#if defined(__linux__)
  static_assert(sizeof(word) == sizeof(int));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
  if (word.load() == seen) sched_yield();
#endif
}

inline void wake_all([[maybe_unused]] std::atomic<int>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct alignas(128) Cursor {  // a cache line pair of its own, so that claiming does not disturb the neighbour
  std::atomic<int64_t> next{0};
};

struct Team {
  alignas(128) std::atomic<int> arrived{0};
  alignas(128) std::atomic<int> round{0};
  std::atomic<int> parked{0};
  Cursor cursor[kStagesAlive][kMaxThreads];
};

// One thread's view of its team.
class Worker {
 public:
  Worker(Team& team, int thread, int threads) : thread(thread), threads(threads), team_(team) {
    for (int stage = 0; stage < kStagesAlive; stage++) clear(stage);
    wait();
  }

  const int thread;
  const int threads;

  // Wait for all: spin first, then sleep, for the one waited for may need this very core. Either the last to arrive sees
  // who sleeps, or the sleeper's system call sees the new round: both orders are sequentially consistent.
  void wait() {
    const int round = team_.round.load(std::memory_order_relaxed);
    if (team_.arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      team_.arrived.store(0, std::memory_order_relaxed);
      team_.round.store(round + 1);
      if (team_.parked.load() > 0) wake_all(team_.round);
      return;
    }
    for (int spin = 0; spin < kSpins; spin++) {
      if (team_.round.load(std::memory_order_acquire) != round) return;
      relax();
    }
    team_.parked.fetch_add(1);
    while (team_.round.load() == round) park(team_.round, round);
    team_.parked.fetch_sub(1, std::memory_order_relaxed);
  }

  // First item of this thread's share of `total`.
  int64_t first(int64_t total) const { return total * thread / threads; }

  // Call `body(item)` for this thread's fixed share; for stages too light to be worth claiming.
  template <class Body>
  void share(int64_t total, Body body) const {
    for (int64_t i = first(total), end = total * (thread + 1) / threads; i < end; i++) body(i);
  }

  // Call `body(item, is_last)` for items claimed one by one: first this thread's share in order, then whatever slower
  // threads have not begun. Who computes an item never changes its value. Every thread must call this in the same
  // order, with a `wait` between two calls.
  template <class Body>
  void claim(int64_t total, Body body) {
    stage_ = (stage_ + 1) % kStagesAlive;
    clear((stage_ + 1) % kStagesAlive);  // its users left two waits ago, and the next arrive after one more
    for (int offset = 0; offset < threads; offset++) {
      const int owner = (thread + offset) % threads;
      const int64_t begin = total * owner / threads, end = total * (owner + 1) / threads;
      std::atomic<int64_t>& next = team_.cursor[stage_][owner].next;
      for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); begin + i < end;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        body(begin + i, begin + i + 1 == end);
      }
    }
  }

 private:
  void clear(int stage) { team_.cursor[stage][thread].next.store(0, std::memory_order_relaxed); }

  Team& team_;
  int stage_ = 0;
};

// Run `body(thread, threads)` on every thread of a team.
template <class Body>
inline void in_parallel(int64_t threads, Body body) {
  const auto call = [](void* data) { (*static_cast<Body*>(data))(omp_get_thread_num(), omp_get_num_threads()); };
  GOMP_parallel(call, &body, static_cast<unsigned>(std::min<int64_t>(threads, kMaxThreads)), 0);
}

}  // namespace outpace
