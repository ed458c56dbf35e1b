// Large blocks on huge pages, kept between calls: fresh pages cost a fifth to a third of a call.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lattice {

// What is kept is bounded: at most `keep_blocks` blocks and `keep_bytes` bytes, the rest goes back to the system at once.
class Pool {
  public:
    static constexpr size_t huge = size_t(1) << 21, small = size_t(1) << 16, keep_bytes = size_t(192) << 20;
    static constexpr int keep_blocks = 32;

    static void* get(size_t bytes, size_t& capacity) {
        capacity = bytes <= small ? (bytes + 63) / 64 * 64 : bytes <= huge / 8 ? huge / 8 : (bytes + huge - 1) / huge * huge;
        if (capacity <= small) return fresh(capacity);
        if (Guard g{}; g.held) {
            int best = -1;
            for (int i = 0; i < count; ++i)  // a block may serve a request of half its size, not a tiny one
                if (kept[i].bytes >= capacity && kept[i].bytes <= 2 * capacity && (best < 0 || kept[i].bytes < kept[best].bytes)) best = i;
            if (best >= 0) {
                void* p = kept[best].p;
                capacity = kept[best].bytes;
                total -= capacity;
                kept[best] = kept[--count];
                return p;
            }
        }
        return fresh(capacity);
    }
    static void put(void* p, size_t capacity) noexcept {
        if (Guard g{}; g.held && capacity > small && count < keep_blocks && total + capacity <= keep_bytes) {
            kept[count++] = {p, capacity};
            total += capacity;
            return;
        }
        give_back(p, capacity);
    }
    static void release() noexcept {
        if (Guard g{}; g.held) {
            while (count) --count, give_back(kept[count].p, kept[count].bytes);
            total = 0;
        }
    }
    // The blocks that are kept now; `release_new` gives all others back. So what a build allocated beyond them does not stand beside what
    // comes after it, and what the last image left for the next one stays.
    struct Snapshot { void* p[keep_blocks]; int count; };
    static Snapshot now() noexcept {
        Snapshot s{};
        if (Guard g{}; g.held) for (; s.count < count; ++s.count) s.p[s.count] = kept[s.count].p;
        return s;
    }
    static void release_new(const Snapshot& s) noexcept {
        if (Guard g{}; g.held)
            for (int i = count; i-- > 0;)
                if (std::find(s.p, s.p + s.count, kept[i].p) == s.p + s.count) {
                    total -= kept[i].bytes;
                    give_back(kept[i].p, kept[i].bytes);
                    kept[i] = kept[--count];
                }
    }
    static size_t held_bytes() noexcept { return total; }

  private:
    struct Block { void* p; size_t bytes; };
    static inline Block kept[keep_blocks];
    static inline int count = 0;
    static inline size_t total = 0;
    static inline std::atomic_flag busy = ATOMIC_FLAG_INIT;

    // Never waits: a child forked while another thread held the lock must not hang, it only loses the reuse.
    struct Guard {
        bool held = false;
        Guard() { for (int i = 0; i < 1000 && !held; ++i) held = !busy.test_and_set(std::memory_order_acquire); }
        ~Guard() { if (held) busy.clear(std::memory_order_release); }
    };
    static void* fresh(size_t capacity) {
#if defined(__linux__)
        if (capacity >= huge) {
            size_t span = capacity + huge;
            char* p = static_cast<char*>(mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            if (p == MAP_FAILED) throw std::bad_alloc();
            char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + huge - 1) / huge * huge);
            if (aligned > p) munmap(p, aligned - p);
            if (p + span > aligned + capacity) munmap(aligned + capacity, p + span - (aligned + capacity));
            madvise(aligned, capacity, MADV_HUGEPAGE);
            return aligned;
        }
#endif
        return ::operator new(capacity, std::align_val_t(64));
    }
    static void give_back(void* p, size_t capacity) noexcept {
#if defined(__linux__)
        if (capacity >= huge) { munmap(p, capacity); return; }
#endif
        ::operator delete(p, std::align_val_t(64));
    }
};

// An uninitialised array of trivial T from the pool, aligned to a cache line.
template <class T> class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t n) { reset(n); }
    Buffer(Buffer&& o) noexcept { swap(o); }
    Buffer& operator=(Buffer&& o) noexcept { swap(o); return *this; }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { clear(); }
    void clear() noexcept { if (p_) Pool::put(p_, capacity_); p_ = nullptr; n_ = capacity_ = 0; }
    void reset(size_t n) {
        if (n > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
        if (n * sizeof(T) > capacity_) {
            clear();
            p_ = static_cast<T*>(Pool::get(n * sizeof(T), capacity_));
        }
        n_ = n;
    }
    T* release(size_t& capacity) noexcept { capacity = capacity_; T* p = p_; p_ = nullptr; n_ = capacity_ = 0; return p; }
    T* data() const { return p_; }
    size_t size() const { return n_; }
    size_t capacity() const { return capacity_ / sizeof(T); }
    T& operator[](size_t i) const { return p_[i]; }
    void swap(Buffer& o) noexcept { std::swap(p_, o.p_); std::swap(n_, o.n_); std::swap(capacity_, o.capacity_); }

  private:
    T* p_ = nullptr;
    size_t n_ = 0, capacity_ = 0;
};

}  // namespace lattice
