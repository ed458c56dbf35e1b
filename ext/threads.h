// Threads that live for one call. Nothing outlives it, so fork is safe and the process keeps its own thread settings.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define LATTICE_PAUSE() _mm_pause()
#else
#define LATTICE_PAUSE() ((void)0)
#endif

namespace lattice {

// Waits a microsecond or two at full speed, then yields: with free cores the answer comes at once, on a busy machine the others get on.
template <class Ready> inline void wait_until(Ready&& ready) {
    for (int i = 0; !ready(); ++i)
        if (i < 200) LATTICE_PAUSE();
        else std::this_thread::yield();
}

// A group of threads inside one parallel region. Work is claimed in small pieces from counters, so a thread that the system
// holds up delays only its own piece.
class Team {
  public:
    // Runs f(thread index) on up to `threads` threads, this one included, and rethrows the first exception after all have ended.
    // An exception in one thread wakes the others from their barriers with `Aborted`.
    template <class F> static void run(int threads, F&& f) {
        Team team;
        std::exception_ptr error;
        std::atomic<int> go{0};
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        auto body = [&](int t) {
            try { f(team, t); }
            catch (const Aborted&) {}
            catch (...) {
                if (!failed.test_and_set()) error = std::current_exception();
                team.aborted_.store(true, std::memory_order_release);
            }
        };
        std::vector<std::thread> others;
        if (threads > 1) others.reserve(threads - 1);
        for (int t = 1; t < threads; ++t) {
            try { others.emplace_back([&, t] { wait_until([&] { return go.load(std::memory_order_acquire) != 0; }); body(t); }); }
            catch (const std::system_error&) { break; }  // no more threads to be had: go on with fewer
        }
        team.size_ = 1 + int(others.size());
        go.store(1, std::memory_order_release);
        body(0);
        for (auto& o : others) o.join();
        if (error) std::rethrow_exception(error);
    }
    int size() const { return size_; }
    void barrier() {
        if (size_ == 1) return;
        int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else wait([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
    template <class Ready> void wait(Ready&& ready) {
        wait_until([&] { return ready() || aborted_.load(std::memory_order_acquire); });
        if (aborted_.load(std::memory_order_acquire)) throw Aborted();
    }

  private:
    struct Aborted {};
    int size_ = 1;
    std::atomic<int> arrived_{0}, phase_{0};
    std::atomic<bool> aborted_{false};
};

// Hands out [0,n) in pieces.
class Counter {
  public:
    template <class F> void each(size_t n, size_t piece, F&& f) {
        for (size_t i; (i = next_.fetch_add(piece, std::memory_order_relaxed)) < n;) f(i, std::min(n, i + piece));
    }
    void reset() { next_.store(0, std::memory_order_relaxed); }

  private:
    std::atomic<size_t> next_{0};
};

}  // namespace lattice
