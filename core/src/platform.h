// What differs between POSIX, Windows and WebAssembly: threads, the clock, aligned memory, the process.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <malloc.h>
#include <windows.h>
#undef near  // macros, for pointers of 16-bit Windows
#undef far
#elif !defined(__wasm__)
#include <pthread.h>
#include <sched.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#endif
#include <time.h>
#include <unistd.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EVS_HAS_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EVS_HAS_ASAN
#endif
#endif
#if defined(EVS_HAS_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace evs {

#if defined(_WIN32)

class Mutex {
   public:
    void lock() { AcquireSRWLockExclusive(&lock_); }
    void unlock() { ReleaseSRWLockExclusive(&lock_); }

   private:
    friend class Condition;
    SRWLOCK lock_ = SRWLOCK_INIT;
};

class Condition {
   public:
    void wait(Mutex &mutex) { SleepConditionVariableSRW(&condition_, &mutex.lock_, INFINITE, 0); }
    void wake_all() { WakeAllConditionVariable(&condition_); }

   private:
    CONDITION_VARIABLE condition_ = CONDITION_VARIABLE_INIT;
};

using Thread = HANDLE;
using ThreadResult = DWORD;
#define EVS_THREAD_CALL WINAPI

inline bool start_thread(Thread &thread, ThreadResult(WINAPI *work)(void *), void *argument) {
    thread = CreateThread(nullptr, 0, work, argument, 0, nullptr);
    return thread != nullptr;
}

