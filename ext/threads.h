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

// A group of threads inside one parallel region, whose work is a sequence of phases (below).
class Team {
  public:
    // Runs f(team) on up to `threads` threads, this one included, and rethrows the first exception after all have ended.
    // An exception in one thread ends the waiting of the others with `Aborted`.
    template <class F> static void run(int threads, F&& f) {
        Team team;
        std::exception_ptr error;
        std::atomic<int> go{0};
        std::atomic_flag failed = ATOMIC_FLAG_INIT;
        auto body = [&] {
            try { f(team); }
            catch (const Aborted&) {}
            catch (...) {
                if (!failed.test_and_set()) error = std::current_exception();
                team.aborted_.store(true, std::memory_order_release);
            }
        };
        std::vector<std::thread> others;
        if (threads > 1) others.reserve(threads - 1);
        for (int t = 1; t < threads; ++t) {
            try { others.emplace_back([&] { wait_until([&] { return go.load(std::memory_order_acquire) != 0; }); body(); }); }
            catch (const std::system_error&) { break; }  // no more threads to be had: go on with fewer
        }
        team.size_ = 1 + int(others.size());
        go.store(1, std::memory_order_release);
        body();
        for (auto& o : others) o.join();
        if (error) std::rethrow_exception(error);
    }
    int size() const { return size_; }
    template <class Ready> void wait(Ready&& ready) {
        wait_until([&] { return ready() || aborted_.load(std::memory_order_acquire); });
        if (aborted_.load(std::memory_order_acquire)) throw Aborted();
    }

  private:
    struct Aborted {};
    int size_ = 1;
    std::atomic<bool> aborted_{false};
};

// Work of one phase: [0,n) in pieces. A phase is over when its work is done, not when all threads have come by: one that the system does not let run
// holds up the others only while it has a piece, and finds nothing left to do when it comes late.
class Phase {
  public:
    template <class F> void take(size_t n, size_t piece, F&& f) {
        for (size_t i; (i = next_.fetch_add(piece, std::memory_order_relaxed)) < n;) {
            const size_t end = std::min(n, i + piece);
            f(i, end);
            done_.fetch_add(end - i, std::memory_order_acq_rel);
        }
    }
    void wait(Team& team, size_t n) { if (team.size() > 1) team.wait([&] { return done_.load(std::memory_order_acquire) >= n; }); }
    template <class F> void all(Team& team, size_t n, size_t piece, F&& f) { take(n, piece, f), wait(team, n); }
    // f once, by the first to come
    template <class F> void once(Team& team, F&& f) { all(team, 1, 1, [&](size_t, size_t) { f(); }); }
    void reset() { next_.store(0, std::memory_order_relaxed), done_.store(0, std::memory_order_relaxed); }

  private:
    std::atomic<size_t> next_{0}, done_{0};
};

}  // namespace lattice