inline void join_thread(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

inline void yield_thread() { SwitchToThread(); }

inline int64_t now_ns() {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return int64_t(double(count.QuadPart) / double(per_second.QuadPart) * 1e9);
}

// A process cannot be forked there.
inline int64_t process_id() { return 0; }

inline void *allocate_aligned(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }
inline void free_aligned(void *memory) { _aligned_free(memory); }

#elif defined(__wasm__)

extern "C" {
// What the module asks its host for. Milliseconds, from any start:
__attribute__((import_module("evitseg"), import_name("now"))) double evs_host_now();
#if defined(__wasm_atomics__)
// Makes one of the host's threads, which has an instance of the module with the same memory, call evs_thread with this
// argument; returns 0 if none is left.
__attribute__((import_module("evitseg"), import_name("start"))) int evs_host_start(void *argument);
#endif
}

using ThreadResult = void *;
#define EVS_THREAD_CALL

#if defined(__wasm_atomics__)

// Both sleep in the instruction that waits for a number in memory to change. A page's main thread may not do that: the
// host runs networks in a worker.
class Mutex {
   public:
    void lock() {
        int seen = 0;
        if (__atomic_compare_exchange_n(&state_, &seen, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
        while (__atomic_exchange_n(&state_, 2, __ATOMIC_SEQ_CST) != 0) __builtin_wasm_memory_atomic_wait32(&state_, 2, -1);
    }
    void unlock() {
        if (__atomic_exchange_n(&state_, 0, __ATOMIC_SEQ_CST) == 2) __builtin_wasm_memory_atomic_notify(&state_, 1);
    }

   private:
    int state_ = 0;  // 1: locked; 2: locked, and others may wait
};

class Condition {
   public:
    void wait(Mutex &mutex) {
        const int seen = __atomic_load_n(&signals_, __ATOMIC_SEQ_CST);
        mutex.unlock();
        __builtin_wasm_memory_atomic_wait32(&signals_, seen, -1);
        mutex.lock();
    }
    void wake_all() {
        __atomic_fetch_add(&signals_, 1, __ATOMIC_SEQ_CST);
        __builtin_wasm_memory_atomic_notify(&signals_, UINT32_MAX);
    }

   private:
    int signals_ = 0;
};

struct Thread {
    ThreadResult (*work)(void *);
    void *argument;
    int done;
};

inline bool start_thread(Thread &thread, ThreadResult (*work)(void *), void *argument) {
    thread = {work, argument, 0};
    return evs_host_start(&thread) != 0;
}

inline void join_thread(Thread &thread) {
    while (__atomic_load_n(&thread.done, __ATOMIC_SEQ_CST) == 0) __builtin_wasm_memory_atomic_wait32(&thread.done, 0, -1);
}

#else  // one thread

class Mutex {
   public:
    void lock() {}
    void unlock() {}
};

class Condition {
   public:
    void wait(Mutex &) {}
    void wake_all() {}
};

using Thread = int;

inline bool start_thread(Thread &, ThreadResult (*)(void *), void *) { return false; }
inline void join_thread(Thread) {}

#endif

inline void yield_thread() {}

inline int64_t now_ns() { return int64_t(evs_host_now() * 1e6); }

inline int64_t process_id() { return 0; }

inline void *allocate_aligned(size_t alignment, size_t bytes) { return aligned_alloc(alignment, bytes); }
inline void free_aligned(void *memory) { free(memory); }

#else

class Mutex {
   public:
    void lock() { pthread_mutex_lock(&mutex_); }
    void unlock() { pthread_mutex_unlock(&mutex_); }

   private:
    friend class Condition;
    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
};

class Condition {
   public:
    void wait(Mutex &mutex) { pthread_cond_wait(&condition_, &mutex.mutex_); }
    void wake_all() { pthread_cond_broadcast(&condition_); }

   private:
    pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;
};

using Thread = pthread_t;
using ThreadResult = void *;
#define EVS_THREAD_CALL

inline bool start_thread(Thread &thread, ThreadResult (*work)(void *), void *argument) {
    // A window takes about 100 KB of stack; musl gives a thread 128 KB unless it is asked for more.
    constexpr size_t kStack = 1 << 20;
    pthread_attr_t settings;
    if (pthread_attr_init(&settings) != 0) return false;
    size_t stack = 0;
    pthread_attr_getstacksize(&settings, &stack);
    if (stack < kStack) pthread_attr_setstacksize(&settings, kStack);
    const bool started = pthread_create(&thread, &settings, work, argument) == 0;
    pthread_attr_destroy(&settings);
    return started;
}

inline void join_thread(Thread thread) { pthread_join(thread, nullptr); }

inline void yield_thread() { sched_yield(); }

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

inline int64_t process_id() { return getpid(); }

inline void *allocate_aligned(size_t alignment, size_t bytes) {
    void *memory = nullptr;
#if defined(MADV_HUGEPAGE)
    // The first use of a page costs three times as much in small pages.
    constexpr size_t kHuge = 2 << 20;
    const bool huge = bytes >= 4 * kHuge;
    if (huge) alignment = kHuge;
    if (posix_memalign(&memory, alignment, bytes) != 0) return nullptr;
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
#else
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
#endif
}
inline void free_aligned(void *memory) { free(memory); }

#endif

// How long a thread that waits looks for work before it sleeps. WebAssembly cannot offer its processor to another thread
// meanwhile, which may be the one it waits for: with one other busy program on two cores, two threads that looked for work
// for 2 ms took three times as long as one thread.
#if defined(__wasm__)
constexpr int64_t kSpinNs = 50'000;
#else
constexpr int64_t kSpinNs = 2'000'000;
#endif

// AddressSanitizer reports reads and writes of forbidden memory; kGuard bytes of it lie between two pieces.
#if defined(EVS_HAS_ASAN)
constexpr size_t kGuard = 64;
inline void forbid(const void *memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
inline void allow(const void *memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
#else
constexpr size_t kGuard = 0;
inline void forbid(const void *, size_t) {}
inline void allow(const void *, size_t) {}
#endif

#if defined(__linux__)
inline int thread_id() { return int(syscall(SYS_gettid)); }

// Lets threads (0: unknown yet) run on every processor the caller may use but the one where it runs.
inline void leave_my_processor(const int *ids, int count) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    const int mine = sched_getcpu();
    if (mine < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(mine, &allowed);
    for (int i = 0; i < count; i++) {
        const int id = __atomic_load_n(&ids[i], __ATOMIC_RELAXED);
        if (id > 0) sched_setaffinity(id, sizeof allowed, &allowed);
    }
}
#else
inline int thread_id() { return 0; }

inline void leave_my_processor(const int *, int) {}
#endif

}  // namespace evs
